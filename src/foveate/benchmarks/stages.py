"""Where the time of an answer goes: encoder, selection, prefill, decoding; every instant belongs to one of them.

The clock is read, and with it an accelerator waited for, wherever one stage ends and another begins. That costs a
little, so it is done in runs of their own, not in those that the times to the first token come from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from foveate.attention import Recorder
from foveate.models import family_for

Stage = Literal["encoder", "selection", "prefill", "decode", "rest"]
STAGES: tuple[Stage, ...] = ("encoder", "selection", "prefill", "decode", "rest")


@dataclass(frozen=True)
class Stages:
    """One run's time, ms; the five add up to ``total_ms``.

    Args:
        encoder_ms: the model's own ``get_image_features``: vision tower, projector, packing.
        selection_ms: Foveate's own work: attaching, reading saliency, finding the guiding text, choosing, shortening,
            restoring. 0 where it does not run.
        prefill_ms: the model's forward over the prompt, what the encoder takes within it left out.
        decode_ms: everything in ``generate`` after it: the choice of the first token, then all others; showing the long
            prompt to criteria and processors included.
        rest_ms: what is none of them: what ``generate`` prepares before its first forward.
        total_ms: all of it.
    """

    encoder_ms: float
    selection_ms: float
    prefill_ms: float
    decode_ms: float
    rest_ms: float
    total_ms: float

    def of(self, stage: Stage) -> float:
        """That stage's ms."""
        return float(getattr(self, f"{stage}_ms"))

    @property
    def encoder_share(self) -> float:
        """The encoder's part of the time up to the first token, 0 to 1."""
        first = self.total_ms - self.decode_ms
        return self.encoder_ms / first if first > 0 else 0.0

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "encoder_share": self.encoder_share}


class Stopwatch:
    """Gives every instant to the innermost stage that is open.

    Args:
        clock: what times them, ms.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.taken: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self.open: list[Stage] = []
        self.began = self.last = 0.0

    def start(self, stage: Stage) -> None:
        """A run begins; ``stage`` is that of what is in no other."""
        self.open = [stage]
        self.began = self.last = self.clock()

    def enter(self, stage: Stage) -> None:
        """A stage begins within the one that is open."""
        self._book()
        self.open.append(stage)

    def leave(self) -> None:
        """The innermost stage ends, and the one around it goes on."""
        self._book()
        self.open.pop()

    def turn_into(self, stage: Stage) -> None:
        """What follows in the innermost stage belongs to another one."""
        self._book()
        self.open[-1] = stage

    def finish(self) -> Stages:
        """The whole run."""
        self._book()
        parts = {f"{stage}_ms": self.taken[stage] for stage in STAGES}
        return Stages(**parts, total_ms=self.last - self.began)

    def _book(self) -> None:
        now = self.clock()
        self.taken[self.open[-1]] += now - self.last
        self.last = now


def measure(model: Any, run: Callable[[], Any], clock: Callable[[], float], *, ours: bool, repeats: int = 3) -> Stages:
    """Times a way of answering, stage by stage.

    Args:
        model: a stock model of a known family, without a pruner on it.
        run: answers once, by the model's own ``generate``.
        clock: what times it, ms, such as a ``Clock``.
        ours: whether what is outside of the model's own functions is Foveate's work (else it is ``rest``).
        repeats: runs, >= 1.

    Returns:
        The run whose total is the median (of an even number the upper one).

    Raises:
        ValueError: ``repeats`` < 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    found = []
    for _ in range(repeats):
        watch = Stopwatch(clock)
        with _watched(model, watch):
            watch.start("selection" if ours else "rest")
            run()
            found.append(watch.finish())
    return sorted(found, key=lambda one: one.total_ms)[len(found) // 2]


@contextmanager
def _watched(model: Any, watch: Stopwatch) -> Iterator[None]:
    """Reads the clock where the model's own functions begin and end, under a pruner as well: it calls what it finds."""
    base = family_for(model).base
    read = False

    def before(*_: Any) -> None:
        nonlocal read
        watch.enter("decode" if read else "prefill")

    def after(*_: Any) -> None:
        nonlocal read
        watch.leave()
        if not read:  # what generate does from here on, it does for the answer
            watch.turn_into("decode")
        read = True

    names = [name for name in ("get_image_features", "get_video_features") if hasattr(base, name)]
    with ExitStack() as stack:
        for owner, name, stage in ((model, "generate", "rest"), *((base, name, "encoder") for name in names)):
            stack.enter_context(_replaced(owner, name, _timed(getattr(owner, name), watch, stage)))  # type: ignore[arg-type]
        note = Recorder.note
        stack.enter_context(_replaced(Recorder, "note", _timed(note, watch, "selection")))
        for hook in (model.register_forward_pre_hook(before), model.register_forward_hook(after)):
            stack.callback(hook.remove)
        yield


def _timed(function: Callable[..., Any], watch: Stopwatch, stage: Stage) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        watch.enter(stage)
        try:
            return function(*args, **kwargs)
        finally:
            watch.leave()

    return timed


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(owner)
    there, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
