"""Tables that say which patches every token pools: where such tokens lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.models.encoded import grid_places
from foveate.tokens import Geometry


@dataclass(frozen=True)
class Window:
    """What of a view its tokens pool.

    Args:
        grid: (rows, columns) of tokens.
        size: (height, width) of the view, in patches.
        boxes: (rows * columns, 4) float64 on the CPU: (x0, y0, x1, y1) of every token, in patches of the view.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    boxes: Tensor


def pool_geometry(
    grids: Sequence[tuple[int, int]], tables: Sequence[Tensor], side: int, patch: int, device: torch.device
) -> Geometry:
    """Views one after the other that show the same picture, the first of them a single square crop; in pixels of the
    last one.

    Args:
        grids: (rows, columns) of every view's tokens.
        tables: (tokens, m) int64 each, on the CPU: which patches they pool, -1 for none. A token's patches are a
            rectangle, row by row, which may reach beyond the view.
        side: patches along a crop's side.
        patch: pixels along a patch's side.
        device: where the tensors go.

    Raises:
        ValueError: tables of anything else.
    """
    pool = _pool(grids[0], tables[0], side)
    windows = [_window(grid, table, pool) for grid, table in zip(grids, tables, strict=True)]
    height, width = (extent * patch for extent in windows[-1].size)
    boxes = [one.boxes * one.boxes.new_tensor([width / one.size[1], height / one.size[0]] * 2) for one in windows]
    places = [grid_places(*grid) for grid in grids]
    view = torch.cat([torch.full_like(row, number) for number, (row, _) in enumerate(places)])
    row, column = (torch.cat(axis) for axis in zip(*places, strict=True))
    together = torch.cat(boxes).float()
    return Geometry(
        view.to(device), row.to(device), column.to(device), together.to(device), (height, width), tuple(grids)
    )


def _pool(grid: tuple[int, int], table: Tensor, side: int) -> tuple[int, int]:
    """(rows, columns) of patches that a token pools: those with which a table is a whole crop of ``side`` patches."""
    most = table.shape[1]
    for rows in (divisor for divisor in range(1, most + 1) if most % divisor == 0):
        pool = (rows, most // rows)
        if all(math.ceil(side / size) == count for size, count in zip(pool, grid, strict=True)):
            canvas = _arranged(grid, table, pool)
            found = canvas[canvas >= 0]
            if len(found) == side**2 and bool((found.diff() == 1).all()):
                return pool
    raise ValueError("its first view is no whole crop")


def _window(grid: tuple[int, int], table: Tensor, pool: tuple[int, int]) -> Window:
    there = _arranged(grid, table, pool) >= 0
    lines, columns = there.any(dim=1), there.any(dim=0)
    size = (int(lines.sum()), int(columns.sum()))
    top, left = (int(axis.long().argmax()) for axis in (lines, columns))  # what fills up stands around the view
    if not bool(there[top : top + size[0], left : left + size[1]].all()):
        raise ValueError("a view has holes")
    row, column = grid_places(*grid)
    corners = torch.stack([column, row, column + 1, row + 1], dim=1)
    scaled = corners * corners.new_tensor([pool[1], pool[0]] * 2) - corners.new_tensor([left, top] * 2)
    return Window(grid, size, scaled.clamp(min=0).minimum(corners.new_tensor([size[1], size[0]] * 2)).double())


def _arranged(grid: tuple[int, int], table: Tensor, pool: tuple[int, int]) -> Tensor:
    """(rows * pool rows, columns * pool columns): which patch lies where in a view, -1 where none does."""
    return table.view(*grid, *pool).transpose(1, 2).reshape(grid[0] * pool[0], grid[1] * pool[1])
