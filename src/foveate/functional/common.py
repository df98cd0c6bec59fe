"""What the functions share: checks of what they are given, and orders in which ties go to the earlier token."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 1 << 22  # values that are normalised at a time (16 MiB)


def require_finite(**tensors: Tensor) -> None:
    """Raises unless every value of every tensor is finite; one host sync for all of them on an accelerator.

    The functions of this package check what lies on the CPU by themselves. On an accelerator they do not,
    since that would stall it: their callers check there, once per call.

    Args:
        tensors: by the name the error should give them, any shape, any floating dtype.

    Raises:
        ValueError: NaN or infinity; the message names the tensors.
    """
    # NaN is both the smallest and the largest, and looking for these makes no copy as isfinite does.
    names = [name for name, tensor in tensors.items() if tensor.numel()]
    if not names:
        return
    device = tensors[names[0]].device
    ends = torch.stack([end.to(device) for name in names for end in tensors[name].aminmax()])
    finite = torch.isfinite(ends).tolist()
    broken = [name for name, *fine in zip(names, finite[::2], finite[1::2], strict=True) if not all(fine)]
    if broken:
        raise ValueError(f"NaN or infinity in {', '.join(broken)}: nothing can be ranked by it")


def everything(like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], device=like.device).expand(like.shape).contiguous()


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def require_budget(budget: int) -> int:
    if isinstance(budget, bool) or not isinstance(budget, numbers.Integral):
        raise TypeError(f"budget must be an int, got {budget!r} ({type(budget).__name__})")
    if budget < 1:
        raise ValueError(f"budget={budget} keeps no token: give an int >= 1")
    return int(budget)


def require_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be of a floating dtype, got {tensor.dtype}")


def require_scores(**scores: Tensor) -> None:
    """(..., N) floating tensors of one shape with N >= 1; finite where that can be seen without a sync."""
    require_floating(**scores)
    names, shapes = " and ".join(scores), {tensor.shape for tensor in scores.values()}
    if len(shapes) > 1:
        raise ValueError(f"{names} must have one shape, got {' and '.join(map(shape_of, scores.values()))}")
    shape = shapes.pop()
    if len(shape) < 1 or shape[-1] == 0:
        raise ValueError(f"{names} must be (..., N) with N >= 1, got {tuple(shape)}")
    require_finite(**{name: tensor for name, tensor in scores.items() if tensor.device.type == "cpu"})


def require_not_negative(why: str, **scores: Tensor) -> None:
    """No negative value, where that can be seen without a sync; ``why`` ends the error's sentence."""
    for name, tensor in scores.items():
        if tensor.device.type == "cpu" and bool((tensor < 0).any()):
            raise ValueError(f"{name} must not be negative: {why}")


def require_weights(**options: float) -> None:
    """Numbers that are finite and not negative."""
    for name, value in options.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and >= 0, got {value!r}")


def require_positive(**options: float) -> None:
    """Numbers that are finite and above 0."""
    for name, value in options.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")


def require_known(known: Sequence[str], **options: str) -> None:
    """Options that are among the values known."""
    for name, value in options.items():
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted values (half precision upcast) and positions, ties by position."""
    if scores.dtype != torch.float64:
        scores = scores.float()
    values, order = scores.sort(dim=-1, descending=True, stable=True)
    return values, order


def ranks(order: Tensor) -> Tensor:
    """The inverse of a permutation of the last dimension."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def rank_in_group(order: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """(N,) each token's place, from 0, among the tokens of its group in a given order.

    Args:
        order: (N,) int64, a permutation.
        group: (N,) int64 in [0, G).
        count: (G,) int64, how many tokens each group has.
    """
    by_group = order.index_select(0, group.index_select(0, order).sort(stable=True).indices)
    first = count.cumsum(0) - count
    return ranks(by_group) - first.index_select(0, group)


def accumulator(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def positions(mask: Tensor, count: int) -> Tensor:
    """Where a (..., N) mask with ``count`` True per row is True: ``nonzero`` without its host sync."""
    seen = mask.cumsum(-1)
    wanted = torch.arange(1, count + 1, device=mask.device).expand(*mask.shape[:-1], count).contiguous()
    return torch.searchsorted(seen, wanted)


def require_vectors(**vectors: Tensor) -> None:
    """(N, D) floating tensors of one image; finite where that can be seen without a sync."""
    require_floating(**vectors)
    for name, tensor in vectors.items():
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise ValueError(f"{name} must be (N, D) with N, D >= 1, got {shape_of(tensor)}")
    require_finite(**{name: tensor for name, tensor in vectors.items() if tensor.device.type == "cpu"})


def unit_rows(vectors: Tensor) -> Tensor:
    """(..., D) vectors as float32 unit vectors, zeros as they are."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def directions(visual: Tensor, name: str = "visual") -> Tensor:
    """(N, D) vectors of one image as float32 unit vectors, zeros as they are; checked where that takes no sync."""
    require_vectors(**{name: visual})
    if visual.dtype == torch.float32:
        return unit_rows(visual)
    # Beside the result no whole copy in float32 is held.
    unit = torch.empty(visual.shape, dtype=torch.float32, device=visual.device)
    height = max(1, _BLOCK // visual.shape[1])
    for start in range(0, len(visual), height):
        unit[start : start + height] = unit_rows(visual[start : start + height])
    return unit


def require_length(tokens: int, **scores: Tensor) -> None:
    """One finite score per token."""
    require_scores(**scores)
    for name, tensor in scores.items():
        if tensor.shape != (tokens,):
            raise ValueError(f"{name} must have one value for each of the {tokens} tokens, got {shape_of(tensor)}")
