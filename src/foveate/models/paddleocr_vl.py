"""PaddleOCR-VL: dynamic resolution, patches row by row through the encoder, merged behind it, M-RoPE positions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.models.encoded import Kept, Kind, Request
from foveate.models.packed import Grid
from foveate.models.packed_rope import PackedRopeFamily
from foveate.models.squares import packed_squares


class PaddleOcrVl(PackedRopeFamily):
    """``PaddleOCRVLForConditionalGeneration``."""

    title = "PaddleOCR-VL"
    model_types = ("paddleocr_vl",)
    tower_at = "visual.vision_model"
    blocks_at = "encoder.layers"
    attention_at = "self_attn"
    reader_at = "projector"  # behind the encoder's last norm
    pixel_axes = ("patches", "channels", "height", "width")
    checkpoints = {"paddleocr_vl": "PaddlePaddle/PaddleOCR-VL"}

    @property
    def side(self) -> int:
        return int(self.config.vision_config.spatial_merge_size)

    def features(self, inputs: Mapping[str, Any], request: Request, kind: Kind) -> Any:
        output = super().features(inputs, request, kind)
        if not torch.is_tensor(output.pooler_output):
            return output
        # Before 5.18, those of all images in one.
        grids = torch.as_tensor(inputs["image_grid_thw"], device="cpu")
        counts = (grids.prod(dim=1) // self.side**2).tolist()
        return BaseModelOutputWithPooling(pooler_output=output.pooler_output.split(counts))

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        output = super().package(kept, kind)
        if "mm_encoder_outputs" not in inspect.signature(self.base.forward).parameters:  # it would rather have one
            output.pooler_output = torch.cat(output.pooler_output)
        return output

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        return packed_squares(grids, self.side)
