"""ERNIE-4.5-VL: dynamic resolution, squares merged to tokens and, in videos, pairs of frames, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.arguments import setting
from foveate.models.packed import Grid
from foveate.models.packed_rope import PackedRopeFamily


class ErnieVl(PackedRopeFamily):
    """``Ernie4_5_VLMoeForConditionalGeneration``: its experts are told which tokens are visual."""

    title = "ERNIE-4.5-VL"
    model_types = ("ernie4_5_vl_moe",)
    tower_at = "vision_tower"
    reader_at = "resampler_model"
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    per_token = {"moe_mm_token_type_ids": 0}
    merge = "2x2, in videos 2x2x2"
    checkpoints = {"ernie4_5_vl_moe": "baidu/ERNIE-4.5-VL-28B-A3B-PT"}

    def refuse_generation(self, arguments: Mapping[str, Any]) -> None:
        if arguments.get("moe_mm_token_type_ids") is None:
            return
        for name, asked in (
            ("use_cache=False", setting(self.model, arguments, "use_cache") is False),
            ("prompt_lookup_num_tokens", setting(self.model, arguments, "prompt_lookup_num_tokens") is not None),
        ):
            if asked:
                raise ValueError(
                    f"{self.title}: with {name}, stock transformers hands the experts more tokens than "
                    "moe_mm_token_type_ids it has for them, and fails: leave it out."
                )

    def tokens_of(self, grid: Grid) -> Grid:
        frames, rows, columns = super().tokens_of(grid)
        return (frames + 1) // 2, rows, columns

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """A video's token is made of the same square in two frames; an image's of a square, -1 for the other frame."""
        unit = self.side**2
        found, first = [], 0
        for frames, rows, columns in grids:
            squares = torch.arange(frames * rows * columns, device="cpu").view(frames, -1, unit) + first
            first += squares.numel()
            if frames == 1:
                found.append(torch.cat([squares[0], torch.full_like(squares[0], -1)], dim=1))
            else:
                found.append(torch.cat([squares[0::2], squares[1::2]], dim=2).flatten(0, 1))
        return torch.cat(found)
