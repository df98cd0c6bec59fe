"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: dynamic resolution, merged patches, M-RoPE positions, images and videos."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.attention import beside
from foveate.models.encoded import Kept, Kind
from foveate.models.frame_labels import frame_labels
from foveate.models.packed import PackedRopeFamily
from foveate.models.windowed import WindowedFamily


class Qwen2Vl(PackedRopeFamily):
    """``Qwen2VLForConditionalGeneration``."""

    title = "Qwen2-VL"
    model_types = ("qwen2_vl",)
    checkpoints = {"qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct"}
    video_inputs = ("pixel_values_videos", "video_grid_thw")


class Qwen25Vl(WindowedFamily, PackedRopeFamily):
    """``Qwen2_5_VLForConditionalGeneration``: attention in windows, but for a few layers."""

    title = "Qwen2.5-VL"
    model_types = ("qwen2_5_vl",)
    checkpoints = {"qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct"}
    video_inputs = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


class TimedRopeFamily(PackedRopeFamily):
    """What families share that write a time before every frame of a video, with marks around it."""

    video_inputs = ("pixel_values_videos", "video_grid_thw")

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times between a video's frames."""
        known = super().marks(ids)
        return known | frame_labels(ids, self.placeholder_ids["video"], known)


class Qwen35(TimedRopeFamily):
    """``Qwen3_5ForConditionalGeneration`` and its MoE variant: Qwen3-VL's tower, without DeepStack."""

    title = "Qwen3.5"
    model_types = ("qwen3_5", "qwen3_5_moe")
    checkpoints = {"qwen3_5": "Qwen/Qwen3.5-9B", "qwen3_5_moe": "Qwen/Qwen3.5-35B-A3B"}


class Qwen3Vl(TimedRopeFamily):
    """``Qwen3VLForConditionalGeneration`` and its MoE variant: DeepStack planes go along with the tokens."""

    title = "Qwen3-VL"
    model_types = ("qwen3_vl", "qwen3_vl_moe")
    checkpoints = {
        "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3_vl_moe": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    }

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        depth = len(self.base.visual.deepstack_visual_indexes)
        planes: list[Any] = [[one.planes[level] for one in kept] for level in range(depth)]
        # Since 5.18, which takes encoded images from outside, a plane is a list of one tensor per image.
        if "mm_encoder_outputs" not in inspect.signature(self.base.forward).parameters:
            planes = [torch.cat(plane) for plane in planes]
        output = beside(self.base, "BaseModelOutputWithDeepstackFeatures")
        return output(pooler_output=[one.features for one in kept], deepstack_features=planes)
