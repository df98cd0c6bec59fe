"""A budget for every run of tokens, as HoloV's released code has it: a pure function of one image's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    descending,
    directions,
    everything,
    rank_in_group,
    ranks,
    require_budget,
    require_length,
    require_not_negative,
    require_weights,
)

_LOUDER = 1000.0
_AWAY_FROM_ZERO = 1e-6
"""Added to what the released code divides by."""


def attention_in_runs(
    visual: Tensor, saliency: Tensor, budget: int, runs: int = 16, beta: float = 0.09
) -> tuple[Tensor, Tensor]:
    """The most salient tokens of every run, runs sharing the budget: HoloV (arXiv 2510.02912) as released.

    The N tokens, in their order, are cut into ``runs`` pieces, the first ``N mod runs`` of them one token longer. In a
    piece a token scores ``1000 a + beta * scale * var``: ``a`` its saliency; ``var`` the sum of ``(c - m) ** 2`` over
    the n tokens of the piece, divided by ``n - 1``, where c is the cosine to another and 0 to itself, and m the sum of
    c divided by ``n - 1``; ``scale`` the mean of ``1000 a`` divided by the mean of ``var``. The piece scores the mean.
    That mean is ``1000 (1 + beta)`` times the mean of ``a``, up to 1e-6 that keeps the division from zero: the variance
    hardly decides anything. Each piece gets the whole part of its share of the budget, and what is left over goes, one
    token each, to the pieces of the largest scores. In a piece the most salient stay.

    What a piece cannot hold the released code fills up with zero vectors; here the most salient tokens that are left
    over stay instead, whatever their piece, so the budget is exact. A piece of a single token, which there counts its
    saliency without the factor 1000, counts like any other. O(N^2 / runs * D).

    Args:
        visual: (N, D) tokens of one image, views one after the other.
        saliency: (N,) >= 0.
        budget: K >= 1; with N <= K everything is kept.
        runs: pieces, >= 1; with N < runs every token is one. Default 16, as released for LLaVA.
        beta: weight of the variance, >= 0. Default 0.09, as released.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the scores, (N,) float32. Ties go to the earlier token and to
        the earlier piece.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, ``runs`` < 1, a negative ``beta``; on CPU tensors
            also NaN, infinity or a negative saliency.
    """
    budget = require_budget(budget)
    if runs < 1:
        raise ValueError(f"runs must be >= 1, got {runs!r}")
    require_weights(beta=beta)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        require_not_negative("pieces share the budget by it", saliency=saliency)
        real = accumulator(unit.device)
        loud = _LOUDER * saliency.to(real)
        short, longer = divmod(tokens, runs)
        split = longer * (short + 1)
        scored, worths = [], []
        for start, end, length in ((0, split, short + 1), (split, tokens, short)):
            if start < end:
                score, worth = _score(unit[start:end], loud[start:end], length, beta)
                scored.append(score)
                worths.append(worth)
        score, worth = torch.cat(scored), torch.cat(worths)
    if tokens <= budget:
        return everything(saliency), score.float()
    share = (worth / (worth.sum() + _AWAY_FROM_ZERO) * budget).floor().long()
    share = share + (ranks(descending(worth)[1]) < budget - share.sum())
    piece = torch.arange(tokens, device=unit.device)
    piece = torch.where(piece < split, piece // (short + 1), longer + (piece - split) // max(1, short))
    order = descending(saliency)[1]
    count = short + (torch.arange(len(worth), device=unit.device) < longer).long()
    inside = rank_in_group(order, piece, count) < share.index_select(0, piece)
    # Those inside first, then by saliency.
    outside = (~inside).index_select(0, order).to(torch.uint8).sort(stable=True).indices
    return order.index_select(0, outside[:budget]).sort().values, score.float()


def _score(unit: Tensor, loud: Tensor, length: int, beta: float) -> tuple[Tensor, Tensor]:
    """Scores of tokens in pieces of one length, and the pieces' means."""
    salient = loud.view(-1, length)
    if length == 1:
        return loud, loud
    rows = unit.view(-1, length, unit.shape[1])
    itself = torch.eye(length, dtype=torch.bool, device=unit.device)
    likeness = (rows @ rows.transpose(-1, -2)).masked_fill_(itself, 0.0).to(loud.dtype)
    mean = likeness.sum(dim=-1, keepdim=True) / (length - 1)
    variance = (likeness - mean).square_().sum(dim=-1) / (length - 1)
    scale = salient.mean(dim=-1) / (variance.mean(dim=-1) + _AWAY_FROM_ZERO)
    score = salient + beta * scale.unsqueeze(-1) * variance
    return score.flatten(), score.mean(dim=-1)
