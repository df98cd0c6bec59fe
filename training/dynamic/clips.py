"""Clips for stage 2: drawn by the suite's own code, two frames to a moment, as the stock processor sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.evaluation.clips.composing import RATE, Actor, Spell
from foveate.evaluation.clips.files import Sample, make_sample
from foveate.videos import sample_times
from training.dynamic.data import Asked, owners, shown_in
from training.dynamic.grid import TEMPORAL, Grid, covered, lay_out, resized
from training.dynamic.words import encode

SCALES = (0.5, 0.7, 1.0)
"""Parts of their size that clips are seen at."""


@dataclass(frozen=True)
class Clip:
    """One training clip of M moments of C cells each; its visual tokens are M * C, moment by moment.

    Attributes:
        frames: (M, rows * CELL, columns * CELL, 3) float16, the mean of a moment's two frames, which is all that the
            patch embedding sees of them while its two halves are the same.
        grid: of one frame.
        stamps: by moment, what is written in front of it.
        owner, shows, questions: as of ``Picture``, over all moments.
    """

    frames: np.ndarray
    grid: Grid
    stamps: tuple[tuple[int, ...], ...]
    owner: np.ndarray
    shows: np.ndarray
    questions: list[Asked]

    @property
    def cells(self) -> int:
        """How many visual tokens it makes."""
        return len(self.stamps) * self.grid.cells

    def without_pixels(self) -> Clip:
        """The same, for when its tokens are there already."""
        return replace(self, frames=self.frames[:0])


def make_clip(seed: int, index: int, *, clutter: bool, scale: float) -> Clip:
    """Training clip number ``index``, seen at ``scale`` of its size."""
    sample = make_sample("train", seed, index, clutter=clutter)
    play = sample.play
    times = sample_times(play.seconds)
    size = tuple(max(1, round(scale * side)) for side in sample.frames[0].size)
    grid = lay_out(size, (play.width, play.height))
    seen = np.stack([resized(sample.frames[int(time * RATE)].resize(size), grid) for time in times])
    moments = list(zip(times[::TEMPORAL], times[1::TEMPORAL], strict=True))
    halves = seen.reshape(len(moments), TEMPORAL, *seen.shape[1:]).astype(np.float32)
    stamps = tuple(tuple(encode(f"<{(first + second) / 2:.1f} seconds>")) for first, second in moments)
    regions: list[np.ndarray] = []
    asked = []
    for question in sample.questions:
        spells = [(actor, spell) for actor, whole in question.seen for spell in _told_by(actor, whole)]
        asked.append(
            Asked(
                question.text, question.answers[0], question.kind, tuple(len(regions) + n for n in range(len(spells)))
            )
        )
        regions += [_covered(actor, spell, moments, grid) for actor, spell in spells]
    shows = shown_in(_stacked(regions, len(moments) * grid.cells))
    frames = halves.mean(1).astype(np.float16)
    return Clip(frames, grid, stamps, _owners(sample, moments, grid), shows, asked)


def _told_by(actor: Actor, spell: Spell) -> list[Spell]:
    """What must be seen of an actor: of one that moves, where it began and where it ended."""
    if actor.part == "mover" and spell == actor.when:
        middle = (spell[0] + spell[1]) / 2
        return [(spell[0], middle), (middle, spell[1])]
    return [spell]


def _covered(actor: Actor, spell: Spell, moments: Sequence[tuple[float, float]], grid: Grid) -> np.ndarray:
    """How much of every cell of every moment an actor covers during a spell, (M * C,)."""
    found = [
        [
            covered(actor.box(time), grid)
            if spell[0] <= time < spell[1] and actor.is_there(time)
            else np.zeros(grid.cells, np.float32)
            for time in moment
        ]
        for moment in moments
    ]
    return np.asarray(found).mean(1).ravel()


def _stacked(parts: Sequence[np.ndarray], cells: int) -> np.ndarray:
    """(parts, cells), also of none."""
    return np.stack(parts) if parts else np.zeros((0, cells), np.float32)


def _owners(sample: Sample, moments: Sequence[tuple[float, float]], grid: Grid) -> np.ndarray:
    """(M * C,) number of what a cell shows most: an actor in each state that it is in; -1 background, -2 not known."""
    states = [_covered(actor, spell, moments, grid) for actor in sample.play.actors for spell in _states(actor, sample)]
    amount = _stacked(states, len(moments) * grid.cells)
    return owners(amount, shown_in(amount))


def _states(actor: Actor, sample: Sample) -> list[Spell]:
    end = float(sample.play.seconds)
    if actor.when is None:
        return list(actor.spells)
    start, until = actor.when
    if actor.part == "turner":
        return [(0.0, start), (start, end)]
    middle = (start + until) / 2
    return [(0.0, start), (start, middle), (middle, until), (until, end)]
