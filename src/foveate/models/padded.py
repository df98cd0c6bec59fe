"""Encoders whose views are lists of patches, each filled up behind its own to one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def require_patches(title: str, name: str, pixels: Any, beside: str, positions: Any, last: int) -> None:
    """Raises ValueError unless pixels are (views, patches, values) and what stands beside them has an entry for each.

    Args:
        title: of the family, for the message.
        name, pixels: the argument and what it holds.
        beside, positions: likewise.
        last: length of the last axis of ``positions``.
    """
    if positions is None:
        raise ValueError(f"{title} needs {beside} beside {name}: pass all that the processor returned")
    if not torch.is_tensor(pixels) or pixels.ndim != 3 or len(positions) != len(pixels) or positions.shape[-1] != last:
        found = tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__
        raise ValueError(
            f"{title} takes {name} as one tensor (views, patches, values) and {beside} with as many entries of {last}, "
            f"got {found} and {tuple(positions.shape)}"
        )


def unpadded(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """What takes (views, patches, d) to the patches that are there, one view behind the other.

    Args:
        lengths: how many every view has.
    """

    def patches_of(given: Tensor) -> Tensor:
        return torch.cat([view[:length] for view, length in zip(given, lengths, strict=True)])

    return patches_of
