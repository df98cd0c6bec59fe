"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: dynamic resolution, merged patches, M-RoPE positions, images and videos."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.modelling_files import beside
from foveate.models.encoded import Kept, Kind, grid_places
from foveate.models.frame_labels import frame_labels
from foveate.models.packed import Grid, PackedRopeFamily


class Qwen2Vl(PackedRopeFamily):
    """``Qwen2VLForConditionalGeneration``."""

    title = "Qwen2-VL"
    model_types = ("qwen2_vl",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")


class Qwen25Vl(PackedRopeFamily):
    """``Qwen2_5_VLForConditionalGeneration``: attention in windows, but for a few layers."""

    title = "Qwen2.5-VL"
    model_types = ("qwen2_5_vl",)
    video_inputs = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    saliency = "mean received attention, last layer that sees the whole image"

    def check(self) -> None:
        super().check()
        if not self._whole:
            raise ValueError(
                f"{self.title}: vision_config.fullatt_block_indexes={self.base.visual.fullatt_block_indexes} "
                f"names none of the {len(self.blocks)} layers, so none sees the whole image and no saliency can be read"
            )

    @property
    def read_layer(self) -> int:
        """The last layer that is not confined to windows."""
        return max(self._whole)

    @property
    def _whole(self) -> list[int]:
        """Layers that see the whole image; stock passes over indexes that no layer has."""
        named = self.base.visual.fullatt_block_indexes
        return [layer for layer in range(len(self.blocks)) if layer in named]

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """The encoder sees the merged squares window by window; where each has gone is worked out as it does."""
        vision = self.config.vision_config
        across = vision.window_size // self.side // vision.patch_size
        order, first = [], 0
        for frames, height, width in grids:
            rows, columns = height // self.side, width // self.side
            line, column = grid_places(frames * rows, columns)
            window = (line // rows * rows + line % rows // across) * columns + column // across
            order.append(first + window.argsort(stable=True))
            first += window.numel()
        place = torch.cat(order).argsort()
        unit = self.side**2
        return place[:, None] * unit + torch.arange(unit, device="cpu")


class Qwen3Vl(PackedRopeFamily):
    """``Qwen3VLForConditionalGeneration`` and its MoE variant: DeepStack planes go along with the tokens."""

    title = "Qwen3-VL"
    model_types = ("qwen3_vl", "qwen3_vl_moe")
    video_inputs = ("pixel_values_videos", "video_grid_thw")

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times between a video's frames."""
        known = super().marks(ids)
        return known | frame_labels(ids, self.placeholder_ids["video"], known)

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        depth = len(self.base.visual.deepstack_visual_indexes)
        planes: list[Any] = [[one.planes[level] for one in kept] for level in range(depth)]
        # Since 5.18, which takes encoded images from outside, a plane is a list of one tensor per image.
        if "mm_encoder_outputs" not in inspect.signature(self.base.forward).parameters:
            planes = [torch.cat(plane) for plane in planes]
        output = beside(self.base, "BaseModelOutputWithDeepstackFeatures")
        return output(pooler_output=[one.features for one in kept], deepstack_features=planes)
