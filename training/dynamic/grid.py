"""A picture as the dynamic model sees it: resized to whole cells, and cut into patches. A cell is a visual token.

The geometry is that of the stock ``Qwen2VLImageProcessor`` (a test compares the two).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PATCH = 14
MERGE = 2
CELL = MERGE * PATCH
TEMPORAL = 2
"""Frames in a patch. A picture is its own second frame."""

LEAST, MOST = 112 * 112, 672 * 672
"""Pixels of the smallest and the largest picture that is seen at its own resolution."""

MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Grid:
    """Cells of a picture.

    Attributes:
        width, height: of the picture, in the units that it was composed in.
        rows, columns: of cells.
    """

    width: float
    height: float
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return self.rows * self.columns

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Where cells end across (columns + 1) and down (rows + 1), in units."""
        return np.linspace(0, self.width, self.columns + 1), np.linspace(0, self.height, self.rows + 1)

    def at(self, x: float, y: float) -> int:
        """The cell that holds a point in units."""
        column = min(int(x / self.width * self.columns), self.columns - 1)
        return min(int(y / self.height * self.rows), self.rows - 1) * self.columns + column

    def places(self) -> np.ndarray:
        """(cells, 2): row and column of every cell."""
        return np.stack(np.divmod(np.arange(self.cells), self.columns), 1)


def lay_out(size: tuple[int, int], units: tuple[float, float] | None = None) -> Grid:
    """The grid of a picture of ``size`` pixels (width, height): the next whole cells on each side, fewer or more where
    that leaves ``LEAST`` to ``MOST`` pixels.

    Args:
        size: width and height, pixels.
        units: what its things are measured in, across and down; pixels unless given.
    """
    width, height = size
    rows, columns = round(height / CELL), round(width / CELL)
    pixels = rows * columns * CELL**2
    if pixels > MOST:
        shrink = math.sqrt(height * width / MOST)
        rows, columns = (max(1, math.floor(side / shrink / CELL)) for side in (height, width))
    elif pixels < LEAST:
        grow = math.sqrt(LEAST / (height * width))
        rows, columns = (math.ceil(side * grow / CELL) for side in (height, width))
    return Grid(*(units or size), rows, columns)


def resized(picture: Image.Image, grid: Grid) -> np.ndarray:
    """The picture's pixels on its grid: (rows * CELL, columns * CELL, 3), uint8."""
    size = grid.columns * CELL, grid.rows * CELL
    return np.array(picture.resize(size, Image.Resampling.BICUBIC))


def patches(pixels: Tensor) -> Tensor:
    """(rows * CELL, columns * CELL, 3) uint8 -> (patches, 3 * PATCH * PATCH), normalised as the processor does: the
    patches of a cell stand together, cells row by row. One frame of the two, which are the same."""
    rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    cut = pixels.view(rows, MERGE, PATCH, columns, MERGE, PATCH, 3).permute(0, 3, 1, 4, 6, 2, 5)
    return cut.reshape(-1, 3 * PATCH * PATCH).float().div_(255).sub_(MEAN).div_(STD)


def covered(box: tuple[float, float, float, float], grid: Grid) -> np.ndarray:
    """How much of every cell a box in units covers: (cells,), in [0, 1]."""
    xs, ys = grid.edges()
    across, down = (
        np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / np.diff(edges)
        for edges, low, high in ((xs, box[0], box[2]), (ys, box[1], box[3]))
    )
    return np.outer(down, across).ravel().astype(np.float32)


def rope_places(grid: Grid, before: int) -> Tensor:
    """(3, cells): time, row and column of every visual token behind ``before`` tokens of text."""
    places = torch.from_numpy(grid.places())
    return torch.stack([torch.zeros(grid.cells, dtype=torch.long), places[:, 0], places[:, 1]]) + before


def rope_extent(grid: Grid) -> int:
    """How far text behind a picture is moved on by it."""
    return max(grid.rows, grid.columns)
