"""Which visual tokens to keep: pure functions of tensors, without models, host syncs or loops over tokens.

Every function takes leading batch dimensions (written ``...``) and any floating dtype, on CPU and GPU.
Half-precision scores are upcast before they are compared, sums are accumulated in float64, and ties go to
the earlier token, so that CPU and GPU, single and batched, agree.

Sources: AdaFV (arXiv 2501.09532) and AdaV (Findings of ACL 2025) for the mixture, FasterVLM
(arXiv 2412.01818) for selection by the attention of CLS alone.
"""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

__all__ = [
    "adafv",
    "adafv_released",
    "adafv_split",
    "fixed_mix",
    "released_mixture",
    "require_finite",
    "text_to_image_attention",
    "top_k",
    "uniform_grid",
]

_GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
_BLOCK = 1 << 22  # cells of the largest table that adafv builds at a time (24 MiB)


def require_finite(**tensors: Tensor) -> None:
    """Raises unless every value of every tensor is finite; one host sync for all of them on an accelerator.

    The functions of this module check what lies on the CPU by themselves. On an accelerator they do not,
    since that would stall it: their callers check there, once per call.

    Args:
        tensors: by the name the error should give them, any shape, any floating dtype.

    Raises:
        ValueError: NaN or infinity; the message names the tensors.
    """
    finite = [torch.isfinite(tensor).all() for tensor in tensors.values()]
    if not finite:
        return
    gathered = torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()
    broken = [name for name, fine in zip(tensors, gathered, strict=True) if not fine]
    if broken:
        raise ValueError(f"NaN or infinity in {', '.join(broken)}: nothing can be ranked by it")


