"""Qwen-VL from 2 to 3.5 and what is made like it: dynamic resolution, merged patches, M-RoPE, images and videos."""

from __future__ import annotations

from typing import ClassVar

import transformers
from packaging.version import Version

from foveate.models.deepstack import DeepStackFamily
from foveate.models.packed_rope import PackedRopeFamily
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


class Qwen35(PackedRopeFamily):
    """``Qwen3_5ForConditionalGeneration``, its MoE variant and Qwen4-Exp: Qwen3-VL's tower, without DeepStack."""

    title = "Qwen3.5"
    model_types = ("qwen3_5", "qwen3_5_moe", "qwen4_exp")
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    timed = True
    checkpoints = {
        "qwen3_5": "Qwen/Qwen3.5-9B",
        "qwen3_5_moe": "Qwen/Qwen3.5-35B-A3B",
        "qwen4_exp": "Qwen/Qwen4-Exp",
    }


class Qwen3Vl(DeepStackFamily, PackedRopeFamily):
    """``Qwen3VLForConditionalGeneration``, its MoE variant, and Cosmos 3's reasoner, which is the same model: DeepStack
    planes go along with the tokens."""

    title = "Qwen3-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe", "cosmos3_omni")
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    timed = True
    checkpoints = {
        "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3_vl_moe": "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "cosmos3_omni": "nvidia/Cosmos3-Nano (its reasoner)",
    }


class CohereCompass(Qwen3Vl):
    """``CohereCompassForConditionalGeneration``: Qwen3-VL's encoder and DeepStack before a Cohere 2."""

    title = "Cohere Compass"
    model_types = ("cohere_compass",)
    checkpoints = {"cohere_compass": "CohereLabs/North-Micro-Vision-Instruct"}


class Cosmos3Edge(PackedRopeFamily):
    """``Cosmos3EdgeForConditionalGeneration``: a packed SigLIP 2, merged by a projector behind it."""

    title = "Cosmos 3 Edge"
    model_types = ("cosmos3_edge",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    timed = True
    blocks_at = "encoder.layers"
    attention_at = "self_attn"
    reader_at = "projector"  # behind the encoder's last norm
    since = "5.24"
    checkpoints = {"cosmos3_edge": "nvidia/Cosmos3-Edge"}

    def check(self) -> None:
        super().check()
        if Version(transformers.__version__) < Version("5.24"):
            raise ValueError(
                f"{self.title}: in transformers {transformers.__version__} its LLM takes no plain positions "
                "beside those of three dimensions, which a pruned prompt needs: install transformers 5.24 or newer"
            )
