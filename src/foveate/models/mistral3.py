"""Mistral 3 and LightOnOCR: Pixtral's encoder, its patches merged by squares; marks of rows are text and stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from foveate.models.encoded import EncodedImage, Request
from foveate.models.pixtral import encode_packed, row_marks
from foveate.models.towers import PIXTRAL, Tower, TowerFamily


class Mistral3(TowerFamily):
    """``Mistral3ForConditionalGeneration`` and ``MistralLarge4ForConditionalGeneration``."""

    title = "Mistral 3"
    model_types: ClassVar[tuple[str, ...]] = ("mistral3", "mistral_large4")
    checkpoints = {
        "mistral3": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistral_large4": "mistralai/Mistral-Large-4-1T-A52B",
    }
    image_inputs = ("pixel_values", "image_sizes")
    merge = "2x2"
    saliency = "mean received attention"

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, PIXTRAL)

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        return encode_packed(self.tower, inputs, request, side=self.config.spatial_merge_size)

    def marks(self, ids: Tensor) -> Tensor:
        return super().marks(ids) | row_marks(ids, self.image_token_id)


class LightOnOcr(Mistral3):
    """``LightOnOcrForConditionalGeneration``: no row ends in its prompts, and nothing to choose layers by."""

    title = "LightOnOCR"
    model_types = ("lighton_ocr",)
    checkpoints = {"lighton_ocr": "lightonai/LightOnOCR-1B-1025"}

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, PIXTRAL, ("vision_encoder", "vision_projection"))

    def marks(self, ids: Tensor) -> Tensor:
        return TowerFamily.marks(self, ids)