def text_to_image_attention(
    text: Tensor, visual: Tensor, scale: float = 100.0, *, text_mask: Tensor | None = None
) -> Tensor:
    """How strongly the text points at each visual token.

    ``A = softmax over the N visual tokens of scale * cos(text, visual)``, then the maximum over the T text
    tokens (AdaFV, arXiv 2501.09532). Computed in float32 whatever the inputs and autocast say; the largest
    tensor made is (..., T, N), the cost O(T N D).

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
    _require_floating(text=text, visual=visual)
    if text.ndim < 2 or visual.ndim < 2 or text.shape[-1] != visual.shape[-1]:
        raise ValueError(
            f"text (..., T, D) and visual (..., N, D) must share D, got {_shape(text)} and {_shape(visual)}"
        )
    if 0 in (text.shape[-2], visual.shape[-2], text.shape[-1]):
        raise ValueError(f"need text and visual tokens, got shapes {_shape(text)} and {_shape(visual)}")
    if text.ndim > 2 and visual.ndim > 2 and text.shape[:-2] != visual.shape[:-2]:
        raise ValueError(f"batch dimensions of text {_shape(text)} and visual {_shape(visual)} differ")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    if text_mask is not None:
        _require_mask(text_mask, text)

    with torch.autocast(visual.device.type, enabled=False):
        # Normalised before the product: dividing afterwards is cheaper, but then rounding, amplified by scale,
        # moves the scores by 4e-5 of their value against the golden files, and not by 2e-7.
        directions = torch.nn.functional.normalize(visual.float(), dim=-1)
        queries = torch.nn.functional.normalize(text.float(), dim=-1)
        cosine = queries @ directions.transpose(-1, -2)
        attention = torch.softmax(scale * cosine, dim=-1)
    if text_mask is not None:
        counts = text_mask.to(attention.device, non_blocking=True).unsqueeze(-1)
        attention = attention.masked_fill(~counts, -math.inf)
    strongest = attention.amax(dim=-2)
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
    budget = _require_budget(budget)
    _require_scores(scores=scores)
    _, order = _descending(scores)
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
    budget = _require_budget(budget)
    _require_scores(saliency=saliency, text_to_image=text_to_image)
    tokens = saliency.shape[-1]
    if tokens <= budget:
        return _everything(saliency)
    salient = _descending(saliency)[1][..., : (budget + 1) // 2]
    remaining = text_to_image.scatter(-1, salient, -math.inf)
    asked = _descending(remaining)[1][..., : budget // 2]
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
    budget = _require_budget(budget)
    if not 0.0 <= min_share <= 0.5:  # NaN fails too
        raise ValueError(f"min_share must be in [0, 0.5], got {min_share!r}")
    _require_scores(saliency=saliency, text_to_image=text_to_image)
    _require_masses(saliency=saliency, text_to_image=text_to_image)
    tokens = saliency.shape[-1]
    if tokens <= budget:
        whole = torch.full(saliency.shape[:-1], tokens, dtype=torch.int64, device=saliency.device)
        return _everything(saliency), whole, whole.clone()

    floor = math.floor(min_share * budget)
    salient_values, salient_order = _descending(saliency)
    asked_values, asked_order = _descending(text_to_image)
    salient_rank, asked_rank = _ranks(salient_order), _ranks(asked_order)

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
    budget = _require_budget(budget)
    if cls_attention.ndim < 2:
        raise ValueError(f"cls_attention must be (..., V, P), got {_shape(cls_attention)}")
    views, patches = cls_attention.shape[-2:]
    _require_scores(cls_attention=cls_attention.flatten(-2), text_to_image=text_to_image)
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

    values, positions = _descending(cls_attention)
    positions = positions + torch.arange(views, device=positions.device).unsqueeze(-1)
    values, positions = values[..., :per_view].flatten(-2), positions[..., :per_view].flatten(-2)
    rest, order = _descending(values[..., floor:])
    salient = torch.cat([positions[..., :floor], positions[..., floor:].gather(-1, order)], dim=-1)
    asked_values, asked = _descending(text_to_image)

    salient_mass = _masses(rest[..., :spare])
    asked_mass = _masses(asked_values[..., floor : floor + spare]).flip(-1)
    k_s = (salient_mass * asked_mass).argmax(dim=-1, keepdim=True) + floor
    place = torch.arange(total, device=salient.device)
    kept = torch.where(place < k_s, salient, asked.gather(-1, (place - k_s).clamp(min=0)))
    return kept.sort(dim=-1).values, k_s.squeeze(-1), total - k_s.squeeze(-1)


def uniform_grid(view: Tensor, row: Tensor, column: Tensor, budget: int) -> Tensor:
    """``budget`` tokens spread evenly over the grids of all views. O(N log N).

    Every view gets its proportional part. Within a view the tokens nearest to a golden-ratio lattice are
    taken: kept tokens lie N / K columns apart in a row, and every row is shifted against the one above by
    the golden part of that. The golden ratio being the number worst approximated by fractions, no K lines
    them up in columns or diagonals: two points of the lattice are never nearer than 81 % of the distance in
    the best possible (hexagonal) one. A plain stride over the flattened tokens falls into columns whenever
    N / K divides the row. A single token is the centre.

    The grids need not be complete (unpadded views), nor of one size, nor stored in any order.

    Args:
        view: (..., N) int64, which view a token belongs to, in [0, N).
        row: (..., N) int64, its row in that view.
        column: (..., N) int64, its column in that view.
        budget: K >= 1; with N <= K everything is kept.

    Returns:
        (..., min(K, N)) int64, ascending, distinct; it depends on nothing but where the tokens lie.

    Raises:
        TypeError: coordinates that are not int64; a budget that is no int.
        ValueError: shapes that differ, no token, ``budget`` < 1.
    """
    budget = _require_budget(budget)
    for name, tensor in {"view": view, "row": row, "column": column}.items():
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
        if tensor.shape != view.shape or tensor.ndim < 1 or tensor.shape[-1] == 0:
            raise ValueError(
                f"view, row and column must be (..., N) of one shape, got {_shape(view)}, {_shape(row)}, "
                f"{_shape(column)}"
            )
    tokens = view.shape[-1]
    if tokens <= budget:
        return _everything(view)

    # Per view: how many tokens, and where its centre is. There are at most N views.
    none = torch.zeros_like(view)
    count = none.scatter_add(-1, view, torch.ones_like(view))
    middle = [
        coordinate - (none.scatter_add(-1, view, coordinate) // count.clamp(min=1)).gather(-1, view)
        for coordinate in (row, column)
    ]
    real = _accumulator(view.device)
    phase = middle[0].to(real) / _GOLDEN_RATIO + middle[1].to(real) * (budget / tokens)
    distance = (phase - phase.round()).abs()

    # Rank by distance within each view, as a fraction of the view: the K smallest share K proportionally.
    by_distance = distance.sort(dim=-1, stable=True).indices
    by_view = view.gather(-1, by_distance).sort(dim=-1, stable=True)
    order = by_distance.gather(-1, by_view.indices)
    first = count.cumsum(-1) - count
    rank = torch.arange(tokens, device=view.device) - first.gather(-1, by_view.values)
    fraction = (rank.to(real) + 0.5) / count.gather(-1, by_view.values)
    fraction = torch.empty_like(fraction).scatter(-1, order, fraction)
    return fraction.sort(dim=-1, stable=True).indices[..., :budget].sort(dim=-1).values


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


def _descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted values (half precision upcast) and positions, ties by position."""
    if scores.dtype != torch.float64:
        scores = scores.float()
    values, order = scores.sort(dim=-1, descending=True, stable=True)
    return values, order


