"""LFM3-VL: dynamic resolution, an encoder of convolutions with attention between them, plain positions."""

from __future__ import annotations

from foveate.models.packed import PackedFamily


class Lfm3Vl(PackedFamily):
    """``Lfm3VlForConditionalGeneration``."""

    title = "LFM3-VL"
    model_types = ("lfm3_vl",)
    tower_at = "vision_tower"
    blocks_at = "layers"
    attention_at = "self_attn"
    reader_at = "multi_modal_projector"
    timed = True
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
    def read_layer(self) -> int:
        """The last that is no convolution."""
        return self._attending[-1]

    @property
    def _attending(self) -> list[int]:
        return [n for n, kind in enumerate(self.config.vision_config.layer_types) if kind == "full_attention"]
