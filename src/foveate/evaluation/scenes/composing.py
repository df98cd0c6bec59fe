"""Where things go: a scene is composed in *units* before anything is drawn.

A scene's plane measures about 224 x 224 units, the resolution at which small vision-language models look at a
picture. A thing is small (36 to 52 units) or large (75 to 130), never in between, so that "small" and "large" mean what
they say. A picture is the plane times a zoom, so the same scene exists at many pixel sizes. Places and sizes are
continuous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.scenes.world import CLASSES, COLORS, SIGN

SMALL = (36.0, 52.0)
LARGE = (75.0, 130.0)

#: Planes (width, height) in units and how often each is drawn.
PLANES: tuple[tuple[tuple[int, int], float], ...] = (
    ((224, 224), 0.25),
    ((224, 168), 0.27),
    ((168, 224), 0.15),
    ((224, 150), 0.10),
    ((150, 224), 0.06),
    ((224, 112), 0.06),
    ((112, 224), 0.04),
    ((336, 112), 0.04),
    ((112, 336), 0.03),
)
ZOOM = (1.2, 2.8)

#: A card stands out of its thing by this part of the thing's side, on each side.
CARD_MARGIN = 0.1
#: Two boxes may share at most this part of the smaller one.
MAX_OVERLAP = 0.06
MAX_GROUP = 4
#: How often a group has 1, 2, 3, 4 members before places are sought: larger groups lose more of them.
GROUPS = (0.2, 0.2, 0.25, 0.35)
_TRIES = 60


def size_of(side: float) -> str:
    """What a thing of a side in units is called: ``"small"`` or ``"large"``."""
    return "small" if side <= SMALL[1] else "large"


def with_card(side: float, color: str | None) -> float:
    """The side of a thing, units or pixels, its card of a colour included; None: it has none."""
    return side * (1 + 2 * CARD_MARGIN * (color is not None))


def margin_of(side: int) -> int:
    """By how many pixels a card of a side in pixels stands out of its thing, on each side."""
    return round(side * CARD_MARGIN / (1 + 2 * CARD_MARGIN))


def drawn_plane(rng: np.random.Generator, planes: Sequence[tuple[tuple[int, int], float]]) -> tuple[int, int]:
    """One of some (width, height), as often as the part beside it says."""
    sizes, weights = zip(*planes, strict=True)
    width, height = sizes[rng.choice(len(sizes), p=weights)]
    return width, height


@dataclass(frozen=True)
class Thing:
    """One thing in a scene. ``box`` is what it covers, its card included, in units: (x0, y0, x1, y1)."""

    name: str
    side: float
    box: tuple[float, float, float, float]
    color: str | None = None
    number: int | None = None

    @property
    def size(self) -> str:
        """``"small"`` or ``"large"``."""
        return size_of(self.side)

    @property
    def center(self) -> tuple[float, float]:
        """Its middle, units."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """A composed scene: a plane in units, and its things, the largest first."""

    width: int
    height: int
    clutter: bool
    things: tuple[Thing, ...]


def compose(rng: np.random.Generator, clutter: bool) -> Scene:
    """Compose a scene: a few things if sparse, as many as there is room for if cluttered."""
    width, height = drawn_plane(rng, PLANES)
    sides = _sides(rng, width, height, clutter)
    names = _names(rng, sides)
    things: list[Thing] = []
    for name, side in zip(names, sides, strict=True):
        number = int(rng.integers(10)) if name == SIGN else None
        color = str(rng.choice(list(COLORS))) if name != SIGN and rng.random() < 0.5 else None
        box = _place(rng, width, height, with_card(side, color), things)
        if box is not None:
            things.append(Thing(name, side, box, color, number))
    return Scene(width, height, clutter, tuple(things))


def _sides(rng: np.random.Generator, width: int, height: int, clutter: bool) -> list[float]:
    room = min(LARGE[1], 0.8 * min(width, height))
    area = width * height
    if clutter:
        large = int(rng.random() < 0.5)
        sides = list(rng.uniform(LARGE[0], max(LARGE[0] + 5, 0.8 * room), large))
        # More than can be placed: the scene is full when no place is found any more.
        small = round((area - sum(side**2 for side in sides)) * rng.uniform(0.6, 0.8) / 2000)
        sides += list(rng.uniform(SMALL[0], 0.5 * sum(SMALL), small))
    else:
        large = int(rng.choice([1, 1, 1, 2, 0]))
        sides = [rng.uniform(LARGE[0], room)] if large else []
        if large == 2:
            sides.append(rng.uniform(LARGE[0], max(LARGE[0] + 1, room / 1.3)))
        small = int(rng.integers(2, 6)) if area > 30_000 else int(rng.integers(1, 4))
        sides += list(rng.uniform(*SMALL, small))
    return sorted(sides, reverse=True)


def _names(rng: np.random.Generator, sides: list[float]) -> list[str]:
    """Distinct names, but for one group of small things of the same name, and often a sign."""
    names = [CLASSES[i] for i in rng.choice(len(CLASSES), len(sides), replace=False)]
    small = [i for i, side in enumerate(sides) if side <= SMALL[1]]
    rng.shuffle(small)
    group = int(rng.choice(range(1, MAX_GROUP + 1), p=GROUPS))
    for i in small[1:group]:
        names[i] = names[small[0]]
    if rng.random() < 0.6:
        # In one of four, the sign may be a large thing, if there is one beside the group.
        others = [i for i in range(len(sides)) if i not in small[:group]]
        large = [i for i in others if sides[i] > SMALL[1]]
        choice = large if large and rng.random() < 0.25 else [i for i in others if i not in large]
        if choice:
            names[choice[rng.integers(len(choice))]] = SIGN
    return names


def _place(
    rng: np.random.Generator, width: int, height: int, side: float, things: list[Thing]
) -> tuple[float, float, float, float] | None:
    """A free place for a square of ``side`` units, or None after many tries."""
    if side > min(width, height):
        return None
    for _ in range(_TRIES):
        x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
        if all(_shared(x, y, side, thing.box) <= MAX_OVERLAP for thing in things):
            return x, y, x + side, y + side
    return None


def _shared(x: float, y: float, side: float, box: tuple[float, float, float, float]) -> float:
    across = min(x + side, box[2]) - max(x, box[0])
    down = min(y + side, box[3]) - max(y, box[1])
    return max(across, 0) * max(down, 0) / min(side, box[2] - box[0]) ** 2
