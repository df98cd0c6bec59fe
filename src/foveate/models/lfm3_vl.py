"""LFM3-VL: dynamic resolution, an encoder of convolutions with attention between them, plain positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from foveate.models.frame_labels import frame_labels
from foveate.models.packed import PackedFamily


class Lfm3Vl(PackedFamily):
    """``Lfm3VlForConditionalGeneration``."""

    title = "LFM3-VL"
    model_types = ("lfm3_vl",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    saliency = "mean received attention, last layer that has some"
    checkpoints = {"lfm3_vl": "LiquidAI/LFM3-VL-2B"}

    def check(self) -> None:
        super().check()
        if not self._attending:
            raise ValueError(
                f"{self.title}: vision_config.layer_types={self.config.vision_config.layer_types} has no "
                "full_attention, so no saliency can be read"
            )

    @property
    def tower(self) -> Any:
        return self.base.vision_tower

    @property
    def blocks(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.tower.layers
        return layers

    @property
    def read_layer(self) -> int:
        """The last that is no convolution."""
        return self._attending[-1]

    @property
    def _attending(self) -> list[int]:
        return [n for n, kind in enumerate(self.config.vision_config.layer_types) if kind == "full_attention"]

    @property
    def attention(self) -> nn.Module:
        attention: nn.Module = self.blocks[self.read_layer].self_attn
        return attention

    @property
    def reader(self) -> nn.Module:
        projector: nn.Module = self.base.multi_modal_projector
        return projector

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times between a video's frames."""
        known = super().marks(ids)
        return known | frame_labels(ids, self.placeholder_ids["video"], known)
