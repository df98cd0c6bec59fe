"""Tokens that differ from one another: pure functions of one image's tokens.

They take one image at a time, (N, D) without batch dimensions. Where a method is greedy by nature there is a loop over
the budget, or over rounds, whose steps are tensor operations that nothing waits for. Similarity is the cosine, in
float32. On the CPU what is not finite is refused; on an accelerator the scores that come with the choice show it.
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
    ranks,
    require_budget,
    require_finite,
    require_floating,
    require_length,
    shape_of,
)
from foveate.functional.mixture import top_k

_BLOCK = 1 << 22  # cells of a table that is built piece by piece (16 MiB)
_CACHED = 1 << 18  # the same where it is walked through many times: 1 MiB stays in a CPU's cache
_WITHIN = 1e-4
"""Part of its squared length a token must have outside the span of the chosen ones to count as new. In float32 the
rounding of the recurrence, amplified by the division by the root of this, stays below it."""
_ROUNDING = 1e-12
"""Variance of cosines that float32 cannot tell from none."""


def max_min_diversity(visual: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Tokens as far from one another as possible: DivPrune (arXiv 2503.02175), max-min diversity solved greedily.

    Distance is ``1 - cos``. The first token is the one whose nearest other token is farthest away; then, ``K - 1``
    times, the one whose nearest *chosen* token is (the paper's algorithm 1). O(N^2 D) time for the first and O(K N D)
    for the others, O(N D) memory.

    Args:
        visual: (N, D) tokens of one image.
        budget: K >= 1; with N <= K everything is kept.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the distance of every token to its nearest other one, (N,)
        float32 in [0, 2] (2 for a single token). Ties go to the earlier token.

    Raises:
        TypeError: ``visual`` is not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1; on CPU tensors also NaN or infinity.
    """
    budget = require_budget(budget)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        height = max(1, _BLOCK // tokens)
        closest = torch.cat([_closest_other(unit, start, height) for start in range(0, tokens, height)])
        distance = (1 - closest).clamp(min=0)
        if tokens <= budget:
            return everything(closest), distance
        taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device)
        chosen: list[Tensor] = []
        for _ in range(budget):
            token = closest.masked_fill(taken, math.inf).argmin(dim=0, keepdim=True)
            likeness = unit @ unit.index_select(0, token)[0]
            closest = torch.maximum(closest, likeness) if chosen else likeness
            taken.index_fill_(0, token, True)
            chosen.append(token)
    return torch.cat(chosen).sort().values, distance


