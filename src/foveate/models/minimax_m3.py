"""MiniMax M3: Qwen-VL's patches, an LLM whose sparse layers choose blocks of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.models.frame_labels import frame_labels
from foveate.models.packed import Grid, PackedFamily


class MiniMaxM3(PackedFamily):
    """``MiniMaxM3SparseForConditionalGeneration``.

    A sparse layer takes a key's block from its place in the cache and a query's from its position: they agree only
    where positions leave nothing out.
    """

    title = "MiniMax M3"
    model_types = ("minimax_m3_vl",)
    positions = ("compact",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    checkpoints: ClassVar = {"minimax_m3_vl": "MiniMaxAI/MiniMax-M3"}

    def check(self) -> None:
        if not hasattr(self.tower, "merge_temporal"):  # which came with the borders between images
            raise ValueError(
                f"{self.title}: in this version of transformers its encoder lets all images of a call see each other, "
                "so what an image becomes depends on the others: use a newer one (5.24 is known to be right)"
            )

    @property
    def tower(self) -> Any:
        return self.base.vision_tower

    @property
    def blocks(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.tower.layers
        return layers

    @property
    def attention(self) -> nn.Module:
        attention: nn.Module = self.blocks[self.read_layer].self_attn
        return attention

    @property
    def reader(self) -> nn.Module:
        projector: nn.Module = self.base.multi_modal_projector
        return projector

    def segments(self, grids: Sequence[Grid]) -> list[int]:
        """The frames that are encoded together see each other."""
        return [times * rows * columns for times, rows, columns in grids]

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times before a video's frames."""
        known = super().marks(ids)
        return known | frame_labels(ids, self.placeholder_ids["video"], known)
