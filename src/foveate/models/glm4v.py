"""GLM-4.1V: dynamic resolution, squares of patches made one by a convolution, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.models.packed import PackedRopeFamily


class Glm4v(PackedRopeFamily):
    """``Glm4vForConditionalGeneration`` and its MoE variant (GLM-4.5V)."""

    title = "GLM-4.1V"
    model_types = ("glm4v", "glm4v_moe")
    checkpoints: ClassVar[Mapping[str, str]] = {
        "glm4v": "zai-org/GLM-4.1V-9B-Thinking",
        "glm4v_moe": "zai-org/GLM-4.5V",
    }
    joins_rows = True

    @property
    def reader(self) -> nn.Module:
        """The convolution that merges squares of patches, behind the encoder's last norm."""
        convolution: nn.Module = self.tower.downsample
        return convolution

    @staticmethod
    def patches_of(given: Tensor) -> Tensor:
        """From (squares, d, rows, columns)."""
        return given.permute(0, 2, 3, 1)

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        if inputs.get("pixel_values_videos") is not None or inputs.get("video_grid_thw") is not None:
            raise ValueError(
                f"{self.title}: videos are not supported: their frames stand under the images' placeholder id, between "
                "times written out as text, so they cannot be told apart from images. Pass frames as images, or call "
                "without pruner."
            )
