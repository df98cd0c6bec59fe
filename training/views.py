"""A picture as the model sees it: LLaVA-NeXT's views, and what lies under each patch of them.

The geometry is that of the stock ``LlavaNextImageProcessor`` (a test compares the two): the base view is the whole
picture squashed to a square, the crops are tiles of the picture resized into the best canvas and padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from foveate.evaluation.scenes.artwork import SPRITE, opacity
from foveate.evaluation.scenes.composing import Scene, Thing

VIEW = 112
PATCH = 14
GRID = VIEW // PATCH
TOKENS = GRID * GRID

Canvas = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Layout:
    """Where a picture of ``width`` x ``height`` pixels lies in its views.

    Attributes:
        canvas: (height, width) of the canvas that is cut into crops.
        resized: (height, width) of the picture in it.
        offset: (y, x) of the picture in it.
    """

    width: int
    height: int
    canvas: Canvas
    resized: tuple[int, int]
    offset: tuple[int, int]

    @property
    def crops(self) -> tuple[int, int]:
        """Rows and columns of crops."""
        return self.canvas[0] // VIEW, self.canvas[1] // VIEW

    @property
    def views(self) -> int:
        """How many views there are, the base view among them."""
        return 1 + self.crops[0] * self.crops[1]


def lay_out(width: int, height: int, canvases: Sequence[Canvas]) -> Layout:
    """Choose the canvas that shows most of the picture's pixels, then the one that wastes least."""
    best: tuple[int, int] | None = None
    canvas = canvases[0]
    for candidate in canvases:
        scale = min(candidate[1] / width, candidate[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        rank = shown, shown - candidate[0] * candidate[1]
        if best is None or rank > best:
            best, canvas = rank, candidate
    across, down = canvas[1] / width, canvas[0] / height
    if across < down:
        resized = min(math.ceil(height * across), canvas[0]), canvas[1]
    else:
        resized = canvas[0], min(math.ceil(width * down), canvas[1])
    return Layout(width, height, canvas, resized, ((canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2))


def views(picture: Image.Image, layout: Layout) -> np.ndarray:
    """The views' pixels, (views, VIEW, VIEW, 3), uint8, base view first."""
    base = picture.resize((VIEW, VIEW), Image.Resampling.BICUBIC)
    canvas = np.zeros((*layout.canvas, 3), np.uint8)
    (height, width), (y, x) = layout.resized, layout.offset
    canvas[y : y + height, x : x + width] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = layout.crops
    tiles = canvas.reshape(rows, VIEW, columns, VIEW, 3).transpose(0, 2, 1, 3, 4).reshape(-1, VIEW, VIEW, 3)
    return np.concatenate([np.asarray(base)[None], tiles])


def packed_order(layout: Layout) -> np.ndarray:
    """Which patch each visual token of the prompt is: index in (views, GRID, GRID), -1 for ``image_newline``.

    The base view comes first, then the rows of the canvas without the padding, a newline after each row.
    """
    rows, columns = layout.crops
    grid = TOKENS + np.arange(rows * columns * TOKENS).reshape(rows, columns, GRID, GRID)
    grid = grid.transpose(0, 2, 1, 3).reshape(rows * GRID, columns * GRID)
    height, width = grid.shape
    if layout.width / layout.height > width / height:
        pad = (height - int(round(layout.height * (width / layout.width), 7))) // 2
        grid = grid[pad : height - pad]
    else:
        pad = (width - int(round(layout.width * (height / layout.height), 7))) // 2
        grid = grid[:, pad : width - pad]
    lines = np.concatenate([grid, np.full((len(grid), 1), -1)], 1)
    return np.concatenate([np.arange(TOKENS), lines.ravel()])


def coverage(scene: Scene, layout: Layout) -> np.ndarray:
    """How much of each patch each thing covers: (things, views * TOKENS), in [0, 1]."""
    (x_base, x_grid), (y_base, y_grid) = _edges(scene, layout)
    shares = [_spread((cover(thing, x_base, y_base), cover(thing, x_grid, y_grid)), layout) for thing in scene.things]
    return np.stack(shares) if shares else np.zeros((0, layout.views * TOKENS), np.float32)


def centers(scene: Scene, layout: Layout) -> np.ndarray:
    """Which patches hold the middle of each thing, one in the base view, one in the crops: (things, patches), bool."""
    (x_base, x_grid), (y_base, y_grid) = _edges(scene, layout)
    held = []
    for thing in scene.things:
        x, y = thing.center
        pair = []
        for xs, ys in ((x_base, y_base), (x_grid, y_grid)):
            inside = np.zeros((len(ys) - 1, len(xs) - 1), bool)
            inside[np.searchsorted(ys, y) - 1, np.searchsorted(xs, x) - 1] = True
            pair.append(inside)
        held.append(_spread((pair[0], pair[1]), layout))
    return np.stack(held) if held else np.zeros((0, layout.views * TOKENS), bool)


def _edges(scene: Scene, layout: Layout) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Patch edges in units, across and down, each for the base view and for the canvas."""
    pairs = []
    for axis, extent in ((1, scene.width), (0, scene.height)):
        base = np.linspace(0, extent, GRID + 1)
        pixels = np.arange(0, layout.canvas[axis] + 1, PATCH) - layout.offset[axis]
        pairs.append((base, pixels / layout.resized[axis] * extent))
    return pairs[0], pairs[1]


def _spread(pair: tuple[np.ndarray, np.ndarray], layout: Layout) -> np.ndarray:
    """Base view and canvas, as (views * TOKENS,)."""
    rows, columns = layout.crops
    grid = pair[1].reshape(rows, GRID, columns, GRID).transpose(0, 2, 1, 3)
    return np.concatenate([pair[0].ravel(), grid.ravel()])


def cover(thing: Thing, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """How much of each cell between edges ``xs`` and ``ys`` (units) a thing covers: (rows, columns), in [0, 1]."""
    x0, y0, x1, y1 = thing.box
    solid = thing.color is not None or thing.number is not None
    table = _summed(None if solid else thing.name)
    u = np.clip((xs - x0) / (x1 - x0), 0, 1) * SPRITE
    v = np.clip((ys - y0) / (y1 - y0), 0, 1) * SPRITE
    corner = _between(_between(table, v).T, u).T
    covered = np.diff(np.diff(corner, axis=0), axis=1) * ((x1 - x0) * (y1 - y0) / SPRITE**2)
    return (covered / np.outer(np.diff(ys), np.diff(xs))).astype(np.float32)


@cache
def _summed(name: str | None) -> np.ndarray:
    """Summed-area table of what a sprite covers (a full square without a name), (SPRITE + 1, SPRITE + 1)."""
    shape = np.ones((SPRITE, SPRITE)) if name is None else opacity("noto", name)
    table = np.zeros((SPRITE + 1, SPRITE + 1))
    table[1:, 1:] = shape.cumsum(0).cumsum(1)
    return table


def _between(table: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows of a table at fractional indices."""
    low = np.minimum(at.astype(int), len(table) - 2)
    part = (at - low)[:, None]
    return table[low] * (1 - part) + table[low + 1] * part
