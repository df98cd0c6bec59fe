"""Qwen2.5-VL's encoder, in whichever model it stands: attention in windows, but for a few layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.models.encoded import grid_places
from foveate.models.packed import Grid, PackedFamily


class WindowedFamily(PackedFamily):
    """Families with it, read at the last layer that sees the whole image."""

    saliency = "mean received attention, last layer that sees the whole image"

    def check(self) -> None:
        super().check()
        if not self._whole:
            raise ValueError(
                f"{self.title}: vision_config.fullatt_block_indexes={self.tower.fullatt_block_indexes} "
                f"names none of the {len(self.blocks)} layers, so none sees the whole image and no saliency can be read"
            )

    @property
    def read_layer(self) -> int:
        """The last layer that is not confined to windows."""
        return max(self._whole)

    @property
    def _whole(self) -> list[int]:
        """Layers that see the whole image; stock passes over indexes that no layer has."""
        named = self.tower.fullatt_block_indexes
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
