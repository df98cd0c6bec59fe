"""Tokens by three principles at once: relevance, coverage, diversity. A pure function of one image's tokens."""

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
    require_known,
    require_length,
    require_not_negative,
    require_weights,
)
from foveate.functional.coverage import Coverage, coverage_gain
from foveate.functional.steps import repeat

SCALES = ("range", "mean")
_ROUNDING = 1e-6
"""Differences of cosines that float32 cannot tell from none; divided by their own mean they would decide."""


def optimal_preservation(
    visual: Tensor,
    saliency: Tensor,
    budget: int,
    coverage: float = 0.5,
    diversity: float = 0.5,
    scale: str = "range",
) -> tuple[Tensor, Tensor]:
    """Salient tokens that cover the image and differ from one another: TOPS before the LLM (arXiv 2606.27161).

    The first is the most salient. Then, ``K - 1`` times, of the tokens i that are left, U, the one of the largest
    ``a_i + diversity * d_i + coverage * c_i`` (the paper's algorithm 1): ``a`` is saliency;
    ``d_i = 1 - max over chosen k of cos(i, k)``;
    ``c_i = sum over j in U of max(0, cos(i, j) - max over chosen k of cos(j, k))``. Each of the three is scaled over U
    at every step: to [0, 1] by least and most, as section 4.1 says, or divided by its mean, as algorithm 1 says. What
    is all but equal, or on the second scale all but zero, counts nothing. O(N^2 (D + K)) time, on the CPU
    O(N^2 D + C N), where C is how often the chosen token most like some token changes; O(N^2) memory.

    Args:
        visual: (N, D) tokens of one image.
        saliency: (N,) >= 0.
        budget: K >= 1; with N <= K everything is kept.
        coverage: weight of coverage, >= 0 (the paper's lambda). Default 0.5, the paper's for all models.
        diversity: weight of diversity, >= 0 (the paper's alpha). Default 0.5, the paper's for all models.
        scale: ``"range"`` (default) or ``"mean"``.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the mean coverage of all tokens by each token alone, (N,)
        float32 in [0, 1]. Ties go to the earlier token.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, a negative weight, an unknown ``scale``; on CPU
            tensors also NaN, infinity or a negative saliency.
    """
    budget = require_budget(budget)
    require_weights(coverage=coverage, diversity=diversity)
    require_known(SCALES, scale=scale)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        require_not_negative("it is scaled by its mean", saliency=saliency)
        likeness = unit @ unit.T
    alone = (coverage_gain(likeness, unit.new_zeros(tokens)) / tokens).float()
    if tokens <= budget:
        return everything(saliency), alone
    scaled = _by_mean if scale == "mean" else _by_range
    relevance = saliency.to(accumulator(saliency.device))
    token = descending(saliency)[1][:1]
    if budget == 1:
        return token, alone
    growing = Coverage(likeness, likeness.index_select(0, token)[0])
    taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device).index_fill_(0, token, True)
    one = relevance.new_ones(1)
    nothing = torch.cat([one * 0.0, one * _ROUNDING, one * (_ROUNDING * tokens)]).unsqueeze(-1)
    share = torch.cat([one, one * diversity, one * coverage]).unsqueeze(-1)
    order = torch.zeros(budget - 1, dtype=torch.int64, device=unit.device)

    def choose(chosen: Tensor) -> None:
        apart = torch.sub(one, growing.covered).clamp_(min=0)
        parts = scaled(torch.stack([relevance, apart, growing.gain]), taken, nothing).mul_(share)
        score = (parts[0] + parts[1]).add_(parts[2])
        torch.argmax(score.masked_fill_(taken, -math.inf), dim=0, keepdim=True, out=chosen)
        taken.index_fill_(0, chosen, True)

    def step(chosen: Tensor) -> None:
        choose(chosen)
        growing.add(chosen)

    repeat(step, budget - 2, order[:-1])
    choose(order[-1:])
    return torch.cat([token, order]).sort().values, alone


# Of (3, N) values, each row with its (3, 1) ``nothing``; what is divided by infinity is 0.


def _by_mean(values: Tensor, taken: Tensor, nothing: Tensor) -> Tensor:
    """Divided by the mean of those not taken; 0 where that is ``nothing``."""
    mean = values.masked_fill(taken, 0.0).sum(dim=1, keepdim=True) / (~taken).sum()
    return values / mean.masked_fill_(mean <= nothing, math.inf)


def _by_range(values: Tensor, taken: Tensor, nothing: Tensor) -> Tensor:
    """From 0 to 1 over those not taken; 0 where they differ by ``nothing``."""
    low = values.masked_fill(taken, math.inf).amin(dim=1, keepdim=True)
    extent = values.masked_fill(taken, -math.inf).amax(dim=1, keepdim=True) - low
    return (values - low).div_(extent.masked_fill_(extent <= nothing, math.inf))
