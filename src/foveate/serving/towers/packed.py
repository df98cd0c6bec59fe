"""Patches of all images in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveate.serving.towers.base import Arguments, Batches, pick, pick_parts


class Packed(Batches):
    """Qwen-VL: the patches of all images in one tensor, and the grid of each."""

    def _patches(self, given: Arguments) -> list[int]:
        return [t * h * w for t, h, w in given["image_grid_thw"].tolist()]

    def sizes(self, given: Arguments) -> list[int]:
        return [count // self.family.side**2 for count in self._patches(given)]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        return {
            **given,
            "pixel_values": pick_parts(given["pixel_values"], self._patches(given), places),
            "image_grid_thw": pick(given["image_grid_thw"], places),
        }

    def attention(self, model: Any) -> Any:
        return model.visual.blocks[self.family.read_layer].attn.attn

    def reader(self, model: Any) -> Any:
        # The norm that is the first thing in it: vLLM calls some mergers past their own hooks.
        merger = model.visual.merger
        return merger.ln_q if hasattr(merger, "ln_q") else merger.norm


class Convolved(Packed):
    """GLM-V: likewise, with a convolution in front of the merger."""

    def reader(self, model: Any) -> Any:
        return model.visual.downsample
