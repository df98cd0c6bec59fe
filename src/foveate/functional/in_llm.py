"""Pruning between the layers of the language model: pure functions of one image's tokens.

Sources: FastV (arXiv 2403.06764) and PyramidDrop (arXiv 2410.17247) rank visual tokens by the attention of the prompt's
last token, SparseVLM (arXiv 2410.04417) by that of chosen text tokens, and it merges part of what it drops.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.functional.common import (
    descending,
    everything,
    require_budget,
    require_finite,
    require_floating,
    require_length,
    require_vectors,
    shape_of,
)
from foveate.functional.merge import Merge

_BLOCK = 1 << 22  # cells of a table of distances that is built piece by piece (16 MiB)
_HALVINGS = 60  # of an interval of length 1: beyond what a float64 can tell apart


def attention_of_queries(query: Tensor, key: Tensor, scaling: float, allowed: Tensor) -> Tensor:
    """The attention that some tokens pay to all, averaged over heads: only these rows of the matrix are computed.

    Args:
        query: (H, R, d), after rotary positions.
        key: (G, S, d), G dividing H (grouped queries).
        scaling: factor on the dot products.
        allowed: (R, S) bool, True where a query may look; at least once in every row.

    Returns:
        (R, S), each row summing to 1: float64 for float64 inputs, else float32.

    Raises:
        ValueError: shapes that do not fit.
    """
    if query.ndim != 3 or key.ndim != 3 or query.shape[0] % key.shape[0] or query.shape[2] != key.shape[2]:
        raise ValueError(f"query (H, R, d) and key (G, S, d) must fit, got {shape_of(query)} and {shape_of(key)}")
    if allowed.shape != (query.shape[1], key.shape[1]):
        raise ValueError(f"allowed must be (R, S), ({query.shape[1]}, {key.shape[1]}), got {shape_of(allowed)}")
    dtype = torch.promote_types(query.dtype, torch.float32)
    groups, rows = key.shape[0], query.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        # The heads of a group stand one after the other, so that keys need not be repeated.
        together = query.to(dtype).reshape(groups, -1, query.shape[2])
        logits = (together @ key.to(dtype).transpose(-1, -2) * scaling).view(-1, rows, key.shape[1])
        return logits.masked_fill(~allowed, -math.inf).softmax(dim=-1).mean(dim=0)


def text_raters(text: Tensor, visual: Tensor) -> Tensor:
    """The text tokens that rate the picture: SparseVLM (arXiv 2410.04417), relevant text token selection.

    A text token's relevance is the mean over visual tokens of ``softmax over text of v . e``, dot products as they
    are; those whose relevance is not below the mean are raters.

    Args:
        text: (T, D) input embeddings of the text.
        visual: (N, D) projected visual tokens.

    Returns:
        (T,) bool, at least one True.

    Raises:
        TypeError: inputs that are not floating.
        ValueError: shapes that do not fit, no token; on CPU tensors also NaN or infinity.
    """
    require_floating(text=text, visual=visual)
    if text.ndim != 2 or visual.ndim != 2 or text.shape[1] != visual.shape[1] or 0 in (*text.shape, len(visual)):
        raise ValueError(f"text (T, D) and visual (N, D) must share D, got {shape_of(text)} and {shape_of(visual)}")
    dtype = torch.promote_types(text.dtype, torch.float32)
    with torch.autocast(text.device.type, enabled=False):
        relevance = (visual.to(dtype) @ text.to(dtype).T).softmax(dim=-1).mean(dim=0)
    if relevance.device.type == "cpu":
        require_finite(**{"the relevance of text tokens": relevance})
    # Of equal values, rounding can put the mean above all.
    return relevance >= relevance.mean().minimum(relevance.max())


def density_peaks(points: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Clusters around tokens that are dense and far from denser ones: the k-nearest-neighbour form of density peaks.

    That is what SparseVLM (arXiv 2410.04417) aggregates recycled tokens by. With distances ``d`` divided by the root
    of D, a token's density is ``rho = exp(-mean of d^2 over its k nearest others)``, with as many neighbours as
    clusters; ``delta`` is the distance to the nearest denser token, for the densest the largest distance of all. The
    centres are the tokens of the largest ``rho * delta``; every other token joins its nearest centre. Logarithms are
    compared, since hidden states lie so far apart that ``rho`` would underflow. O(P^2 D) time; distances are never held
    all at once.

    Args:
        points: (P, D).
        clusters: C, 1 <= C <= P.

    Returns:
        centres (C,) int64, ascending, and (P,) int64: which centre, by its number among them, every token belongs to.
        Ties go to the earlier token and to the earlier centre; of equally dense tokens the earlier counts as denser.

    Raises:
        TypeError: points that are not floating; ``clusters`` that is no int.
        ValueError: no points, ``clusters`` < 1 or > P; on CPU tensors also NaN or infinity.
    """
    clusters = require_budget(clusters)
    require_vectors(points=points)
    count = len(points)
    if clusters > count:
        raise ValueError(f"{count} points cannot form {clusters} clusters")
    here = torch.arange(count, device=points.device)
    if clusters == count:
        return here, here
    exact = points.to(torch.promote_types(points.dtype, torch.float32))
    height = max(1, _BLOCK // count)

    @functools.lru_cache(maxsize=1)  # where one block is all, it is computed once
    def distances(start: int) -> Tensor:
        return _distances(exact[start : start + height], exact)

    densities, farthest = [], []
    for start in range(0, count, height):
        distance = distances(start)
        itself = here[start : start + height].unsqueeze(1) == here
        nearest = distance.masked_fill(itself, math.inf).topk(clusters, dim=-1, largest=False).values
        densities.append(-nearest.square().mean(dim=-1))
        farthest.append(distance.max())
    density, largest = torch.cat(densities), torch.stack(farthest).max()
    deltas = []
    for start in range(0, count, height):
        own, place = density[start : start + height].unsqueeze(1), here[start : start + height].unsqueeze(1)
        denser = (density > own) | ((density == own) & (here < place))
        delta = distances(start).masked_fill(~denser, math.inf).amin(dim=-1)
        deltas.append(torch.where(denser.any(dim=-1), delta, largest))
    centres = descending(density + torch.cat(deltas).log())[1][:clusters].sort().values
    if height >= count:
        member = distances(0).index_select(1, centres).argmin(dim=-1)
    else:
        middles = exact.index_select(0, centres)
        member = torch.cat([_distances(some, middles).argmin(dim=-1) for some in torch.split(exact, height)])
    # A centre is its own, even where another one equals it.
    return centres, member.scatter(0, centres, torch.arange(clusters, device=points.device))


def keep_and_recycle(
    score: Tensor, hidden: Tensor, budget: int, recycled: float = 0.3, clusters: float = 0.1
) -> tuple[Tensor, Merge, int]:
    """The best rated tokens as they are, part of the others merged into a few: SparseVLM (arXiv 2410.04417).

    Of K tokens, ``C = ceil(clusters * recycled * (N - K))``, at most ``K // 2``, are merged ones and ``K - C`` the best
    rated. Of the rest, the best rated ``recycled`` part is grouped by :func:`density_peaks` into C clusters; a cluster
    becomes the mean of its members, in the place of its centre. The paper writes their sum; the mean keeps a hidden
    state's length. The paper adds its merged tokens to those kept; here the budget is exact.

    Args:
        score: (N,) attention of the raters.
        hidden: (N, D) hidden states.
        budget: K >= 1; with N <= K everything is kept as it is.
        recycled: part of the dropped tokens that is merged, in [0, 1]. Default 0.3.
        clusters: merged tokens for each recycled one, in [0, 1]. Default 0.1.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; weights, a (min(K, N), N) :class:`foveate.functional.Merge`, rows
        summing to 1, ``1 / n`` for the n members of a cluster; and C. Ties go to the earlier token.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, a part outside [0, 1]; on CPU tensors also NaN or
            infinity.
    """
    budget = require_budget(budget)
    for name, part in (("recycled", recycled), ("clusters", clusters)):
        if not 0.0 <= part <= 1.0:  # NaN fails too
            raise ValueError(f"{name} must be in [0, 1], got {part!r}")
    tokens = len(hidden)
    require_length(tokens, score=score)
    if tokens <= budget:
        kept = everything(score)
        return kept, Merge.picking(kept, tokens), 0
    merged = min(math.ceil(clusters * recycled * (tokens - budget) - 1e-9), budget // 2)
    order = descending(score)[1]
    whole, rest = order[: budget - merged], order[budget - merged :]
    if not merged:
        kept = whole.sort().values
        return kept, Merge.picking(kept, tokens), 0
    pool = rest[: max(merged, math.ceil(recycled * len(rest) - 1e-9))].sort().values
    centres, member = density_peaks(hidden.index_select(0, pool), merged)
    places = pool.index_select(0, centres)
    kept = torch.cat([whole, places]).sort().values
    targets = torch.cat([whole, places.index_select(0, member)])
    members = torch.cat([whole, pool])
    return kept, Merge.means(torch.searchsorted(kept, targets), members, (budget, tokens)), merged


def _distances(some: Tensor, others: Tensor) -> Tensor:
    """(R, P) Euclidean distances divided by the root of D; of equal points nothing, as a matrix product would not."""
    with torch.autocast(some.device.type, enabled=False):
        distance = torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / math.sqrt(some.shape[1])


def stage_budgets(tokens: int, budget: int, widths: Sequence[int], *, mean: bool) -> list[int]:
    """How many of an image's tokens each run of layers holds, when every run keeps the same share of the one before.

    The share is PyramidDrop's lambda (arXiv 2410.17247); with two runs this is FastV. Numbers only, no tensors.

    Args:
        tokens: N, what the first run holds.
        budget: K >= 1; with N <= K all runs hold everything.
        widths: how many layers each run has, each >= 1.
        mean: True makes K the mean over all layers: the largest share is taken whose mean is not above K. False makes
            K what the last run holds.

    Returns:
        One number per run, the first N, never growing, each >= 1.

    Raises:
        ValueError: the mean cannot be as small as K with these runs; no token, budget or layer.
    """
    if tokens < 1 or budget < 1 or not widths or min(widths) < 1:
        raise ValueError(f"need tokens, a budget and layers, got {tokens}, {budget} and {list(widths)}")
    if tokens <= budget:
        return [tokens] * len(widths)

    def held(share: float, least: int) -> list[int]:
        # 0.3 * 10 is 2.9999999999999996 in binary
        return [tokens, *(max(least, math.floor(tokens * share**run + 1e-9)) for run in range(1, len(widths)))]

    if not mean:
        return held((budget / tokens) ** (1 / max(1, len(widths) - 1)), budget)
    total = budget * sum(widths)
    least = widths[0] * tokens + sum(widths[1:])
    if least > total:
        raise ValueError(
            f"a mean of {budget} tokens per layer cannot be had: the first {widths[0]} of {sum(widths)} layers hold "
            f"all {tokens}, which alone makes {least / sum(widths):.1f}"
        )
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = sum(width * count for width, count in zip(widths, held(middle, 1), strict=True)) <= total
        low, high = (middle, high) if fits else (low, middle)
    return held(low, 1)
