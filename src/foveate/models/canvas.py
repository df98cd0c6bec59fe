"""Pictures fitted into a canvas of crops, with padding around them that is not in the prompt (LLaVA-NeXT's)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.tokens import Geometry


@dataclass(frozen=True)
class Canvas:
    """How one image was cut: the resolution it was fitted into, and where its pixels lie on it.

    Args:
        image: (height, width) of the original, pixels.
        grid: (rows, columns) of crops.
        fitted: (height, width) of the resized image on the canvas, pixels.
        offset: (top, left) padding before it, pixels.
    """

    image: tuple[int, int]
    grid: tuple[int, int]
    fitted: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Places:
    """Where the patches of an image stand among its n placeholders, and lie in the picture.

    Args:
        patches: (N,) int64: which placeholders carry one.
        order: (N,) int64 on the CPU: which of all views' patches it is.
        geometry: of the N.
        slots, lines: see ``EncodedImage``.
    """

    patches: Tensor
    order: Tensor
    geometry: Geometry
    slots: Tensor
    lines: Tensor