def _ranks(order: Tensor) -> Tensor:
    """The inverse of a permutation of the last dimension."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def _masses(values: Tensor) -> Tensor:
    """(..., K) sorted values -> (..., K + 1): the sum of the first 0, 1, ..., K."""
    sums = values.cumsum(-1, dtype=_accumulator(values.device))
    return torch.nn.functional.pad(sums, (1, 0))


def _accumulator(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _positions(mask: Tensor, count: int) -> Tensor:
    """Where a (..., N) mask with ``count`` True per row is True: ``nonzero`` without its host sync."""
    seen = mask.cumsum(-1)
    wanted = torch.arange(1, count + 1, device=mask.device).expand(*mask.shape[:-1], count).contiguous()
    return torch.searchsorted(seen, wanted)


def _everything(like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], device=like.device).expand(like.shape).contiguous()


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _require_budget(budget: int) -> int:
    if isinstance(budget, bool) or not isinstance(budget, numbers.Integral):
        raise TypeError(f"budget must be an int, got {budget!r} ({type(budget).__name__})")
    if budget < 1:
        raise ValueError(f"budget={budget} keeps no token: give an int >= 1")
    return int(budget)


def _require_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be of a floating dtype, got {tensor.dtype}")


def _require_scores(**scores: Tensor) -> None:
    """(..., N) floating tensors of one shape with N >= 1; finite where that can be seen without a sync."""
    _require_floating(**scores)
    names, shapes = " and ".join(scores), {tensor.shape for tensor in scores.values()}
    if len(shapes) > 1:
        raise ValueError(f"{names} must have one shape, got {' and '.join(map(_shape, scores.values()))}")
    shape = shapes.pop()
    if len(shape) < 1 or shape[-1] == 0:
        raise ValueError(f"{names} must be (..., N) with N >= 1, got {tuple(shape)}")
    require_finite(**{name: tensor for name, tensor in scores.items() if tensor.device.type == "cpu"})


def _require_masses(**scores: Tensor) -> None:
    """Sums of scores are only comparable when no score is negative; seen where that takes no sync."""
    for name, tensor in scores.items():
        if tensor.device.type == "cpu" and bool((tensor < 0).any()):
            raise ValueError(f"{name} must not be negative: the mixture compares sums of scores")


def _require_mask(mask: Tensor, text: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"text_mask must be bool, got {mask.dtype}")
    if mask.shape != text.shape[:-1]:
        raise ValueError(f"text_mask {_shape(mask)} does not fit text {_shape(text)}")
    if mask.device.type == "cpu" and not bool(mask.any(dim=-1).all()):
        raise ValueError("text_mask leaves no text token")
