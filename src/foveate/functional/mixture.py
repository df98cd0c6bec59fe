"""Saliency, the question, and their mixture (AdaFV): pure functions, without loops over tokens.

Sources: AdaFV (arXiv 2501.09532) and AdaV (Findings of ACL 2025) for the mixture, FasterVLM
(arXiv 2412.01818) for selection by the attention of CLS alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    descending,
    everything,
    positions,
    ranks,
    require_budget,
    require_scores,
)

_BLOCK = 1 << 22  # cells of the largest table that adafv builds at a time (24 MiB)


def top_k(scores: Tensor, budget: int) -> Tensor:
    """The ``budget`` tokens of the highest score, in their original order. O(N log N).

    With the attention of CLS as scores this is FasterVLM's criterion (arXiv 2412.01818).

    Args:
        scores: (..., N).
        budget: K >= 1; with N <= K everything is kept.

    Returns:
        (..., min(K, N)) int64, ascending, distinct. Ties go to the earlier token.

    Raises:
        TypeError: scores that are not floating; a budget that is no int.
        ValueError: no token, ``budget`` < 1; on CPU tensors also NaN or infinity.
    """
    budget = require_budget(budget)
    require_scores(scores=scores)
    _, order = descending(scores)
    return order[..., :budget].sort(dim=-1).values


def fixed_mix(saliency: Tensor, text_to_image: Tensor, budget: int) -> Tensor:
    """Half by saliency, half by the text, without weighing them: the control for :func:`adafv`. O(N log N).

    The ``ceil(budget / 2)`` most salient tokens first; then, of the others, those the text points at most.

    Args:
        saliency: (..., N).
        text_to_image: (..., N).
        budget: K >= 1; with N <= K everything is kept.

    Returns:
        (..., min(K, N)) int64, ascending, distinct. Ties go to the earlier token.

    Raises:
        TypeError: scores that are not floating; a budget that is no int.
        ValueError: shapes that differ, no token, ``budget`` < 1; on CPU tensors also NaN or infinity.
    """
    budget = require_budget(budget)
    require_scores(saliency=saliency, text_to_image=text_to_image)
    tokens = saliency.shape[-1]
    if tokens <= budget:
        return everything(saliency)
    salient = descending(saliency)[1][..., : (budget + 1) // 2]
    remaining = text_to_image.scatter(-1, salient, -math.inf)
    asked = descending(remaining)[1][..., : budget // 2]
    return torch.cat([salient, asked], dim=-1).sort(dim=-1).values


def adafv(saliency: Tensor, text_to_image: Tensor, budget: int, min_share: float = 0.25) -> Tensor:
    """The tokens that AdaFV keeps: a mixture of saliency and text, weighed anew for every image and question.

    :func:`adafv_split` without the shares; see there for the rule, arguments, errors and cost.

    Returns:
        (..., min(budget, N)) int64, ascending, distinct.
    """
    return adafv_split(saliency, text_to_image, budget, min_share)[0]


def adafv_split(
    saliency: Tensor, text_to_image: Tensor, budget: int, min_share: float = 0.25
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens that AdaFV keeps, and how saliency and text share the budget.

    AdaFV (arXiv 2501.09532), section on SACMAM; AdaV (Findings of ACL 2025) calls it SCAR.

    Both scores are sorted, descending, ties by position. With ``M_s(k)`` and ``M_t(k)`` the sums of the k
    largest, the union of the top ``k_s`` by saliency and the top ``k_t`` by text is kept for the pair that

    - gives a union of exactly K distinct tokens (the two sets may overlap, then ``k_s + k_t > K``),
    - leaves each side at least ``floor(min_share * K)``, and
    - has the largest ``sqrt(M_s(k_s) * M_t(k_t))``.

    For one ``k_s`` only the largest ``k_t`` counts: it has the same union and at least the same mass. Among
    equal products the smallest ``k_s`` wins. A ``k_s`` from the floor to K minus the floor always has such a
    ``k_t``; beyond that the overlap decides.

    Cost: two sorts of N, and O(K^2) comparisons and additions to find ``k_t`` for every ``k_s``, in blocks
    of rows that take at most about 24 MiB per batch row. Sums are float64 (float32 on a device without it):
    as long as they are exact, equal products are equal on every device.

    Args:
        saliency: (..., N), >= 0.
        text_to_image: (..., N), >= 0.
        budget: K >= 1, the same for the whole batch; with N <= K everything is kept.
        min_share: part of the budget each side has at least, in [0, 0.5]. Default 0.25.

    Returns:
        kept (..., min(K, N)) int64, ascending, distinct; ``k_s`` (...) and ``k_t`` (...) int64. With N <= K
        both are N.

    Raises:
        TypeError: scores that are not floating; a budget that is no int.
        ValueError: shapes that differ, no token, ``budget`` < 1, ``min_share`` outside [0, 0.5]; on CPU
            tensors also NaN, infinity, or a negative score. On accelerators :func:`require_finite` is the
            caller's.
    """
    budget = require_budget(budget)
    if not 0.0 <= min_share <= 0.5:  # NaN fails too
        raise ValueError(f"min_share must be in [0, 0.5], got {min_share!r}")
    require_scores(saliency=saliency, text_to_image=text_to_image)
    require_masses(saliency=saliency, text_to_image=text_to_image)
    tokens = saliency.shape[-1]
    if tokens <= budget:
        whole = torch.full(saliency.shape[:-1], tokens, dtype=torch.int64, device=saliency.device)
        return everything(saliency), whole, whole.clone()

    floor = math.floor(min_share * budget)
    salient_values, salient_order = descending(saliency)
    asked_values, asked_order = descending(text_to_image)
    salient_rank, asked_rank = ranks(salient_order), ranks(asked_order)

    # One column per k_s = floor, floor + 1, ..., K.
    shares = _text_shares(salient_rank.gather(-1, asked_order[..., :budget]), floor, budget)
    salient_mass = masses(salient_values[..., :budget])[..., floor:]
    asked_mass = masses(asked_values[..., :budget]).gather(-1, shares)
    product = (salient_mass * asked_mass).masked_fill(shares < floor, -1.0)
    best = product.argmax(dim=-1, keepdim=True)  # the first of equal ones
    k_s, k_t = best + floor, shares.gather(-1, best)
    kept = positions((salient_rank < k_s) | (asked_rank < k_t), budget)
    return kept, k_s.squeeze(-1), k_t.squeeze(-1)


