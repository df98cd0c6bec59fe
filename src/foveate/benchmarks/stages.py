"""Where the time of an answer goes: encoder, selection, prefill, decoding; every instant belongs to one of them.

The clock is read, and with it an accelerator waited for, wherever one stage ends and another begins. That costs a
little, so it is done in runs of their own, not in those that the times to the first token come from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from foveate.attention import Recorder
from foveate.models import family_for
from foveate.stopwatch import Stage, Stages, Stopwatch


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