def relevance_to_text(text: Tensor, visual: Tensor, *, text_mask: Tensor | None = None) -> Tensor:
    """How relevant each visual token is to the text: the mean of its cosines to the text tokens, scaled to [0, 1].

    CDPruner's relevance (arXiv 2506.10967) for models without CLIP's text encoder, with its min-max scaling over the
    image. Where all are equally relevant it is 1. O((N + T) D).

    Args:
        text: (T, D) input embeddings of the LLM.
        visual: (N, D) tokens of one image.
        text_mask: (T,) bool, True for the tokens that count. Default: all of them.

    Returns:
        (N,) float32 in [0, 1]. Where the mask leaves no token it is NaN (on the CPU: an error).

    Raises:
        TypeError: a dtype that is not floating; a mask that is not bool.
        ValueError: shapes that do not fit, no token; on CPU tensors also NaN or infinity, or a mask that leaves none.
    """
    require_floating(text=text)
    if text.ndim != 2 or 0 in text.shape or text.shape[-1] != visual.shape[-1]:
        raise ValueError(f"text (T, D) and visual (N, D) must share D, got {shape_of(text)} and {shape_of(visual)}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        queries = text.float()
        if text_mask is not None:
            if text_mask.dtype != torch.bool:
                raise TypeError(f"text_mask must be bool, got {text_mask.dtype}")
            if text_mask.shape != text.shape[:1]:
                raise ValueError(f"text_mask {shape_of(text_mask)} does not fit text {shape_of(text)}")
            if text_mask.device.type == "cpu" and not bool(text_mask.any()):
                raise ValueError("text_mask leaves no text token")
            queries = queries.masked_fill(~text_mask.to(queries.device, non_blocking=True).unsqueeze(-1), 0.0)
        if queries.device.type == "cpu":
            require_finite(text=queries)
        # Masked tokens are zero and add nothing.
        counted = len(text) if text_mask is None else text_mask.to(queries.device, non_blocking=True).sum()
        cosine = unit @ (torch.nn.functional.normalize(queries, dim=-1).sum(dim=0) / counted)
        low, high = cosine.aminmax()
        # NaN equals nothing: what is not finite stays so, for the caller to see.
        return torch.where(high == low, torch.ones_like(cosine), (cosine - low) / (high - low))


def conditional_dpp(visual: Tensor, relevance: Tensor, budget: int) -> Tensor:
    """Tokens that are relevant and differ: CDPruner (arXiv 2506.10967), greedy MAP inference of a conditional DPP.

    The kernel is ``diag(r) L diag(r)`` with ``L`` the cosines between tokens and ``r`` their relevance. Each step takes
    the token that makes the determinant of the chosen submatrix largest, by the incremental Cholesky factorisation of
    Chen et al. (arXiv 1709.05135). O(K N (D + K)) time, O(N (D + K)) memory; the kernel is never built.

    A token that lies in the span of the chosen ones (up to 1 % of its length) makes the determinant zero. Such tokens
    come last, the most relevant first, so that the budget is exact beyond the kernel's rank too.

    Args:
        visual: (N, D) tokens of one image.
        relevance: (N,) >= 0, see :func:`relevance_to_text`.
        budget: K >= 1; with N <= K everything is kept.

    Returns:
        (min(K, N)) int64, ascending, distinct. Ties go to the earlier token.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1; on CPU tensors also NaN or infinity.
    """
    budget = require_budget(budget)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, relevance=relevance)
        if tokens <= budget:
            return everything(relevance)
        weight = relevance.float()
        gain = unit.square().sum(dim=-1) * weight.square()  # squared lengths outside the span of the chosen
        within = _WITHIN * gain
        last = weight - weight.amax() - 1
        taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device)
        factor = unit.new_zeros(budget, tokens)
        chosen = []
        for step in range(budget):
            score = torch.where(gain > within, gain, last).masked_fill(taken, -math.inf)
            token = score.argmax(dim=0, keepdim=True)
            kernel = (unit @ unit.index_select(0, token)[0]) * weight * weight.index_select(0, token)
            done = factor[:step]
            rest = kernel - done.index_select(1, token).squeeze(1) @ done
            length = gain.index_select(0, token)
            new = length > within.index_select(0, token)
            factor[step] = torch.where(new, rest / torch.where(new, length, 1.0).sqrt(), 0.0)
            gain = gain - factor[step].square()
            taken.index_fill_(0, token, True)
            chosen.append(token)
    return torch.cat(chosen).sort().values


def important_and_diverse(
    visual: Tensor, saliency: Tensor, budget: int, important: float = 0.5, step: int = 8
) -> tuple[Tensor, Tensor]:
    """Salient tokens, and of the others those that remain when duplicates are removed: VisPruner (arXiv 2412.01818 v2).

    The ``floor(important * K)`` most salient tokens stay. The others, the most salient first, are split alternately in
    two halves; the ``step`` tokens of the first half that are most similar to some token of the second are dropped.
    What remains of the first, the most similar first, and then the second are split anew until the budget is met:
    the order, which the paper leaves open, is the released code's. O(N^2 D) time for the similarities, then O(N^2) a
    round; O(N^2) memory.

    Args:
        visual: (N, D) tokens of one image.
        saliency: (N,).
        budget: K >= 1; with N <= K everything is kept.
        important: part of the budget for salient tokens, in [0, 1]. Default 0.5.
        step: tokens dropped in a round, >= 1. Default 8.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the cosine of every token to the most similar other one, (N,)
        float32. Of equally salient tokens the earlier stays, of equally similar ones the one that stood first.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, ``important`` outside [0, 1], ``step`` < 1; on CPU
            tensors also NaN or infinity.
    """
    budget = require_budget(budget)
    if not 0.0 <= important <= 1.0:  # NaN fails too
        raise ValueError(f"important must be in [0, 1], got {important!r}")
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step!r}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        likeness = unit @ unit.T
    closest = likeness.clone().fill_diagonal_(-1.0).amax(dim=-1)
    if tokens <= budget:
        return everything(saliency), closest
    order = descending(saliency)[1]
    salient = math.floor(important * budget + 1e-9)
    kept, left = order[:salient], order[salient:]
    diverse = budget - salient
    while diverse and len(left) > diverse:
        first, second = left[::2], left[1::2]
        similar = likeness.index_select(0, first).index_select(1, second).amax(dim=-1)
        drop = min(step, len(left) - diverse, len(first))
        ascending = similar.sort(stable=True).indices[: len(first) - drop]
        left = torch.cat([first[ascending.flip(0)], second])
    return torch.cat([kept, left[:diverse]]).sort().values, closest


