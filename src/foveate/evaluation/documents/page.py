"""Pages: one document, or several beside each other, somewhere in a picture of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.evaluation.documents.panel import LARGE, SMALL, Box, Color, Look, Panel, draw, luminance
from foveate.evaluation.documents.papers import PAPERS, Ask, Paper, Sign
from foveate.evaluation.documents.words import Supply
from foveate.evaluation.scenes.world import COLORS
from foveate.evaluation.textures import add_grain, background

#: Least and most pixels of a picture's side.
SIDES = (112, 672)

_PAPERS: tuple[Color, ...] = ((255, 255, 255), (250, 246, 235), (238, 243, 250), (252, 238, 196), (228, 240, 228))
_INKS: tuple[Color, ...] = ((12, 12, 12), (20, 30, 80), (75, 20, 20), (20, 60, 40))
_DARK: tuple[Color, ...] = ((26, 28, 36), (20, 42, 92), (8, 72, 50), (112, 20, 26))
_LIGHT_INKS: tuple[Color, ...] = ((248, 248, 248), (250, 224, 90))
#: How much lighter or darker than the paper a bar is, at least, out of 255.
_CONTRAST = 55

#: Of cluttered pictures, the part that has one document with many entries; the others have two to four documents.
_DENSE = 0.3
_TRIES = 400
#: There are documents that fit no smaller page.
_LEAST_MOST = 224


@dataclass(frozen=True)
class Page:
    """A composed page: the documents' content, and their panels with the pixel where each begins."""

    width: int
    height: int
    clutter: bool
    papers: tuple[Paper, ...]
    panels: tuple[tuple[Panel, int, int], ...]
    sheet: Color | None
    """The colour of the whole picture where one document fills it, else None: something is behind the documents."""
    seed: int
    """Of the background and the grain."""

    def draw(self, without: frozenset[tuple[int, str]] = frozenset()) -> Image.Image:
        """The picture; ``without`` the marks of ``(number of the panel, key)``, all else being the same."""
        rng = np.random.default_rng(self.seed)
        size = self.width, self.height
        picture = background(rng, *size) if self.sheet is None else Image.new("RGB", size, self.sheet)
        draw(picture, list(self.panels), without)
        return add_grain(picture, rng) if rng.random() < 0.25 else picture

    def box(self, number: int, key: str) -> Box:
        """What the marks of a key on a panel cover, in pixels of the picture."""
        panel, x, y = self.panels[number]
        x0, y0, x1, y1 = panel.box(key)
        return x0 + x, y0 + y, x1 + x, y1 + y

    def size(self, number: int, ask: Ask) -> str:
        """Whether what must be read for a question is small or large."""
        return "small" if self.panels[number][0].smallest(ask.keys) <= SMALL[1] else "large"


