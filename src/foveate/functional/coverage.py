"""Tokens that stand for the whole image, or for each of its regions: pure functions of one image's tokens.

They take one image at a time, (N, D) without batch dimensions. Similarity is the cosine, in float32.
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
    rank_in_group,
    require_budget,
    require_length,
    require_not_negative,
    require_weights,
    shape_of,
)
from foveate.functional.mixture import top_k
from foveate.functional.steps import may_look, repeat

_BLOCK = 1 << 22  # cells of a table that is built piece by piece (16 MiB)
_CACHED = 1 << 19  # the same on a CPU, whose cache it stays in: 2 MiB, and twice as much in float64
_ROUNDING = 1e-12
"""Variance of cosines that float32 cannot tell from none."""
_NO_GAIN = 1e-9
"""What is left of a gain by float64's rounding when all of it is subtracted; cosines are ten times as rough."""


def saliency_coverage(visual: Tensor, saliency: Tensor, budget: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Salient tokens that together resemble the whole image: SCOPE (arXiv 2510.24214).

    A set covers token ``i`` by its largest cosine to it, nothing at first, and never less than nothing. Each step takes
    the token of the largest ``gain * saliency ** alpha``, where ``gain`` is what it adds to the coverage of all tokens
    together. O(N^2 (D + K)) time, on the CPU O(N^2 D + C N), where C is how often the chosen token most like some token
    changes; O(N^2) memory.

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
    require_weights(alpha=alpha)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        require_not_negative("it weighs the coverage", saliency=saliency)
        likeness = unit @ unit.T
    coverage = Coverage(likeness, unit.new_zeros(tokens))
    gain = coverage.gain
    alone = (gain / tokens).float()
    if tokens <= budget:
        return everything(saliency), alone
    weight = (saliency.float() ** alpha).to(gain.dtype)
    bar = torch.zeros_like(gain)  # -infinity for those taken
    order = torch.zeros(budget, dtype=torch.int64, device=unit.device)

    def choose(token: Tensor) -> None:
        torch.argmax(torch.addcmul(bar, gain, weight), dim=0, keepdim=True, out=token)
        bar.index_fill_(0, token, -math.inf)

    def step(token: Tensor) -> None:
        choose(token)
        coverage.add(token)

    repeat(step, budget - 1, order[:-1])
    choose(order[-1:])
    return order.sort().values, alone


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
    require_weights(beta=beta)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        if crop.dtype != torch.int64:
            raise TypeError(f"crop must be int64, got {crop.dtype}")
        if crop.shape != (tokens,):
            raise ValueError(f"crop must have one value for each of the {tokens} tokens, got {shape_of(crop)}")
        require_not_negative("crops share the budget by it", saliency=saliency)

        # One row of a table per crop, padded with token N, a zero vector.
        count = crop.new_zeros(crops).scatter_add(0, crop, torch.ones_like(crop))
        here = torch.arange(tokens, device=crop.device)
        place = crop * largest + rank_in_group(here, crop, count)
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
    rank = rank_in_group(descending(score)[1], crop, count)
    quotient = worth.index_select(0, crop).to(accumulator(crop.device)) / (2 * rank + 1)
    return top_k(quotient, budget), score


class Coverage:
    """What tokens add to a coverage that grows, in steps for :func:`foveate.functional.steps.repeat`.

    Args:
        likeness: (N, N).
        covered: (N,) at first; it is written into.
    """

    def __init__(self, likeness: Tensor, covered: Tensor) -> None:
        self.likeness, self.covered = likeness, covered
        self.gain = coverage_gain(likeness, covered)
        """(N,) float64, as :func:`coverage_gain`; it is written into."""
        self._reach = Reach(likeness) if Reach.fits(likeness) else None

    def add(self, token: Tensor) -> None:
        """Tokens are covered by a (1,) token too."""
        row, before = self.likeness.index_select(0, token)[0], self.covered
        if self._reach is not None:
            torch.maximum(before, row, out=self.covered)
            self._reach.gain(self.covered, token, self.gain)
            return
        covered = torch.maximum(before, row)
        self.gain.copy_(coverage_gain(self.likeness, covered, before, self.gain))
        self.covered.copy_(covered)


class Reach:
    """How much is covered with each of N columns more: ``sum_i max(L_ij, covered_i)``.

    A step of it goes through the whole table twice and launches little, as suits an accelerator. What a column adds
    is what it reaches beyond a column that is in the coverage: nothing is exactly nothing, since columns are summed up
    in one order, in float64.

    Args:
        cells: (R, N) float32.
    """

    def __init__(self, cells: Tensor) -> None:
        self._blocks = torch.split(cells, max(1, _BLOCK // cells.shape[1]))
        self._room = torch.empty_like(self._blocks[0])

    @staticmethod
    def fits(cells: Tensor) -> bool:
        return not may_look(cells) and cells.dtype == torch.float32 and accumulator(cells.device) == torch.float64

    def gain(self, covered: Tensor, token: Tensor, into: Tensor) -> None:
        """(N,) float64 what each column adds to a coverage (R,) that the column ``token``, (1,), is part of."""
        total, start = None, 0
        for block in self._blocks:
            least = covered[start : start + len(block)].unsqueeze(-1)
            cells = torch.maximum(block, least, out=self._room[: len(block)])
            part = cells.sum(dim=0, dtype=into.dtype)
            total, start = part if total is None else total.add_(part), start + len(block)
        assert total is not None
        torch.sub(total, total.index_select(0, token), out=into)


def coverage_gain(
    likeness: Tensor, covered: Tensor, before: Tensor | None = None, gain: Tensor | None = None
) -> Tensor:
    """(N,) what each token adds to a coverage: the sum over tokens i of max(0, likeness to i - covered_i).

    Args:
        likeness: (N, N).
        covered: (N,).
        before: a smaller coverage whose gain is known. On the CPU, where values may be looked at, only the tokens that
            are covered better than then are summed over.
        gain: that gain.
    """
    real = accumulator(likeness.device)
    cpu = likeness.device.type == "cpu"
    height = max(1, (_CACHED if cpu else _BLOCK) // len(covered))
    if not cpu or before is None or gain is None:
        gain = torch.zeros(len(covered), dtype=real, device=likeness.device)
        for block, least in zip(torch.split(likeness, height), torch.split(covered, height), strict=True):
            gain += (block - least.unsqueeze(-1)).relu_().sum(dim=0, dtype=real)
        return gain
    better = (covered > before).nonzero().squeeze(1)
    for some in torch.split(better, height):
        low, high = before.index_select(0, some).unsqueeze(-1), covered.index_select(0, some).unsqueeze(-1)
        between = likeness.index_select(0, some).clamp_(low, high)
        gain = gain - (between.sum(dim=0, dtype=real) - low.sum(dtype=real))
    return torch.where(gain < _NO_GAIN, 0.0, gain)
