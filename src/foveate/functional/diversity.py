"""Tokens as unlike one another as can be: pure functions of one image's tokens.

They take one image at a time, (N, D) without batch dimensions. Where a method is greedy by nature there is a loop over
the budget, whose steps are tensor operations that nothing waits for (:func:`foveate.functional.steps.repeat`): a CUDA
device replays them, several in one launch, and what they read of the cosines is made before, where N <= 8192.
Similarity is the cosine, in float32. On the CPU what is not finite is refused; on an accelerator the scores that come
with the choice show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
from foveate.functional.steps import is_tabled, may_look, repeat, rows_of

_BLOCK = 1 << 22  # cells of a table that is built piece by piece (16 MiB)
_NORM_STEPS = 1 << 17
"""Of the largest norm: how finely norms are told apart."""
_NO_DISTANCE = 1e-6
"""A distance of cosines that float32 cannot tell from none: a large weight must not make one of it."""
_WITHIN = 1e-4
"""Part of its squared length a token must have outside the span of the chosen ones to count as new. In float32 the
rounding of the recurrence, amplified by the division by the root of this, stays below it."""


def max_min_diversity(visual: Tensor, budget: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens as far from one another as possible: DivPrune (arXiv 2503.02175), max-min diversity solved greedily.

    Distance is ``1 - cos``. The first token is the one whose nearest other token is farthest away; then, ``K - 1``
    times, the one whose nearest *chosen* token is (the paper's algorithm 1). O(N^2 D) time for the first and O(K N D)
    for the others, O(N D) memory; on an accelerator with N <= 8192 O(K N) for the others and O(N^2) memory. With a
    weight the first token is the same, and the others are those of the largest weight times distance to the nearest
    chosen token (Cen-Prune, arXiv 2608.30263, equation 7).

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
        cosines, closest = _closest_other(unit)
        distance = (1 - closest).clamp(min=0)
        if tokens <= budget:
            return everything(closest), distance
        share = None if weight is None else weight.float()

        def away(chosen: Tensor, likeness: Tensor) -> Tensor:
            """Of every token from each of those chosen; a weighted distance grows as the distance does."""
            apart = likeness.neg_()
            if share is not None:
                apart = torch.threshold_(apart.add_(1), _NO_DISTANCE, 0.0).mul_(share)
            return apart.scatter_(1, chosen.unsqueeze(-1), -math.inf)

        first = closest.argmin(dim=0, keepdim=True)
        away_from = rows_of(unit, away, cosines)
        others = farthest_first(away_from(first).clone(), away_from, budget - 1)
    return torch.cat([first, others]).sort().values, distance


def farthest_first(nearest: Tensor, away_from: Callable[[Tensor], Tensor], number: int) -> Tensor:
    """Tokens each of which is the farthest from its nearest among those chosen before it: (``number``,) int64.

    Args:
        nearest: (N,) each token's distance to the nearest one chosen, -infinity for these; it is written into.
        away_from: takes a (1,) token, returns (N,) every token's distance to it, -infinity for itself.
    """
    order = torch.zeros(number, dtype=torch.int64, device=nearest.device)

    def step(token: Tensor) -> None:
        torch.argmax(nearest, dim=0, keepdim=True, out=token)
        torch.minimum(nearest, away_from(token), out=nearest)

    repeat(step, number, order)
    return order


def conditional_dpp(visual: Tensor, relevance: Tensor, budget: int) -> Tensor:
    """Tokens that are relevant and differ: CDPruner (arXiv 2506.10967), greedy MAP inference of a conditional DPP.

    The kernel is ``diag(r) L diag(r)`` with ``L`` the cosines between tokens and ``r`` their relevance. Each step takes
    the token that makes the determinant of the chosen submatrix largest, by the incremental Cholesky factorisation of
    Chen et al. (arXiv 1709.05135). O(K N (D + K)) time, O(N (D + K)) memory; the kernel is built on an accelerator
    with N <= 8192 only, O(N^2 (D + K)) and O(N^2).

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
        # What ranks the tokens outside the span, and then those in it; -infinity once they are chosen.
        both = torch.stack([gain, weight - weight.amax() - 1])
        gain, last = both[0], both[1]
        factor = unit.new_zeros(budget, tokens)
        order = torch.zeros(budget, dtype=torch.int64, device=unit.device)
        done = torch.zeros_like(order[:1])  # how many are chosen
        kernel_of = rows_of(unit, lambda some, rows: rows.mul_(weight).mul_(weight.index_select(0, some).unsqueeze(-1)))

        def step(token: Tensor) -> None:
            score = torch.where(gain > within, gain, last)
            torch.argmax(score, dim=0, keepdim=True, out=token)
            before = factor[: int(done)] if may_look(done) else factor  # rows to come are zero
            rest = kernel_of(token) - before.index_select(1, token).squeeze(1) @ before
            # Below 0 in the span, where the token adds nothing: what is divided by infinity.
            length = torch.threshold_(score.index_select(0, token), 0.0, math.inf)
            row = rest.div_(length.sqrt_())
            factor.index_copy_(0, done, row.unsqueeze(0))
            gain.sub_(row.square())
            both.index_fill_(1, token, -math.inf)
            done.add_(1)

        repeat(step, budget, order)
    return order.sort().values


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
        the earlier token; norms are told apart to ``2 ** -17`` of the largest, so that rounding does not choose where
        an encoder ends with a norm of its own, and all tokens are as long.

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
        steps = (norm / norm.amax().clamp_min(torch.finfo(norm.dtype).tiny) * _NORM_STEPS).round()
        chosen = [descending(steps)[1][:pivots]]
        likeness = unit.index_select(0, chosen[0]) @ unit.T  # (P, N)
    taken = torch.zeros(len(unit), dtype=torch.bool, device=unit.device).index_fill_(0, chosen[0], True)
    share, more = divmod(budget - pivots, pivots)
    for pivot in range(pivots):
        wanted = share + (pivot < more)
        unlike = likeness[pivot].masked_fill(taken, math.inf).sort(stable=True).indices[:wanted]
        taken.index_fill_(0, unlike, True)
        chosen.append(unlike)
    return torch.cat(chosen).sort().values, norm


def _closest_other(unit: Tensor) -> tuple[Tensor | None, Tensor]:
    """The cosines of all pairs where they are worth holding, and each token's to the most similar other one.

    Of a token to itself it is -1.
    """
    tokens = len(unit)
    table = unit.new_empty(tokens, tokens) if is_tabled(unit) else None
    height, closest = max(1, _BLOCK // tokens), []
    for start in range(0, tokens, height):
        some = slice(start, start + height)
        likeness = unit[some] @ unit.T
        likeness.diagonal(offset=start).fill_(-1.0)
        closest.append(likeness.amax(dim=-1))
        if table is not None:
            table[some] = likeness
    return table, torch.cat(closest)
