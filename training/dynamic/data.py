"""Training samples of both worlds: drawn by the suites' own code, labelled cell by cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from training.dynamic.grid import CELL, Grid
from training.dynamic.letters import SLOTS
from training.dynamic.words import COLOR_NAMES, NAMES

IGNORE = -100
NOTHING = len(NAMES)
PLACES = 3
"""Digits of the longest number."""
NO_DIGIT = 10
SHOWN = 3
"""At most so many things or texts are told apart in one cell: small text has two lines of two words."""
COVERED = 0.18
OF_FULLEST = 0.4
LEAST_COVERED = 0.004
"""A cell shows what covers the first part of it, or the second part of what it covers of its fullest cell, and at least
the third."""
UNCOVERED = 0.004
"""A cell less covered than this shows background; between the two it is not used."""

NAME_INDEX = {name: number for number, name in enumerate(NAMES)}
COLOR_INDEX = {name: number for number, name in enumerate(COLOR_NAMES)}


@dataclass(frozen=True)
class Region:
    """A thing or a text in a picture.

    Attributes:
        covered: (cells,) how much of each cell it covers, in [0, 1].
        center: the cell of its middle.
        side: square root of its area, cells.
        name: its word, one of ``NAMES``.
        number: what it says if that is a number, of at most ``PLACES`` digits.
        color: of the card, bar or button that it is on, one of ``COLOR_NAMES``.
        keys: of ``NAMES``: what it is the value of, the row's and column's heads, say.
    """

    covered: np.ndarray
    center: int
    side: float
    name: str | None = None
    number: int | None = None
    color: str | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A question, and by the numbers of their regions what must be seen to answer it."""

    text: str
    answer: str
    kind: str
    regions: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """One training picture of C cells.

    Attributes:
        pixels: (rows * CELL, columns * CELL, 3) uint8.
        names: (C, SHOWN) index in ``NAMES`` (or ``NOTHING``) of what the cell shows, most first; ``IGNORE`` where there
            is no more.
        shares: (C, SHOWN) how much of it is of each: their sum is 1, or 0 where nothing is known.
        digits: (C, PLACES) digits of the number that the cell shows most, ones first, ``NO_DIGIT`` in front of it;
            ``IGNORE`` where there is none.
        letters: (C, SLOTS) what its text is spelled with, as ``spell`` tells it; ``IGNORE`` where that is not known.
        keys: (C, SHOWN) index in ``NAMES`` of what the cell's largest region is the value of.
        color: (C,) index in ``COLOR_NAMES`` or ``IGNORE``.
        center: (C,) whether the cell holds the middle of what it shows most.
        side: (C,) that one's side, cells; 0 where there is nothing.
        owner: (C,) number of the region that the cell shows most; -1 for background, -2 where that is not known.
        shows: (regions, C) whether the cell shows the region.
        questions: what can be asked.
    """

    pixels: np.ndarray
    grid: Grid
    names: np.ndarray
    shares: np.ndarray
    digits: np.ndarray
    letters: np.ndarray
    keys: np.ndarray
    color: np.ndarray
    center: np.ndarray
    side: np.ndarray
    owner: np.ndarray
    shows: np.ndarray
    questions: list[Asked]

    stamps: ClassVar[tuple[tuple[int, ...], ...]] = ((),)
    """As of a clip: there is one moment, and no time is written."""

    @property
    def frames(self) -> np.ndarray:
        """(1, rows * CELL, columns * CELL, 3): as of a clip."""
        return self.pixels[None]

    @property
    def cells(self) -> int:
        """How many visual tokens it makes."""
        return self.grid.cells

    def without_pixels(self) -> Picture:
        """The same, for when its tokens are there already."""
        return replace(self, pixels=self.pixels[:0])


def label(
    pixels: np.ndarray,
    grid: Grid,
    regions: list[Region],
    questions: list[Asked],
    letters: np.ndarray | None = None,
) -> Picture:
    """Tells cell by cell what is to be seen."""
    cells = grid.cells
    covered = np.stack([region.covered for region in regions]) if regions else np.zeros((0, cells), np.float32)
    shows = shown_in(covered)
    owner = owners(covered, shows)
    names, shares = _shown(covered, shows, [NAME_INDEX.get(region.name or "") for region in regions])
    background = owner == -1
    names[background, 0], shares[background, 0] = NOTHING, 1
    digits = np.full((cells, PLACES), IGNORE, np.int64)
    keys = np.full((cells, SHOWN), IGNORE, np.int64)
    color = np.full(cells, IGNORE, np.int64)
    center, side = np.zeros(cells, np.float32), np.zeros(cells, np.float32)
    for number, region in enumerate(regions):
        own = owner == number
        side[own] = region.side
        if region.number is not None:
            digits[own] = digits_of(region.number)
        if region.color is not None:
            color[own] = COLOR_INDEX[region.color]
        known = [NAME_INDEX[key] for key in region.keys][:SHOWN]
        keys[np.ix_(own, np.arange(len(known)))] = known
        center[region.center] = max(center[region.center], float(shows[number, region.center]))
    if letters is None:
        letters = np.full((cells, SLOTS), IGNORE, np.int64)
    return Picture(pixels, grid, names, shares, digits, letters, keys, color, center, side, owner, shows, questions)


def shown_in(covered: np.ndarray) -> np.ndarray:
    """(regions, C): which cells show a region, by how much of each it covers."""
    fullest = covered.max(1, initial=0.0)
    least = np.minimum(COVERED, np.maximum(OF_FULLEST * fullest, LEAST_COVERED))
    return np.asarray(covered >= least[:, None])


def owners(covered: np.ndarray, shows: np.ndarray) -> np.ndarray:
    """(C,) number of the region that each cell shows most; -1 for background, -2 where that is not known.

    Args:
        covered: (regions, C) how much of each cell a region covers.
        shows: (regions, C) see ``shown_in``.
    """
    owner = np.where(covered.max(0, initial=0.0) < UNCOVERED, -1, -2)
    if not len(covered):
        return owner
    return np.where(shows.any(0), np.where(shows, covered, 0).argmax(0), owner)


def digits_of(number: int) -> list[int]:
    """A number's digits, ones first, as many as ``PLACES``."""
    written = [int(digit) for digit in reversed(str(number))]
    return written + [NO_DIGIT] * (PLACES - len(written))


def _shown(covered: np.ndarray, shows: np.ndarray, index: list[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """What each cell shows, most first, and their shares: (C, SHOWN) each. ``index`` by region."""
    cells = covered.shape[1]
    what, share = np.full((cells, SHOWN), IGNORE, np.int64), np.zeros((cells, SHOWN), np.float32)
    known = [number for number, one in enumerate(index) if one is not None]
    if not known:
        return what, share
    weight = np.where(shows[known], covered[known], 0)
    order = np.argsort(-weight, axis=0, kind="stable")[:SHOWN]
    share[:, : len(order)] = np.take_along_axis(weight, order, 0).T
    what[:, : len(order)] = np.asarray([index[number] for number in known])[order].T
    what[share == 0] = IGNORE
    total = share.sum(1, keepdims=True)
    return what, np.divide(share, total, out=share, where=total > 0)


def side_in_cells(area: float, grid: Grid) -> float:
    """The side of a square of ``area`` square units, in cells."""
    return float(np.sqrt(area / (grid.width * grid.height) * grid.cells)) if area > 0 else 0.0


__all__ = ["CELL", "IGNORE", "NOTHING", "SHOWN", "Asked", "Picture", "Region", "label", "side_in_cells"]
