"""Choices that only depend on where the tokens lie: pure functions of view, row and column."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.functional.common import accumulator, everything, require_budget, require_length, shape_of

_GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


def uniform_grid(view: Tensor, row: Tensor, column: Tensor, budget: int) -> Tensor:
    """``budget`` tokens spread evenly over the grids of all views. O(N log N).

    Every view gets its proportional part. Within a view the tokens nearest to a golden-ratio lattice are
    taken: kept tokens lie N / K columns apart in a row, and every row is shifted against the one above by
    the golden part of that. The golden ratio being the number worst approximated by fractions, no K lines
    them up in columns or diagonals: two points of the lattice are never nearer than 81 % of the distance in
    the best possible (hexagonal) one. A plain stride over the flattened tokens falls into columns whenever
    N / K divides the row. A single token is the centre.

    The grids need not be complete (unpadded views), nor of one size, nor stored in any order.

    Args:
        view: (..., N) int64, which view a token belongs to, in [0, N).
        row: (..., N) int64, its row in that view.
        column: (..., N) int64, its column in that view.
        budget: K >= 1; with N <= K everything is kept.

    Returns:
        (..., min(K, N)) int64, ascending, distinct; it depends on nothing but where the tokens lie.

    Raises:
        TypeError: coordinates that are not int64; a budget that is no int.
        ValueError: shapes that differ, no token, ``budget`` < 1.
    """
    budget = require_budget(budget)
    require_places(view, row, column)
    tokens = view.shape[-1]
    if tokens <= budget:
        return everything(view)

    # Per view: how many tokens, and where its centre is. There are at most N views.
    none = torch.zeros_like(view)
    count = none.scatter_add(-1, view, torch.ones_like(view))
    middle = [
        coordinate - (none.scatter_add(-1, view, coordinate) // count.clamp(min=1)).gather(-1, view)
        for coordinate in (row, column)
    ]
    real = accumulator(view.device)
    phase = middle[0].to(real) / _GOLDEN_RATIO + middle[1].to(real) * (budget / tokens)
    distance = (phase - phase.round()).abs()

    # Rank by distance within each view, as a fraction of the view: the K smallest share K proportionally.
    by_distance = distance.sort(dim=-1, stable=True).indices
    by_view = view.gather(-1, by_distance).sort(dim=-1, stable=True)
    order = by_distance.gather(-1, by_view.indices)
    first = count.cumsum(-1) - count
    rank = torch.arange(tokens, device=view.device) - first.gather(-1, by_view.values)
    fraction = (rank.to(real) + 0.5) / count.gather(-1, by_view.values)
    fraction = torch.empty_like(fraction).scatter(-1, order, fraction)
    return fraction.sort(dim=-1, stable=True).indices[..., :budget].sort(dim=-1).values


def spatial_crops(
    view: Tensor, row: Tensor, column: Tensor, grids: Sequence[tuple[int, int]], side: int
) -> tuple[Tensor, int, int]:
    """Cuts every view into ``side`` x ``side`` blocks of its grid, as equal as can be. O(N).

    A grid with fewer rows or columns than ``side`` leaves blocks empty.

    Args:
        view: (..., N) int64, which view a token belongs to.
        row: (..., N) int64, its row in that view's grid.
        column: (..., N) int64, its column in that view's grid.
        grids: (rows, columns) of every view's full grid.
        side: >= 1.

    Returns:
        (..., N) int64, the block of every token; how many blocks there are, ``len(grids) * side ** 2``; and how many
        tokens the largest can have.

    Raises:
        TypeError: coordinates that are not int64.
        ValueError: shapes that differ, no token, no grid, ``side`` < 1.
    """
    require_places(view, row, column)
    if side < 1 or not grids:
        raise ValueError(f"side must be >= 1 and grids not empty, got {side!r} and {grids!r}")
    rows, columns = torch.tensor(grids, dtype=torch.int64, device="cpu").to(view.device, non_blocking=True).unbind(-1)
    down = row * side // rows[view]
    right = column * side // columns[view]
    largest = max(-(-height // side) * -(-width // side) for height, width in grids)
    return (view * side + down) * side + right, len(grids) * side * side, largest


def smooth_on_grid(
    score: Tensor, view: Tensor, row: Tensor, column: Tensor, grids: Sequence[tuple[int, int]], sigma: float = 1.0
) -> Tensor:
    """Scores averaged with those of the eight cells around, by a Gaussian, in each view's own grid.

    The 3 x 3 weights are ``exp(- squared distance / (2 sigma^2))``, over the sum of those that lie on tokens: beyond
    the edge, and where a grid is incomplete (unpadded views), there is nothing to average with. O(V R C) for V views
    whose largest grid has R rows and C columns.

    Args:
        score: (N,) one score a token.
        view: (N,) int64, which view a token belongs to.
        row: (N,) int64, its row in that view's grid.
        column: (N,) int64, its column in that view's grid.
        grids: (rows, columns) of every view's full grid.
        sigma: > 0, in cells. Default 1.

    Returns:
        (N,) float32.

    Raises:
        TypeError: scores that are not floating; coordinates that are not int64.
        ValueError: shapes that differ, no token, no grid, a ``sigma`` not positive; on CPU tensors also NaN or
            infinity.
    """
    require_places(view, row, column)
    require_length(view.shape[-1], score=score)
    if not grids or not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be positive and finite and grids not empty, got {sigma!r} and {grids!r}")
    # One table for all views with an empty rim, so that every cell has eight around it.
    height, width = max(rows for rows, _ in grids) + 2, max(columns for _, columns in grids) + 2
    cell = (view * height + row + 1) * width + column + 1
    beside = math.exp(-1 / (2 * sigma * sigma))

    def around(values: Tensor) -> Tensor:
        """(N,) weighted sums: the Gaussian of a square is one along rows times one along columns."""
        table = values.new_zeros(len(grids) * height * width).scatter(0, cell, values).view(-1, height, width)
        table = table[:, 1:-1] + beside * (table[:, :-2] + table[:, 2:])
        table = table[..., 1:-1] + beside * (table[..., :-2] + table[..., 2:])
        return torch.nn.functional.pad(table, (1, 1, 1, 1)).flatten().index_select(0, cell)

    values = score.float()
    return around(values) / around(torch.ones_like(values))


def require_places(view: Tensor, row: Tensor, column: Tensor) -> None:
    for name, tensor in {"view": view, "row": row, "column": column}.items():
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
        if tensor.shape != view.shape or tensor.ndim < 1 or tensor.shape[-1] == 0:
            raise ValueError(
                f"view, row and column must be (..., N) of one shape, got {shape_of(view)}, {shape_of(row)}, "
                f"{shape_of(column)}"
            )
