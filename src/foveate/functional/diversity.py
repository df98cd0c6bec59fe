"""Tokens as unlike one another as can be: pure functions of one image's tokens.

They take one image at a time, (N, D) without batch dimensions. Where a method is greedy by nature there is a loop over
the budget, whose steps are tensor operations that nothing waits for. Similarity is the cosine, in float32. On the CPU
what is not finite is refused; on an accelerator the scores that come with the choice show it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    descending,
    directions,
    everything,
    require_budget,
    require_length,
    require_not_negative,
)

_BLOCK = 1 << 22  # cells of a table that is built piece by piece (16 MiB)
_NO_DISTANCE = 1e-6
"""A distance of cosines that float32 cannot tell from none: a large weight must not make one of it."""
_WITHIN = 1e-4
"""Part of its squared length a token must have outside the span of the chosen ones to count as new. In float32 the
rounding of the recurrence, amplified by the division by the root of this, stays below it."""


def max_min_diversity(visual: Tensor, budget: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens as far from one another as possible: DivPrune (arXiv 2503.02175), max-min diversity solved greedily.

    Distance is ``1 - cos``. The first token is the one whose nearest other token is farthest away; then, ``K - 1``
    times, the one whose nearest *chosen* token is (the paper's algorithm 1). O(N^2 D) time for the first and O(K N D)
    for the others, O(N D) memory. With a weight the first token is the same, and the others are those of the largest
    weight times distance to the nearest chosen token (Cen-Prune, arXiv 2608.30263, equation 7).

    Args:
        visual: (N, D) tokens of one image.
        budget: K >= 1; with N <= K everything is kept.
        weight: (N,) >= 0, how much a token's distance counts. Default: all alike.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the distance of every token to its nearest other one, (N,)
        float32 in [0, 2] (2 for a single token). Ties go to the earlier token.

    Raises:
        TypeError: ``visual`` is not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1; on CPU tensors also NaN, infinity or a negative
            weight.
    """
    budget = require_budget(budget)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        if weight is not None:
            require_length(tokens, weight=weight)
            require_not_negative("it multiplies distances", weight=weight)
        height = max(1, _BLOCK // tokens)
        closest = torch.cat([_closest_other(unit, start, height) for start in range(0, tokens, height)])
        distance = (1 - closest).clamp(min=0)
        if tokens <= budget:
            return everything(closest), distance
        taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device)
        chosen: list[Tensor] = []
        for _ in range(budget):
            if weight is None or not chosen:
                token = closest.masked_fill(taken, math.inf).argmin(dim=0, keepdim=True)
            else:
                away = 1 - closest
                away = torch.where(away > _NO_DISTANCE, away, 0.0) * weight.float()
                token = away.masked_fill(taken, -math.inf).argmax(dim=0, keepdim=True)
            likeness = unit @ unit.index_select(0, token)[0]
            closest = torch.maximum(closest, likeness) if chosen else likeness
            taken.index_fill_(0, token, True)
            chosen.append(token)
    return torch.cat(chosen).sort().values, distance


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


def _closest_other(unit: Tensor, start: int, height: int) -> Tensor:
    """The largest cosine of tokens ``start`` to ``start + height`` to any other token; -1 where there is none."""
    likeness = unit[start : start + height] @ unit.T
    likeness.diagonal(offset=start).fill_(-1.0)
    return likeness.amax(dim=-1)
