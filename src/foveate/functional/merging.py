"""Tokens put together from several: pure functions of one image's tokens.

They return, beside the places of the kept tokens, ``weights`` (K, N) float32: row k says how much of each of the N
tokens makes up the k-th kept one, so that ``weights @ visual`` are the kept tokens. Rows sum to 1. One image at a time,
without batch dimensions.
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
    require_budget,
    require_length,
    shape_of,
)
from foveate.functional.grid import require_places, uniform_grid


def dominant_and_contextual(
    saliency: Tensor, keys: Tensor, budget: int, contextual: float = 10 / 64
) -> tuple[Tensor, Tensor]:
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
    unit = directions(keys, name="keys")
    tokens = len(unit)
    require_length(tokens, saliency=saliency)
    if tokens <= budget:
        return everything(saliency), torch.eye(tokens, device=unit.device)
    merged = math.floor(contextual * budget + 1e-9)
    order = descending(saliency)[1]
    dominant, rest = order[: budget - merged], order[budget - merged :].sort().values
    kept, target_of = dominant, everything(saliency)
    if merged:
        middles = (2 * torch.arange(merged, device=rest.device) + 1) * len(rest) // (2 * merged)
        targets = rest.index_select(0, middles)
        with torch.autocast(unit.device.type, enabled=False):
            likeness = unit.index_select(0, rest) @ unit.index_select(0, targets).T
        joins = targets.index_select(0, likeness.argmax(dim=-1))
        # A target is its own, even where another target's key equals its own.
        target_of = target_of.scatter(0, rest, joins).scatter(0, targets, targets)
        kept = torch.cat([dominant, targets])
    kept = kept.sort().values
    members = (target_of == kept.unsqueeze(-1)).float()
    return kept, members / members.sum(dim=-1, keepdim=True)


def outliers_with_neighbours(saliency: Tensor, keys: Tensor, kept: Tensor, neighbours: int = 32) -> Tensor:
    """Weights that fold into each kept token those most like it: the merging of PruMerge (arXiv 2403.15388).

    A kept token takes up the ``neighbours`` tokens, kept or not, whose keys are most similar to its own (cosine): it
    counts 1, each of them its saliency, as in the released code. (The paper writes the kept token with its own saliency
    too; since a view's saliency sums to 1, that would be a blur of the cluster with hardly more of the kept token than
    of another.) The sum is divided by that of the weights, which keeps the length of a token. O(K N (d + log N)).

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
    if saliency.device.type == "cpu" and bool((saliency < 0).any()):
        raise ValueError("saliency must not be negative: tokens are weighted by it")
    with torch.autocast(unit.device.type, enabled=False):
        likeness = unit.index_select(0, kept) @ unit.T
    own = kept.unsqueeze(-1)
    cluster = likeness.scatter(1, own, math.inf).sort(dim=-1, descending=True, stable=True).indices[:, : neighbours + 1]
    inside = torch.zeros_like(likeness).scatter(1, cluster, 1.0)
    weights = (inside * saliency.float()).scatter(1, own, 1.0)
    return weights / weights.sum(dim=-1, keepdim=True)


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


def spatial_pooling(view: Tensor, row: Tensor, column: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Every view cut into compact cells of equal size, one token each: average pooling to any number of tokens.

    Every view has its proportional part of the budget, rounded in favour of the earlier view; with fewer tokens than
    views some views have none. A view is cut into bands of rows, about as many as make square cells. Its tokens are
    walked through band by band, there and back, column by column within a band, and the walk is cut into as many runs
    as the view has tokens to fill, their lengths differing by one at most. Where the numbers divide, that is plain
    average pooling: 24 x 24 to 144 tokens averages 2 x 2. O(N (K + log N)).

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
        return here, torch.eye(tokens, device=view.device)

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

    members = cell == torch.arange(budget, device=view.device).unsqueeze(-1)  # (K, N)
    number = members.sum(dim=-1, keepdim=True)
    # Times n, the distance to a centre is a whole number.
    away = sum(
        (number * place - torch.where(members, place, 0).sum(dim=-1, keepdim=True)).square() for place in (down, right)
    )
    kept = torch.where(members, away, torch.iinfo(torch.int64).max).argmin(dim=-1)
    order = kept.sort().indices
    return kept.index_select(0, order), (members.float() / number).index_select(0, order)


def _from_zero(place: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """A coordinate counted from its view's first, and how many there are per view, at least one."""
    most = torch.iinfo(place.dtype).max
    low = place.new_full(place.shape, most).scatter_reduce(0, view, place, "amin")
    high = place.new_full(place.shape, -1).scatter_reduce(0, view, place, "amax")
    extent = torch.where(high >= 0, high - low + 1, 1)
    return place - low.index_select(0, view), extent
