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
    ranks,
    require_budget,
    require_finite,
    require_floating,
    require_scores,
    shape_of,
)

_TEXT_BLOCK = 1024  # text tokens scored at a time: a document beside a picture makes no table of its own length
_BLOCK = 1 << 22  # cells of the largest table that adafv builds at a time (24 MiB)


def text_to_image_attention(
    text: Tensor, visual: Tensor, scale: float = 100.0, *, text_mask: Tensor | None = None
) -> Tensor:
    """How strongly the text points at each visual token.

    ``A = softmax over the N visual tokens of scale * cos(text, visual)``, then the maximum over the T text
    tokens (AdaFV, arXiv 2501.09532). Computed in float32 whatever the inputs and autocast say, at a cost of O(T N D);
    the largest tensor made is (..., T, N), or (..., 1024, N) for a longer text.

    Args:
        text: (..., T, D) input embeddings of the LLM.
        visual: (..., N, D) projected visual tokens of one image, all its views. Either side may go without
            the batch dimensions: many questions on one image, one question on many.
        scale: inverse temperature of the softmax. Default 100.
        text_mask: (..., T) bool, True for the tokens that count (padding out, for one). Default: all of them.

    Returns:
        (..., N) float32 in (0, 1]. Where the mask leaves no token it is -inf (on the CPU: an error).

    Raises:
        TypeError: a dtype that is not floating; a mask that is not bool.
        ValueError: shapes that do not fit, no token, ``scale`` not positive; on CPU tensors also NaN or
            infinity, or a mask that leaves no text token. On accelerators, check the result with
            :func:`require_finite`.
    """
    require_floating(text=text, visual=visual)
    if text.ndim < 2 or visual.ndim < 2 or text.shape[-1] != visual.shape[-1]:
        raise ValueError(
            f"text (..., T, D) and visual (..., N, D) must share D, got {shape_of(text)} and {shape_of(visual)}"
        )
    if 0 in (text.shape[-2], visual.shape[-2], text.shape[-1]):
        raise ValueError(f"need text and visual tokens, got shapes {shape_of(text)} and {shape_of(visual)}")
    if text.ndim > 2 and visual.ndim > 2 and text.shape[:-2] != visual.shape[:-2]:
        raise ValueError(f"batch dimensions of text {shape_of(text)} and visual {shape_of(visual)} differ")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    if text_mask is not None:
        _require_mask(text_mask, text)

    with torch.autocast(visual.device.type, enabled=False):
        # Normalised before the product: dividing afterwards is cheaper, but then rounding, amplified by scale,
        # moves the scores by 4e-5 of their value against the golden files, and not by 2e-7.
        directions = torch.nn.functional.normalize(visual.float(), dim=-1)
        parts = []
        for start in range(0, text.shape[-2], _TEXT_BLOCK):
            some = slice(start, start + _TEXT_BLOCK)
            queries = torch.nn.functional.normalize(text[..., some, :].float(), dim=-1)
            attention = torch.softmax(scale * (queries @ directions.transpose(-1, -2)), dim=-1)
            if text_mask is not None:
                counts = text_mask[..., some].to(attention.device, non_blocking=True).unsqueeze(-1)
                attention = attention.masked_fill(~counts, -math.inf)
            parts.append(attention.amax(dim=-2))
    strongest = parts[0] if len(parts) == 1 else torch.stack(parts).amax(dim=0)
    # Whatever is not finite in the inputs leaves a NaN in its row of the softmax, so N values tell of N x D.
    if strongest.device.type == "cpu" and not bool(torch.isfinite(strongest).all()):
        require_finite(visual=visual.float())
        raise ValueError("NaN or infinity in text: nothing can be ranked by it")
    return strongest


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
    _require_masses(saliency=saliency, text_to_image=text_to_image)
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
    salient_mass = _masses(salient_values[..., :budget])[..., floor:]
    asked_mass = _masses(asked_values[..., :budget]).gather(-1, shares)
    product = (salient_mass * asked_mass).masked_fill(shares < floor, -1.0)
    best = product.argmax(dim=-1, keepdim=True)  # the first of equal ones
    k_s, k_t = best + floor, shares.gather(-1, best)
    kept = _positions((salient_rank < k_s) | (asked_rank < k_t), budget)
    return kept, k_s.squeeze(-1), k_t.squeeze(-1)


