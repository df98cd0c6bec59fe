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
from foveate.functional.coverage import coverage_gain

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
    covered = likeness.index_select(0, token)[0]
    gain = coverage_gain(likeness, covered)
    taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device).index_fill_(0, token, True)
    chosen = [token]
    while len(chosen) < budget:
        apart = (1 - covered.to(gain.dtype)).clamp(min=0)
        score = scaled(relevance, taken, 0.0)
        score = score + diversity * scaled(apart, taken, _ROUNDING)
        score = score + coverage * scaled(gain, taken, _ROUNDING * tokens)
        token = score.masked_fill(taken, -math.inf).argmax(dim=0, keepdim=True)
        taken.index_fill_(0, token, True)
        chosen.append(token)
        before, covered = covered, torch.maximum(covered, likeness.index_select(0, token)[0])
        if len(chosen) < budget:
            gain = coverage_gain(likeness, covered, before, gain)
    return torch.cat(chosen).sort().values, alone


def _by_mean(values: Tensor, taken: Tensor, nothing: float) -> Tensor:
    """Divided by the mean of those not taken; 0 where that is ``nothing``."""
    mean = values.masked_fill(taken, 0.0).sum() / (~taken).sum()
    return torch.where(mean > nothing, values / torch.where(mean > nothing, mean, 1.0), 0.0)


def _by_range(values: Tensor, taken: Tensor, nothing: float) -> Tensor:
    """From 0 to 1 over those not taken; 0 where they differ by ``nothing``."""
    low = values.masked_fill(taken, math.inf).amin()
    extent = values.masked_fill(taken, -math.inf).amax() - low
    return torch.where(extent > nothing, (values - low) / torch.where(extent > nothing, extent, 1.0), 0.0)
