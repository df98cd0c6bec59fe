"""Stage 2's pictures: a few new ones a step, and of those drawn before some again, from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from training.data import ahead
from training.parallel import part
from training.presets import Recipe

Drawn = TypeVar("Drawn")
Shown = TypeVar("Shown")

_FILLING = 10_000_000
"""The pictures that fill the memory after a resumption are numbered from here on, so that no other step draws them."""


def replayed(
    preset: Recipe,
    first: int,
    draw: Callable[..., list[Drawn]],
    kind: tuple[Any, ...],
    show: Callable[[list[Drawn]], list[Shown]],
) -> Iterator[tuple[list[Shown], np.random.Generator]]:
    """The batches of stage 2 from a step on, and what decides by chance in that step.

    At the start, and after a resumption, the memory is filled first.

    Args:
        preset: of which stage 2, what is fresh and what is kept in mind count.
        first: the step to go on from.
        draw: makes pictures: ``draw(seed, first, count, *kind)``.
        kind: what ``draw`` takes besides.
        show: what the encoder makes of them.
    """
    stage = preset.language
    filling = min(stage.batch, preset.memory)
    tasks = (
        (
            preset.seed + 100,
            *part(
                _FILLING + step if step < 0 else filling + step * preset.fresh,
                filling if step < first else preset.fresh,
            ),
            *kind,
        )
        for step in range(first - 1, stage.steps)
    )
    memory: list[Shown] = []
    for step, batch in enumerate(ahead(draw, tasks, preset.workers), first - 1):
        fresh = show(batch)
        rng = np.random.default_rng([preset.seed, 2, step + 1])
        more = part(0, stage.batch)[1] - len(fresh)
        again = [memory[i] for i in rng.integers(0, len(memory), more)] if memory else []
        memory = (memory + fresh)[-preset.memory :]
        if step >= first:
            yield fresh + again, rng
