"""GLM-4.1V: dynamic resolution, squares of patches made one by a convolution, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.models.qwen_vl import PackedVisionFamily


class Glm4v(PackedVisionFamily):
    """``Glm4vForConditionalGeneration`` and its MoE variant (GLM-4.5V)."""

    title = "GLM-4.1V"
    model_types = ("glm4v", "glm4v_moe")
    joins_rows = True

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        if inputs.get("pixel_values_videos") is not None or inputs.get("video_grid_thw") is not None:
            raise ValueError(
                f"{self.title}: videos are not supported: their frames stand under the images' placeholder id, between "
                "times written out as text, so they cannot be told apart from images. Pass frames as images, or call "
                "without pruner."
            )
