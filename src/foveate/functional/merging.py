"""Tokens put together from several: pure functions of one image's tokens.

They return, beside the places of the kept tokens, their ``weights``, a (K, N) :class:`foveate.functional.Merge`: row k
says how much of each of the N tokens makes up the k-th kept one, so that ``weights @ visual`` are the kept tokens. Rows
sum to 1. One image at a time, without batch dimensions. No table of K or more rows and N columns is ever made whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    descending,
    directions,
    everything,
    positions,
    ranks,
    require_budget,
    require_length,
    require_not_negative,
    require_vectors,
    shape_of,
    unit_rows,
)
from foveate.functional.grid import require_places, uniform_grid
from foveate.functional.merge import Merge

_BLOCK = 1 << 20  # cells of a table that is built piece by piece (4 MiB, and some more of indices)


def dominant_and_contextual(
    saliency: Tensor, keys: Tensor, budget: int, contextual: float = 10 / 64
) -> tuple[Tensor, Merge]:
    """Salient tokens as they are, all others merged into a few by their keys: VisionZip (arXiv 2412.04467).

    ``M = floor(contextual * K)`` tokens are contextual, the ``K - M`` most salient dominant. Of the others, in their
    order, M are taken evenly as targets: those at ``floor((2 m + 1) R / (2 M))`` of R, the middles of M equal runs.
    Each of the rest joins the target whose key is most similar to its own (cosine), and a target becomes the mean of
    itself and what joined it. O(M N d).

    Args:
        saliency: (N,).
        keys: (N, d) keys of the encoder layer where saliency is read.
        budget: K >= 1; with N <= K everything is kept as it is.
        contextual: part of the budget for merged tokens, in [0, 1). Default 10 of 64, as in the paper.

    Returns:
        kept (min(K, N)) int64, ascending, distinct, and weights (min(K, N), N). Ties go to the earlier token, and to
        the earlier target.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, ``contextual`` outside [0, 1); on CPU tensors also
            NaN or infinity.
    """
    budget = require_budget(budget)
    if not 0.0 <= contextual < 1.0:  # NaN fails too
        raise ValueError(f"contextual must be in [0, 1), got {contextual!r}")
    require_vectors(keys=keys)
    tokens = len(keys)
    require_length(tokens, saliency=saliency)
    here = everything(saliency)
    if tokens <= budget:
        return here, Merge.picking(here, tokens)
    merged = math.floor(contextual * budget + 1e-9)
    order = descending(saliency)[1]
    dominant, rest = order[: budget - merged], order[budget - merged :].sort().values
    if not merged:
        kept = dominant.sort().values
        return kept, Merge.picking(kept, tokens)
    middles = (2 * torch.arange(merged, device=rest.device) + 1) * len(rest) // (2 * merged)
    targets = rest.index_select(0, middles)
    with torch.autocast(keys.device.type, enabled=False):
        aims = unit_rows(keys.index_select(0, targets)).T
        nearest = [
            (unit_rows(keys.index_select(0, some)) @ aims).argmax(dim=-1)
            for some in torch.split(rest, max(1, _BLOCK // max(aims.shape)))
        ]
    # A target is its own, even where another target's key equals its own.
    target_of = here.scatter(0, rest, targets.index_select(0, torch.cat(nearest))).scatter(0, targets, targets)
    kept = torch.cat([dominant, targets]).sort().values
    return kept, Merge.means(torch.searchsorted(kept, target_of), here, (budget, tokens))


def outliers_with_neighbours(saliency: Tensor, keys: Tensor, kept: Tensor, neighbours: int = 32) -> Merge:
    """Weights that fold into each kept token those most like it: the merging of PruMerge (arXiv 2403.15388).

    A kept token takes up the ``neighbours`` tokens, kept or not, whose keys are most similar to its own (cosine): it
    counts 1, each of them its saliency, as in the released code. (The paper writes the kept token with its own saliency
    too; since a view's saliency sums to 1, that would be a blur of the cluster with hardly more of the kept token than
    of another.) The sum is divided by that of the weights, which keeps the length of a token. O(K N d).

    Args:
        saliency: (N,) >= 0, as the encoder gives it: about 1 in sum over each view.
        keys: (N, d) keys of the encoder layer where saliency is read.
        kept: (K,) int64, see :func:`foveate.functional.top_k`.
        neighbours: at most this many others in a cluster, >= 0. Default 32.

    Returns:
        weights (K, N). Of equally similar tokens the earlier joins.

    Raises:
        TypeError: inputs that are not floating.
        ValueError: shapes that do not fit, no token, ``neighbours`` < 0; on CPU tensors also NaN, infinity, or a
            negative saliency.
    """
    if neighbours < 0:
        raise ValueError(f"neighbours must be >= 0, got {neighbours!r}")
    unit = directions(keys, name="keys")
    tokens = len(unit)
    require_length(tokens, saliency=saliency)
    require_not_negative("tokens are weighted by it", saliency=saliency)
    size = min(neighbours + 1, tokens)
    clusters = []
    with torch.autocast(unit.device.type, enabled=False):
        for some in torch.split(kept, max(1, _BLOCK // tokens)):
            likeness = unit.index_select(0, some) @ unit.T
            clusters.append(_largest(likeness.scatter_(1, some.unsqueeze(-1), math.inf), size))
    cluster = torch.cat(clusters)  # (K, size)
    counts = torch.where(cluster == kept.unsqueeze(-1), 1.0, saliency.float()[cluster])
    weights = counts / counts.sum(dim=-1, keepdim=True)
    starts = size * torch.arange(len(kept), device=kept.device)
    return Merge(starts, cluster.flatten(), weights.flatten(), tokens)


def salient_and_spread(
    saliency: Tensor, view: Tensor, row: Tensor, column: Tensor, budget: int, salient: float = 0.25
) -> Tensor:
    """Salient tokens, and others spread evenly over the image: the selection of PruMerge+ (arXiv 2403.15388).

    The ``ceil(salient * K)`` most salient tokens, and of the others as many as are missing by
    :func:`foveate.functional.uniform_grid`. O(N log N).

    Args:
        saliency: (N,).
        view, row, column: (N,) int64, where the tokens lie.
        budget: K >= 1; with N <= K everything is kept.
        salient: part of the budget for salient tokens, in [0, 1]. Default 0.25.

    Returns:
        (min(K, N)) int64, ascending, distinct.

    Raises:
        TypeError: saliency that is not floating, coordinates that are not int64; a budget that is no int.
        ValueError: shapes that differ, no token, ``budget`` < 1, ``salient`` outside [0, 1]; on CPU tensors also NaN or
            infinity.
    """
    budget = require_budget(budget)
    if not 0.0 <= salient <= 1.0:  # NaN fails too
        raise ValueError(f"salient must be in [0, 1], got {salient!r}")
    require_places(view, row, column)
    require_length(len(view), saliency=saliency)
    if len(view) <= budget:
        return everything(saliency)
    order = descending(saliency)[1]
    first = min(budget, math.ceil(salient * budget - 1e-9))
    if first == budget:
        return order[:budget].sort().values
    rest = order[first:].sort().values
    view, row, column = (place.index_select(0, rest) for place in (view, row, column))
    spread = rest.index_select(0, uniform_grid(view, row, column, budget - first))
    return torch.cat([order[:first], spread]).sort().values


def spatial_pooling(view: Tensor, row: Tensor, column: Tensor, budget: int) -> tuple[Tensor, Merge]:
    """Every view cut into compact cells of equal size, one token each: average pooling to any number of tokens.

    Every view has its proportional part of the budget, rounded in favour of the earlier view; with fewer tokens than
    views some views have none. A view is cut into bands of rows, about as many as make square cells. Its tokens are
    walked through band by band, there and back, column by column within a band, and the walk is cut into as many runs
    as the view has tokens to fill, their lengths differing by one at most. Where the numbers divide, that is plain
    average pooling: 24 x 24 to 144 tokens averages 2 x 2. O(N log N).

    The grids need not be complete (unpadded views), nor of one size, nor stored in any order.

    Args:
        view: (N,) int64, which view a token belongs to, in [0, N).
        row: (N,) int64, its row in that view.
        column: (N,) int64, its column in that view.
        budget: K >= 1; with N <= K everything is kept as it is.

    Returns:
        kept (min(K, N)) int64, ascending, distinct: of each cell the token nearest to its centre, the earlier of equal
        ones; and weights (min(K, N), N), ``1 / n`` for the n tokens of a cell.

    Raises:
        TypeError: coordinates that are not int64; a budget that is no int.
        ValueError: shapes that differ or are not (N,), no token, ``budget`` < 1.
    """
    budget = require_budget(budget)
    require_places(view, row, column)
    if view.ndim != 1:
        raise ValueError(f"view, row and column must be (N,), one image's, got {shape_of(view)}")
    tokens = len(view)
    here = torch.arange(tokens, device=view.device)
    if tokens <= budget:
        return here, Merge.picking(here, tokens)

    # Per view; there are at most N.
    none = torch.zeros_like(view)
    count = none.scatter_add(0, view, torch.ones_like(view))
    after = count.cumsum(0)
    seats_after = -(-budget * after // tokens)  # rounded up
    seats = seats_after - seats_after.roll(1).index_fill(0, here[:1], 0)
    down, rows = _from_zero(row, view)
    right, columns = _from_zero(column, view)
    aspect = rows.to(accumulator(view.device)) / columns
    bands = (seats * aspect).sqrt().round().long().clamp(min=1)  # seats <= rows * columns: never above rows

    band = down * bands.index_select(0, view) // rows.index_select(0, view)
    across = torch.where(band % 2 == 0, right, columns.index_select(0, view) - 1 - right)
    height, width = rows.amax(), columns.amax()
    walk = (((view * height + band) * width + across) * height + down).sort(stable=True).indices
    walked = view.index_select(0, walk)
    step = here - (after - count).index_select(0, walked)
    run = step * seats.index_select(0, walked) // count.index_select(0, walked)
    run = run + (seats_after - seats).index_select(0, walked)
    run = torch.where(seats.index_select(0, walked) > 0, run, budget)  # a view without seats is in no cell
    cell = torch.empty_like(run).scatter(0, walk, run)

    # Whatever is in no cell counts as in one more, of which nothing is kept.
    number = cell.new_zeros(budget + 1).scatter_add(0, cell, torch.ones_like(cell))
    size = number.index_select(0, cell)
    away = torch.zeros_like(cell)
    for place in (down, right):
        # Times n, the distance to a centre is a whole number.
        total = number.new_zeros(budget + 1).scatter_add(0, cell, place)
        away = away + (size * place - total.index_select(0, cell)).square()
    nearest = away.sort(stable=True).indices
    by_cell = nearest.index_select(0, cell.index_select(0, nearest).sort(stable=True).indices)
    centres = by_cell.index_select(0, (number.cumsum(0) - number)[:budget])
    kept, order = centres.sort()
    row_of = torch.cat([ranks(order), order.new_full((1,), budget)])
    return kept, Merge.means(row_of.index_select(0, cell), here, (budget, tokens))


def _largest(values: Tensor, count: int) -> Tensor:
    """(R, count) int64, ascending: where the largest of every row of (R, N) are; of equal ones the earlier."""
    least = values.topk(count, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above, equal = values > least, values == least
    room = count - above.sum(dim=-1, keepdim=True)
    # What is no number is larger than nothing and equal to nothing: then places are missing, and the last stands in.
    return positions(above | (equal & (equal.cumsum(dim=-1) <= room)), count).clamp_(max=values.shape[-1] - 1)


def _from_zero(place: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """A coordinate counted from its view's first, and how many there are per view, at least one."""
    most = torch.iinfo(place.dtype).max
    low = place.new_full(place.shape, most).scatter_reduce(0, view, place, "amin")
    high = place.new_full(place.shape, -1).scatter_reduce(0, view, place, "amax")
    extent = torch.where(high >= 0, high - low + 1, 1)
    return place - low.index_select(0, view), extent
