"""Where the time of a call goes: every instant belongs to the innermost stage that is open.

Encoding, choosing and the model's own call say here where they begin and end. Without somebody who measures that is
one look at a context variable, which no other thread or task shares; the clock, which may wait for an accelerator, is
read only for who measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import LogitsProcessor

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

    @property
    def stage(self) -> Stage:
        """The innermost one that is open."""
        return self.open[-1]

    def finish(self) -> Stages:
        """The whole run."""
        self._book()
        parts = {f"{stage}_ms": self.taken[stage] for stage in STAGES}
        return Stages(**parts, total_ms=self.last - self.began)

    def _book(self) -> None:
        now = self.clock()
        self.taken[self.open[-1]] += now - self.last
        self.last = now


_watch: ContextVar[Stopwatch | None] = ContextVar("foveate_watch", default=None)


@contextmanager
def timing(watch: Stopwatch) -> Iterator[None]:
    """Times what this thread or task calls within a block; what is in no stage is ``rest``."""
    token = _watch.set(watch)
    watch.start("rest")
    try:
        yield
    finally:
        _watch.reset(token)
        watch.finish()


def stage(name: Stage) -> AbstractContextManager[None]:
    """A stage of whatever call is being timed here; nothing where none is."""
    watch = _watch.get()
    return _NONE if watch is None else _open(watch, name)


_NONE = nullcontext()


@contextmanager
def _open(watch: Stopwatch, name: Stage) -> Iterator[None]:
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()


class FirstToken(LogitsProcessor):
    """Changes nothing: once there are logits for the first token of an answer, the prefill is over.

    For ``generate``, whose forwards are the model's own. With several calls of it, each has its prefill.

    Args:
        watch: what times the call.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        if self.watch.stage == "prefill":
            self.watch.turn_into("decode")
        return scores