def least_duplicated(visual: Tensor, budget: int, pivots: int = 8) -> tuple[Tensor, Tensor]:
    """A few pivots and the tokens least like them: DART (arXiv 2502.11494), on the tokens that enter the LLM.

    The ``min(pivots, K)`` tokens of the largest norm are pivots and stay. The rest of the budget is shared out among
    them, the larger norm first, one more each where it does not divide: each in turn takes the tokens, of those left,
    whose cosine to it is smallest. O(P N D).

    Args:
        visual: (N, D) tokens of one image.
        budget: K >= 1; with N <= K everything is kept.
        pivots: P >= 1. Default 8.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the norms the pivots were chosen by, (N,) float32. Ties go to
        the earlier token.

    Raises:
        TypeError: ``visual`` is not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` or ``pivots`` < 1; on CPU tensors also NaN or infinity.
    """
    budget = require_budget(budget)
    if pivots < 1:
        raise ValueError(f"pivots must be >= 1, got {pivots!r}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        norm = visual.float().norm(dim=-1)
        if len(unit) <= budget:
            return everything(norm), norm
        pivots = min(pivots, budget)
        chosen = [descending(norm)[1][:pivots]]
        likeness = unit.index_select(0, chosen[0]) @ unit.T  # (P, N)
    taken = torch.zeros(len(unit), dtype=torch.bool, device=unit.device).index_fill_(0, chosen[0], True)
    share, more = divmod(budget - pivots, pivots)
    for pivot in range(pivots):
        wanted = share + (pivot < more)
        unlike = likeness[pivot].masked_fill(taken, math.inf).sort(stable=True).indices[:wanted]
        taken.index_fill_(0, unlike, True)
        chosen.append(unlike)
    return torch.cat(chosen).sort().values, norm


def saliency_coverage(visual: Tensor, saliency: Tensor, budget: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Salient tokens that together resemble the whole image: SCOPE (arXiv 2510.24214).

    A set covers token ``i`` by its largest cosine to it, nothing at first, and never less than nothing. Each step takes
    the token of the largest ``gain * saliency ** alpha``, where ``gain`` is what it adds to the coverage of all tokens
    together. O(N^2 (D + K)) time, O(N^2) memory.

    Args:
        visual: (N, D) tokens of one image.
        saliency: (N,) >= 0.
        budget: K >= 1; with N <= K everything is kept.
        alpha: how much saliency weighs against coverage, >= 0. Default 1.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the mean coverage of all tokens by each token alone, (N,)
        float32 in [0, 1]. Ties go to the earlier token.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, a negative ``alpha``; on CPU tensors also NaN,
            infinity or a negative saliency.
    """
    budget = require_budget(budget)
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be finite and >= 0, got {alpha!r}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        if saliency.device.type == "cpu" and bool((saliency < 0).any()):
            raise ValueError("saliency must not be negative: it weighs the coverage")
        likeness = unit @ unit.T
    covered = unit.new_zeros(tokens)
    gain = _coverage_gain(likeness, covered)
    alone = gain / tokens
    if tokens <= budget:
        return everything(saliency), alone
    weight = saliency.float() ** alpha
    taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device)
    chosen: list[Tensor] = []
    for step in range(budget):
        if step:
            gain = _coverage_gain(likeness, covered)
        token = (gain * weight).masked_fill(taken, -math.inf).argmax(dim=0, keepdim=True)
        covered = torch.maximum(covered, likeness.index_select(0, token)[0])
        taken.index_fill_(0, token, True)
        chosen.append(token)
    return torch.cat(chosen).sort().values, alone


def holistic_context(
    visual: Tensor, saliency: Tensor, crop: Tensor, crops: int, largest: int, budget: int, beta: float = 0.09
) -> tuple[Tensor, Tensor]:
    """Every region has its part of the budget: HoloV (arXiv 2510.02912).

    Within its crop a token scores ``saliency + beta * scale * variance``: the variance of its cosines to the crop's
    other tokens, scaled so that its mean over the crop is that of saliency. Crops share the budget in proportion to
    their mean scores, none more than it has; its best tokens stay. Proportion is Webster's (Sainte-Laguë): the r-th
    best token of a crop has the quotient ``mean score / (2 r - 1)``, and the K largest quotients of the image stay. So
    the budget is exact, and what a full crop cannot take goes to the others, in one sort. O(N M D), M the largest crop.

    Args:
        visual: (N, D) tokens of one image.
        saliency: (N,) >= 0.
        crop: (N,) int64 in [0, ``crops``), see :func:`foveate.functional.spatial_crops`.
        crops: how many there are, empty ones included.
        largest: no crop has more tokens than this.
        budget: K >= 1; with N <= K everything is kept.
        beta: weight of the variance, >= 0. Default 0.09.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the scores, (N,) float32. Ties go to the earlier token.

    Raises:
        TypeError: inputs that are not floating, crops that are not int64; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, a negative ``beta``; on CPU tensors also NaN,
            infinity or a negative saliency.
    """
    budget = require_budget(budget)
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and >= 0, got {beta!r}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        if crop.dtype != torch.int64:
            raise TypeError(f"crop must be int64, got {crop.dtype}")
        if crop.shape != (tokens,):
            raise ValueError(f"crop must have one value for each of the {tokens} tokens, got {shape_of(crop)}")
        if saliency.device.type == "cpu" and bool((saliency < 0).any()):
            raise ValueError("saliency must not be negative: crops share the budget by it")

        # One row of a table per crop, padded with token N, a zero vector.
        count = crop.new_zeros(crops).scatter_add(0, crop, torch.ones_like(crop))
        here = torch.arange(tokens, device=crop.device)
        place = crop * largest + _rank_in_crop(here, crop, count)
        table = crop.new_full((crops * largest,), tokens).scatter(0, place, here)
        rows = torch.cat([unit, unit.new_zeros(1, unit.shape[1])]).index_select(0, table).view(crops, largest, -1)
        likeness = rows @ rows.transpose(-1, -2)

    def per_crop(values: Tensor) -> Tensor:
        """(C,) sums, row by row: a scatter_add of floats would depend on the order in which an accelerator adds."""
        return values.new_zeros(crops * largest).scatter(0, place, values).view(crops, largest).sum(dim=-1)

    there = (table < tokens).view(crops, largest)
    others = (there.unsqueeze(-1) & there.unsqueeze(-2)) & ~torch.eye(largest, dtype=torch.bool, device=crop.device)
    number = (count - 1).clamp(min=1).unsqueeze(-1)
    mean = torch.where(others, likeness, 0.0).sum(dim=-1) / number
    variance = torch.where(others, (likeness - mean.unsqueeze(-1)).square(), 0.0).sum(dim=-1) / number
    variance = variance.flatten().index_select(0, place)
    variance = torch.where(variance < _ROUNDING, 0.0, variance)  # scaled up, the noise of equal tokens would rank them

    salient = saliency.float()
    spread = per_crop(variance)
    scale = torch.where(spread > 0, per_crop(salient) / torch.where(spread > 0, spread, 1.0), 0.0)
    score = salient + beta * scale.index_select(0, crop) * variance
    worth = per_crop(score) / count.clamp(min=1)
    if tokens <= budget:
        return everything(score), score
    rank = _rank_in_crop(descending(score)[1], crop, count)
    quotient = worth.index_select(0, crop).to(accumulator(crop.device)) / (2 * rank + 1)
    return top_k(quotient, budget), score


def _closest_other(unit: Tensor, start: int, height: int) -> Tensor:
    """The largest cosine of tokens ``start`` to ``start + height`` to any other token; -1 where there is none."""
    likeness = unit[start : start + height] @ unit.T
    likeness.diagonal(offset=start).fill_(-1.0)
    return likeness.amax(dim=-1)


def _coverage_gain(likeness: Tensor, covered: Tensor) -> Tensor:
    """(N,) what each token adds to a coverage: the sum over tokens i of max(0, likeness - covered_i)."""
    height = max(1, (_CACHED if likeness.device.type == "cpu" else _BLOCK) // len(covered))
    blocks = (likeness[start : start + height] for start in range(0, len(covered), height))
    return torch.cat([(block - covered).relu_().sum(dim=-1) for block in blocks])


def _rank_in_crop(order: Tensor, crop: Tensor, count: Tensor) -> Tensor:
    """(N,) each token's place, from 0, among the tokens of its crop in a given order."""
    by_crop = order.index_select(0, crop.index_select(0, order).sort(stable=True).indices)
    first = count.cumsum(0) - count
    return ranks(by_crop) - first.index_select(0, crop)
