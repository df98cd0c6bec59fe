"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: Qwen-VL's encoders beside one for audio, which passes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models.deepstack import DeepStackFamily
from foveate.models.encoded import Rope
from foveate.models.packed_rope import PackedRopeFamily
from foveate.models.windowed import WindowedFamily


class OmniFamily(PackedRopeFamily):
    """What both share: positions that are read from the marks in a prompt, with times in seconds, and audio."""

    video_inputs = ("pixel_values_videos", "video_grid_thw", "video_second_per_grid")

    @staticmethod
    def inner(model: Any) -> Any:
        """Until 5.19 the model itself."""
        return model.model if hasattr(model.model, "get_image_features") else model

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        super().refuse(inputs)
        if inputs.get("use_audio_in_video"):
            raise ValueError(
                f"{self.title}: use_audio_in_video=True puts a video's sound between its frames, which is not "
                "supported: leave it out and pass the sound as audio of its own, or call without pruner"
            )

    @property
    def structure_token_ids(self) -> frozenset[int]:
        """Also what stands for audio, and around it: no text that guides."""
        names = ("audio_token_id", "audio_start_token_id", "audio_end_token_id")
        values = (getattr(self.config, name, None) for name in names)
        return super().structure_token_ids | {int(value) for value in values if value is not None}

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        lengths, heard = arguments.get("audio_feature_lengths"), arguments.get("feature_attention_mask")
        given = {
            "image_grid_thw": arguments.get("image_grid_thw"),
            "video_grid_thw": arguments.get("video_grid_thw"),
            "audio_seqlens": lengths if heard is None else heard.sum(dim=-1),
            "second_per_grids": arguments.get("video_second_per_grid"),
        }
        there = {name: torch.as_tensor(one, device="cpu") for name, one in given.items() if one is not None}
        positions, deltas = self.base.get_rope_index(input_ids=ids, attention_mask=mask.long(), **there)
        return Rope(positions, deltas.flatten() + mask.sum(dim=1))


class Qwen25Omni(WindowedFamily, OmniFamily):
    """``Qwen2_5OmniThinkerForConditionalGeneration``."""

    title = "Qwen2.5-Omni"
    model_types = ("qwen2_5_omni_thinker",)
    checkpoints = {
        "qwen2_5_omni_thinker": "Qwen/Qwen2.5-Omni-7B (its thinker: Qwen2_5OmniThinkerForConditionalGeneration)"
    }


class Qwen3Omni(DeepStackFamily, OmniFamily):
    """``Qwen3OmniMoeThinkerForConditionalGeneration``."""

    title = "Qwen3-Omni"
    model_types = ("qwen3_omni_moe_thinker",)
    checkpoints = {
        "qwen3_omni_moe_thinker": (
            "Qwen/Qwen3-Omni-30B-A3B-Instruct (its thinker: Qwen3OmniMoeThinkerForConditionalGeneration)"
        )
    }
