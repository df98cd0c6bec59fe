"""DeepSeek-VL: SigLIP on pictures padded to a square, in the 7B model beside SAM on the same at a higher resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.models.encoded import EncodedImage, Request, grid_geometry
from foveate.models.squares import SquareFamily, clipped
from foveate.models.towers import Tower
from foveate.tokens import Geometry

LEVEL = 0.025
"""Padding has the mean colour, cut to whole 8-bit levels: normalised, it is less than a level (1 / 255 over a deviation
of 0.2 at least) from zero."""


class DeepseekVl(SquareFamily):
    """``DeepseekVLForConditionalGeneration``: a token per patch."""

    title = "DeepSeek-VL"
    model_types = ("deepseek_vl",)
    checkpoints = {"deepseek_vl": "deepseek-community/deepseek-vl-1.3b-chat"}

    encoder: ClassVar[str] = "siglip_vision_model"
    padded: ClassVar[str] = "pixel_values"
    """The input in which padding is seen."""

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, {self.encoder: "received"}, ("vision_model", "aligner"))

    def geometries(self, inputs: Mapping[str, Any]) -> list[Geometry]:
        """Rows or columns of the mean colour at both edges are padding, which the processor puts in equal parts around
        a picture that is no square."""
        pixels = inputs[self.padded]
        size, side = pixels.shape[-1], self.tower.side
        seen = size * self.tower.covered / inputs["pixel_values"].shape[-1]
        bare = (pixels.abs() < LEVEL).all(dim=1)
        lines = torch.stack([bare.all(dim=2), bare.all(dim=1)], dim=1).cpu()  # one read for all
        found = []
        for rows, columns in lines:
            (top, bottom), (left, right) = _padding(rows), _padding(columns)
            if top + bottom >= left + right:  # it is in one direction
                left = right = 0
            else:
                top = bottom = 0
            box = torch.tensor([[-left, -top, seen - left, seen - top]], device="cpu")
            picture = (size - top - bottom, size - left - right)
            found.append(clipped(grid_geometry([(side, side)], box, picture, pixels.device)))
        return found


class DeepseekVlHybrid(DeepseekVl):
    """``DeepseekVLHybridForConditionalGeneration``: what SAM sees at a place is joined to what SigLIP sees there."""

    title = "DeepSeek-VL (hybrid)"
    model_types = ("deepseek_vl_hybrid",)
    checkpoints = {"deepseek_vl_hybrid": "deepseek-community/deepseek-vl-7b-chat"}
    image_inputs = ("pixel_values", "high_res_pixel_values")
    padded = "high_res_pixel_values"  # the other is made of it
    saliency = "mean received attention of SigLIP, last layer"

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        if inputs.get("high_res_pixel_values") is None:
            raise ValueError(
                f"{self.title} needs high_res_pixel_values beside pixel_values: pass all that the processor returned"
            )
        return super().encode(inputs, request)


def _padding(bare: Tensor) -> tuple[int, int]:
    """How many lines of (S,) are padding before and after the picture; none where there is nothing else."""
    filled = (~bare).nonzero()[:, 0]
    if not len(filled):
        return 0, 0
    before, after = int(filled[0]), len(bare) - 1 - int(filled[-1])
    before = min(before, after)
    return before, min(after, before + 1) if before else 0
