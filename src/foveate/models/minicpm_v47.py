"""MiniCPM-V 4.7: the views of 4.6, with positions of three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models.encoded import Rope
from foveate.models.minicpm_v import MiniCpmV


class MiniCpmV47(MiniCpmV):
    """``MiniCPMV4_7ForConditionalGeneration``: positions on a canvas (M-RoPE), which kept tokens keep."""

    title = "MiniCPM-V 4.7"
    model_types = ("minicpmv4_7",)
    positions = ("original",)
    checkpoints = {"minicpmv4_7": "openbmb/MiniCPM-V-4.7-1B"}

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        sizes = arguments.get("target_sizes")
        if types is None:
            if sizes is not None:
                raise ValueError(
                    f"{self.title} needs mm_token_type_ids beside target_sizes: pass all that the processor returned"
                )
            types = torch.zeros_like(ids)
        positions, deltas = self.base.get_rope_index(
            ids,
            mm_token_type_ids=types,
            target_sizes=None if sizes is None else torch.as_tensor(sizes, device="cpu"),
            downsample_mode=arguments.get("downsample_mode"),
            attention_mask=mask.long(),
        )
        return Rope(positions, deltas.flatten() + mask.sum(dim=1))
