"""Encoders that pack patches, before LLMs whose positions have three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models.encoded import Rope
from foveate.models.packed import PackedFamily
from foveate.models.stock import accepted


class PackedRopeFamily(PackedFamily):
    """Packed families with positions of three dimensions (M-RoPE), which kept tokens keep."""

    positions = ("original",)

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        grids = {
            name: torch.as_tensor(arguments[name], device="cpu")
            for name in ("image_grid_thw", "video_grid_thw")
            if arguments.get(name) is not None
        }
        if types is None:
            if grids:
                raise ValueError(
                    f"{self.title} needs mm_token_type_ids: without them stock transformers silently numbers images "
                    "like text. Pass all that the processor returned."
                )
            types = torch.zeros_like(ids)
        seconds = arguments.get("second_per_grid_ts")
        stock = self.base.get_rope_index
        given = accepted(stock, {**grids, "second_per_grid_ts": seconds})
        try:
            positions, deltas = stock(input_ids=ids, mm_token_type_ids=types, attention_mask=mask.long(), **given)
        except (StopIteration, RuntimeError) as error:  # it walks through runs of types and grids, side by side
            shapes = {name: grid.tolist() for name, grid in grids.items()}
            raise ValueError(
                f"{self.title}: stock transformers cannot number this prompt: the runs of visual tokens that "
                f"mm_token_type_ids tell of are not those of {shapes}. The tokens of every picture and frame must "
                "stand in one run, with other tokens between two of them, as the model's own processor writes them"
            ) from error
        return Rope(positions, deltas.flatten() + mask.sum(dim=1))
