"""Inkling 2: images of any size, padded to whole tokens, a class token before each, relative distances in the LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foveate.models.packed import Grid, PackedFamily


class Inkling2(PackedFamily):
    """``Inkling2ForConditionalGeneration`` and ``Inkling2LoopForConditionalGeneration``.

    The grid counts tokens, each a square of patches. The LLM tells how far apart two tokens are by their columns in
    the prompt (and in the cache), whatever ``position_ids`` say: a shortened prompt is as if nothing had been there.
    """

    title = "Inkling 2"
    model_types = ("inkling2", "inkling2_loop")
    tower_at = "vision_tower"
    blocks_at = "layers"
    attention_at = "self_attn"
    reader_at = "vision_tower.merger"
    read = "cls"
    pixel_axes = ("tokens", "height", "width", "channels")
    positions = ("compact",)
    pads = True
    saliency = "CLS row, last layer"
    checkpoints = {
        "inkling2": "thinkingmachines/Inkling-2-Small-MXFP8",
        "inkling2_loop": "thinkingmachines/Inkling-2-Mini",
    }

    @property
    def side(self) -> int:
        """Cells of the grid per side of a token."""
        return 1

    @property
    def patch(self) -> int:
        """Pixels along a cell's side."""
        return super().patch * int(self.config.vision_config.spatial_merge_size)

    @property
    def _patches(self) -> int:
        """Patches of a token."""
        return int(self.config.vision_config.spatial_merge_size) ** 2

    def first_tokens(self, output: Tensor) -> Tensor:
        """Of one picture."""
        return output[1:]

    def handed(self, grids: Sequence[Grid]) -> Callable[[Tensor], Tensor]:
        """The merger gets the patches of a token in one row."""
        return lambda given: given.reshape(-1, given.shape[-1] // self._patches)

    def segments(self, grids: Sequence[Grid]) -> list[int]:
        """An image is one sequence, with its class token."""
        if any(times != 1 for times, _, _ in grids):
            raise ValueError(
                f"{self.title}: image_grid_thw {list(grids)} speaks of several frames, which no processor makes: "
                "pass each as an image"
            )
        return [1 + times * rows * columns * self._patches for times, rows, columns in grids]

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """A token's patches stand one behind the other."""
        tokens = sum(times * rows * columns for times, rows, columns in grids)
        return torch.arange(tokens * self._patches, device="cpu").view(tokens, -1)