def compose(rng: np.random.Generator, clutter: bool, first: int, families: Sequence[str], most: int = SIDES[1]) -> Page:
    """Compose a page.

    Args:
        rng: decides everything.
        clutter: one document with few entries, or several documents, or one with many entries.
        first: which kind of document is there for certain, its place in ``PAPERS``.
        families: of fonts.
        most: of pixels a side, at least 224.

    Raises:
        ValueError: ``most`` is out of range.
    """
    if not _LEAST_MOST <= most <= SIDES[1]:
        raise ValueError(f"pages have sides of at most {_LEAST_MOST} to {SIDES[1]} pixels, got {most}")
    for attempt in range(_TRIES):
        page = _attempt(rng, clutter, first, families, most, small=attempt >= _TRIES // 4)
        if page is not None:
            return page
    raise RuntimeError(f"no page of at most {most} pixels a side was found")


def _attempt(
    rng: np.random.Generator, clutter: bool, first: int, families: Sequence[str], most: int, small: bool
) -> Page | None:
    """A page, or None when what was drawn does not fit. With ``small``, everything is small, and little of it there."""
    dense = clutter and bool(rng.random() < _DENSE)
    kinds = [PAPERS[first]]
    if clutter and not dense:
        others = [i for i in range(len(PAPERS)) if i != first]
        kinds += [PAPERS[i] for i in rng.choice(others, 1 if small else int(rng.integers(1, 4)), replace=False)]
    supply = Supply(rng)
    papers, panels = [], []
    for kind in kinds:
        low, high = kind.dense if dense else kind.sparse
        paper = kind.compose(supply, low if small else int(rng.integers(low, high + 1)))
        least, largest = SMALL if rng.random() < (0.65 if clutter else 0.5) else LARGE
        look = random_look(rng, kind, families, SMALL[0] if small else int(rng.integers(least, largest + 1)))
        panel = Panel(look, rng)
        paper.lay(panel)
        papers.append(paper)
        panels.append(panel)
    alone = len(panels) == 1
    fills = alone and bool(rng.random() < 0.5)
    order = [int(i) for i in rng.permutation(len(panels))]
    found = _arrange(rng, [(panels[i].width, panels[i].height) for i in order], most)
    if found is None:
        return None
    places, (wide, high) = found
    width, height = (_side(rng, extent + (0 if fills else 8), most) for extent in (wide, high))
    if width is None or height is None:
        return None
    x, y = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
    placed = {i: (panels[i], x + dx, y + dy) for i, (dx, dy) in zip(order, places, strict=True)}
    put = tuple(placed[i] for i in range(len(panels)))
    sheet = panels[0].look.paper if fills else None
    return Page(width, height, clutter, tuple(papers), put, sheet, int(rng.integers(2**31)))


def _side(rng: np.random.Generator, least: int, most: int) -> int | None:
    """A side of at least so many pixels, more often hardly longer than much longer."""
    least = max(least, SIDES[0])
    return None if least > most else least + int((most - least) * 0.7 * rng.random() ** 3)


def _arrange(
    rng: np.random.Generator, sizes: list[tuple[int, int]], most: int
) -> tuple[list[tuple[int, int]], tuple[int, int]] | None:
    """Places for panels in one or two rows, and the extent of all; None when they do not fit."""
    gap = int(rng.integers(6, 24))
    for cut in map(int, rng.permutation(len(sizes))):
        shelves = [shelf for shelf in (sizes[:cut], sizes[cut:]) if shelf]
        upright = bool(rng.random() < 0.5)  # shelves are columns, and all is worked out with the axes swapped
        places: list[tuple[int, int]] = []
        across, down = 0, 0
        for shelf in shelves:
            deep = max(size[0 if upright else 1] for size in shelf)
            along = 0
            down += gap if down else 0
            for size in shelf:
                length, depth = size[::-1] if upright else size
                slack = down + int(rng.integers(0, deep - depth + 1))
                places.append((slack, along) if upright else (along, slack))
                along += length + gap
            across, down = max(across, along - gap), down + deep
        extent = (down, across) if upright else (across, down)
        if max(extent) + 8 <= most:
            return places, extent
    return None


def random_look(rng: np.random.Generator, kind: type[Paper], families: Sequence[str], size: int) -> Look:
    """How a kind of document may be lettered, at a size in pixels."""

    def of(colors: Sequence[Color]) -> Color:
        return colors[int(rng.integers(len(colors)))]

    sign = kind is Sign
    dark = bool(rng.random() < (0.6 if sign else 0.15))
    paper, ink = (of(_DARK), of(_LIGHT_INKS)) if dark else (of(_PAPERS), of(_INKS))
    if sign and not dark:
        paper, ink = (250, 214, 50), (12, 12, 12)
    accents = [color for color in COLORS.values() if abs(luminance(color) - luminance(paper)) >= _CONTRAST]
    red, green, blue = (round(0.68 * a + 0.32 * b) for a, b in zip(paper, ink, strict=True))
    case = str(rng.choice(["title", "lower", "upper"], p=[0.3, 0.2, 0.5] if sign else [0.55, 0.25, 0.2]))
    bold = bool(rng.random() < (0.5 if sign else 0.2))
    return Look(
        families[int(rng.integers(len(families)))], bold, size, case, ink, paper, (red, green, blue), of(accents)
    )