def _text_shares(rank: Tensor, floor: int, budget: int) -> Tensor:
    """The largest ``k_t`` whose union with the top ``k_s`` has exactly K tokens, for k_s = floor, ..., K.

    The union has ``k_s + #{tokens of the top k_t by text that are not in the top k_s by saliency}`` tokens.
    That count grows with k_t one by one, and the (K + 1)-th token by text never fits, so ``k_t`` is how many
    prefixes of the top K by text fit.

    Args:
        rank: (..., K) rank by saliency of the K tokens the text points at most, the strongest first.
        floor: the smallest k_s.
        budget: K.

    Returns:
        (..., K - floor + 1) int64.
    """
    rank = rank.to(torch.int32)
    shares = []
    height = max(1, _BLOCK // budget)
    for start in range(floor, budget + 1, height):
        k_s = torch.arange(start, min(start + height, budget + 1), dtype=torch.int32, device=rank.device)
        new = (rank.unsqueeze(-2) >= k_s.unsqueeze(-1)).cumsum(-1, dtype=torch.int32)
        shares.append((new <= (budget - k_s).unsqueeze(-1)).sum(-1))
    return shares[0] if len(shares) == 1 else torch.cat(shares, dim=-1)


def masses(values: Tensor) -> Tensor:
    """(..., K) sorted values -> (..., K + 1): the sum of the first 0, 1, ..., K."""
    sums = values.cumsum(-1, dtype=accumulator(values.device))
    return torch.nn.functional.pad(sums, (1, 0))


def require_masses(**scores: Tensor) -> None:
    """Sums of scores are only comparable when no score is negative; seen where that takes no sync."""
    for name, tensor in scores.items():
        if tensor.device.type == "cpu" and float(tensor.amin()) < 0:
            raise ValueError(f"{name} must not be negative: the mixture compares sums of scores")
