"""Views of one size, an image each: Gemma 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.serving import hooks
from foveate.serving.towers.base import Arguments, Batches, pick


class Squares(Batches):
    """Gemma 3: every image one square."""

    def sizes(self, given: Arguments) -> list[int]:
        return [(self.family.tower.side // self.family.factor) ** 2] * len(given["num_patches"])

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        return {name: pick(values, places) for name, values in given.items()}

    def outputs(self, streams: Sequence[Tensor]) -> Tensor:
        """(images, tokens, D)."""
        return torch.stack(list(streams))

    def written(self, processor: Any, prompt: Sequence[int], images: int) -> Sequence[int]:
        """Blank lines stand around every image, and may be one token with those that are there already."""
        return hooks.blank_lines(processor, prompt, images, self.family.config.boi_token_index)

    def attention(self, model: Any) -> Any:
        return model.vision_tower.vision_model.encoder.layers[-1].self_attn.attn

    def reader(self, model: Any) -> Any:
        return model.multi_modal_projector