def adafv_released(cls_attention: Tensor, visual: Tensor, text: Tensor, budget: int) -> Tensor:
    """The tokens that the released AdaV code keeps, deviations from the paper included.

    For checking published numbers; :func:`adafv` is the method as published. See :func:`released_mixture`
    for the rule.

    Args:
        cls_attention: (..., V, P) attention of CLS to the P patches of each of the V views.
        visual: (..., V * P, D) projected tokens, view after view, nothing between them.
        text: (..., T, D) input embeddings of the text after the image.
        budget: K, 2 * V <= K <= V * P.

    Returns:
        (..., K') int64, ascending, **with repetitions**: a position that stands twice stands twice in the
        prompt. ``K' = 2 * V * floor(floor(K / 2) / V)``: the budget rounded down to a whole even number per
        view.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, a budget outside [2 * V, V * P]; on CPU tensors also NaN or
            infinity.
    """
    return released_mixture(cls_attention, text_to_image_attention(text, visual), budget)[0]


def released_mixture(cls_attention: Tensor, text_to_image: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture of :func:`adafv_released` from scores, with the shares. O(N log N).

    1. ``k = floor(floor(K / 2) / V)``; ``K' = 2 * k * V`` are kept, ``K' // 4`` at least from each side.
    2. Saliency's list has the top ``2 * k`` patches of every view, view after view; the position of patch p
       of view v is taken as ``p + v``, so nearly all of them fall in the base view.
    3. Saliency's floor is the head of that list, that is the base view's best first. What follows the floor
       is sorted by attention over all views. The text's list is sorted once; its floor is its head.
    4. The ``K' - 2 * (K' // 4)`` places beyond the floors are split where the product of the masses is
       largest, each mass counting only what lies beyond its floor; the first of equal products, in
       saliency's share, wins.
    5. The two lists are put together as they are, not made distinct, and sorted.

    Args:
        cls_attention: (..., V, P), >= 0.
        text_to_image: (..., V * P), >= 0.
        budget: K, 2 * V <= K <= V * P.

    Returns:
        kept (..., K') int64, ascending, with repetitions; ``k_s`` and ``k_t`` (...) int64, together K'.

    Raises:
        TypeError, ValueError: as for :func:`adafv_released`.
    """
    budget = require_budget(budget)
    if cls_attention.ndim < 2:
        raise ValueError(f"cls_attention must be (..., V, P), got {shape_of(cls_attention)}")
    views, patches = cls_attention.shape[-2:]
    require_scores(cls_attention=cls_attention.flatten(-2), text_to_image=text_to_image)
    _require_masses(cls_attention=cls_attention, text_to_image=text_to_image)
    if not 2 * views <= budget <= views * patches:
        raise ValueError(
            f"the released variant keeps an even number of tokens per view: with {views} views of {patches} "
            f"the budget must be in [{2 * views}, {views * patches}], got {budget}"
        )
    per_view = 2 * (budget // 2 // views)
    total = per_view * views
    floor = total // 4
    spare = total - 2 * floor

    values, positions = descending(cls_attention)
    positions = positions + torch.arange(views, device=positions.device).unsqueeze(-1)
    values, positions = values[..., :per_view].flatten(-2), positions[..., :per_view].flatten(-2)
    rest, order = descending(values[..., floor:])
    salient = torch.cat([positions[..., :floor], positions[..., floor:].gather(-1, order)], dim=-1)
    asked_values, asked = descending(text_to_image)

    salient_mass = _masses(rest[..., :spare])
    asked_mass = _masses(asked_values[..., floor : floor + spare]).flip(-1)
    k_s = (salient_mass * asked_mass).argmax(dim=-1, keepdim=True) + floor
    place = torch.arange(total, device=salient.device)
    kept = torch.where(place < k_s, salient, asked.gather(-1, (place - k_s).clamp(min=0)))
    return kept.sort(dim=-1).values, k_s.squeeze(-1), total - k_s.squeeze(-1)


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


def _masses(values: Tensor) -> Tensor:
    """(..., K) sorted values -> (..., K + 1): the sum of the first 0, 1, ..., K."""
    sums = values.cumsum(-1, dtype=accumulator(values.device))
    return torch.nn.functional.pad(sums, (1, 0))


def _positions(mask: Tensor, count: int) -> Tensor:
    """Where a (..., N) mask with ``count`` True per row is True: ``nonzero`` without its host sync."""
    seen = mask.cumsum(-1)
    wanted = torch.arange(1, count + 1, device=mask.device).expand(*mask.shape[:-1], count).contiguous()
    return torch.searchsorted(seen, wanted)


def _require_masses(**scores: Tensor) -> None:
    """Sums of scores are only comparable when no score is negative; seen where that takes no sync."""
    for name, tensor in scores.items():
        if tensor.device.type == "cpu" and bool((tensor < 0).any()):
            raise ValueError(f"{name} must not be negative: the mixture compares sums of scores")


def _require_mask(mask: Tensor, text: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"text_mask must be bool, got {mask.dtype}")
    if mask.shape != text.shape[:-1]:
        raise ValueError(f"text_mask {shape_of(mask)} does not fit text {shape_of(text)}")
    if mask.device.type == "cpu" and not bool(mask.any(dim=-1).all()):
        raise ValueError("text_mask leaves no text token")
