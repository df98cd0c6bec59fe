"""What happens in a clip: a stage in units and seconds, and actors on it, before anything is drawn.

The camera and the background stand still. Sizes are those of the scenes: an actor is small (36 to 52 units) or large
(75 to 110), on a stage of about 224 x 168 units. Two actors share no place, not even at different times, so that a
place says who is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from foveate.evaluation.scenes.composing import SMALL, drawn_plane, size_of, with_card
from foveate.evaluation.scenes.world import CLASSES, COLORS

LARGE = (75.0, 110.0)
#: Stages (width, height) in units and how often each is drawn.
STAGES: tuple[tuple[tuple[int, int], float], ...] = (((224, 168), 0.6), ((224, 224), 0.25), ((168, 224), 0.15))
RATE = 4
"""Frames in a second."""
SECONDS = (5, 9)
"""Least and most length of a clip, whole seconds."""

Part = Literal["still", "visitor", "mover", "turner", "blinker"]

_TRIES = 60
_FAR = (0.3, 0.6)
"""How far a mover goes, as a part of the stage's side."""

Box = tuple[float, float, float, float]
Spell = tuple[float, float]
"""From when until when, seconds; a clip's frames tell quarters of a second."""


@dataclass(frozen=True)
class Actor:
    """One thing on the stage.

    Attributes:
        name: what it is; no two have the same.
        part: what it does.
        side: of the thing without its card, units.
        corner: (x, y) of its upper left corner, its card included, before it moves.
        spells: when it is there.
        color: of its card; None: it has none.
        to: of a mover, where its corner goes.
        when: of a mover and a turner, when it moves, or from when to the end its card has another colour.
        turned: of a turner, that colour.
    """

    name: str
    part: Part
    side: float
    corner: tuple[float, float]
    spells: tuple[Spell, ...]
    color: str | None = None
    to: tuple[float, float] | None = None
    when: Spell | None = None
    turned: str | None = None

    @property
    def size(self) -> str:
        """``"small"`` or ``"large"``."""
        return size_of(self.side)

    @property
    def extent(self) -> float:
        """Its side, its card included, units."""
        return with_card(self.side, self.color)

    def is_there(self, time: float) -> bool:
        """Whether it is on the stage."""
        return any(start <= time < end for start, end in self.spells)

    def box(self, time: float) -> Box:
        """Where it is, or would be, units."""
        x, y = self.corner
        if self.to is not None and self.when is not None:
            start, end = self.when
            done = min(1.0, max(0.0, (time - start) / (end - start)))
            x, y = x + done * (self.to[0] - x), y + done * (self.to[1] - y)
        return x, y, x + self.extent, y + self.extent

    def color_at(self, time: float) -> str | None:
        """The colour of its card."""
        return self.turned if self.turned is not None and self.when is not None and time >= self.when[0] else self.color

    @property
    def swept(self) -> Box:
        """All that it ever covers."""
        (a, b, c, d), (e, f, g, h) = self.box(0.0), self.box(1e9)
        return min(a, e), min(b, f), max(c, g), max(d, h)


@dataclass(frozen=True)
class Play:
    """What happens in a clip of ``seconds``: its stage in units, and its actors, those that do something first."""

    width: int
    height: int
    seconds: int
    clutter: bool
    actors: tuple[Actor, ...]


def compose(rng: np.random.Generator, clutter: bool) -> Play:
    """A play: one or two things happen among a few if sparse, up to four among as many as find a place if cluttered."""
    width, height = drawn_plane(rng, STAGES)
    seconds = int(rng.integers(SECONDS[0], SECONDS[1] + 1))
    busy: tuple[Part, ...] = ("visitor", "mover", "turner", "blinker", "visitor")
    parts = [busy[i] for i in rng.permutation(len(busy))][: int(rng.integers(3, 5) if clutter else rng.integers(1, 3))]
    parts += ["still"] * int(rng.integers(4, 9) if clutter else rng.integers(1, 3))
    names = [CLASSES[i] for i in rng.choice(len(CLASSES), len(parts), replace=False)]
    actors: list[Actor] = []
    for name, part in zip(names, parts, strict=True):
        large = not clutter and not any(actor.size == "large" for actor in actors) and rng.random() < 0.4
        made = _cast(rng, name, part, float(rng.uniform(*(LARGE if large else SMALL))), seconds)
        placed = _place(rng, made, width, height, actors)
        if placed is not None:
            actors.append(placed)
    return Play(width, height, seconds, clutter, tuple(actors))


def _cast(rng: np.random.Generator, name: str, part: Part, side: float, seconds: int) -> Actor:
    """An actor that has no place yet."""
    whole = (0.0, float(seconds))
    color = str(rng.choice(list(COLORS))) if part == "turner" or rng.random() < 0.4 else None
    actor = Actor(name, part, side, (0.0, 0.0), (whole,), color)
    if part == "visitor":
        # In the first or in the second half, never so near the middle that one could not say.
        half = int(rng.integers(2))
        start = _quarter(rng.uniform(0.1, 0.38) + 0.5 * half, seconds)
        stays = float(rng.integers(4, 9)) / RATE
        return replace(actor, spells=((start, min(start + stays, float(seconds))),))
    if part == "blinker":
        times = int(rng.integers(1, 5))
        slot = seconds / times
        starts = [_quarter((number + rng.uniform(0.1, 0.3)) / times, seconds) for number in range(times)]
        stays = max(2, round(0.4 * slot * RATE)) / RATE
        return replace(actor, spells=tuple((start, min(start + stays, float(seconds))) for start in starts))
    if part == "mover":
        start = _quarter(rng.uniform(0.1, 0.5), seconds)
        return replace(actor, when=(start, min(start + float(rng.integers(4, 9)) / RATE, float(seconds))))
    if part == "turner":
        others = [one for one in COLORS if one != color]
        start = _quarter(rng.uniform(0.25, 0.75), seconds)
        return replace(actor, when=(start, float(seconds)), turned=str(rng.choice(others)))
    return actor


def _quarter(part: float, seconds: int) -> float:
    """A time of which frames can tell, at a part of the clip."""
    return round(part * seconds * RATE) / RATE


def _place(rng: np.random.Generator, actor: Actor, width: int, height: int, actors: list[Actor]) -> Actor | None:
    """The actor at a free place, with a way to go if it is to move; None where none was found."""
    room = width - actor.extent, height - actor.extent
    for _ in range(_TRIES):
        corner = float(rng.uniform(0, room[0])), float(rng.uniform(0, room[1]))
        placed = replace(actor, corner=corner)
        if actor.part == "mover":
            axis = int(rng.integers(2))
            way = float(rng.uniform(*_FAR)) * (width, height)[axis] * (1 if rng.random() < 0.5 else -1)
            to = (corner[0] + way, corner[1]) if axis == 0 else (corner[0], corner[1] + way)
            if not 0 <= to[axis] <= room[axis]:
                continue
            placed = replace(placed, to=to)
        if not any(_meet(placed.swept, other.swept) for other in actors):
            return placed
    return None


def _meet(one: Box, other: Box) -> bool:
    return min(one[2], other[2]) > max(one[0], other[0]) and min(one[3], other[3]) > max(one[1], other[1])
