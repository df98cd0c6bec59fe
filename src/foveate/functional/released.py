"""AdaV's released code, deviations from its paper included: pure functions, without loops over tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.functional.common import descending, require_budget, require_scores, shape_of
from foveate.functional.mixture import masses, require_masses
from foveate.functional.text import text_to_image_attention


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
    require_masses(cls_attention=cls_attention, text_to_image=text_to_image)
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

    salient_mass = masses(rest[..., :spare])
    asked_mass = masses(asked_values[..., floor : floor + spare]).flip(-1)
    k_s = (salient_mass * asked_mass).argmax(dim=-1, keepdim=True) + floor
    place = torch.arange(total, device=salient.device)
    kept = torch.where(place < k_s, salient, asked.gather(-1, (place - k_s).clamp(min=0)))
    return kept.sort(dim=-1).values, k_s.squeeze(-1), total - k_s.squeeze(-1)
