"""Encoders that put marks of their own among the tokens they give of a picture: behind every row, and around all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foveate.models.encoded import STAYS
from foveate.models.packed import Grid, PackedFamily
from foveate.models.squares import packed_squares


class RowMarksFamily(PackedFamily):
    """Packed families whose merger closes every row of tokens with a mark, under a placeholder like theirs.

    Marks show nothing and are never dropped: they say where rows end, and where a picture does.
    """

    tower_at = "vision_tower"
    blocks_at = "layers"
    attention_at = "self_attn"
    reader_at = "vision_tower.patch_merger"
    fenced: ClassVar[bool] = False
    """Whether a mark stands before the first row too, and one behind the last."""

    @property
    def side(self) -> int:
        return int(self.config.vision_config.spatial_merge_size)

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """Their patches stand row by row."""
        return packed_squares(grids, self.side)

    def slots(self, grid: Grid) -> Tensor:
        frames, rows, columns = self.tokens_of(grid)
        patches = torch.arange(frames * rows * columns, device="cpu").view(frames * rows, columns)
        slots = torch.nn.functional.pad(patches, (0, 1), value=STAYS).flatten()
        return torch.nn.functional.pad(slots, (1, 1), value=STAYS) if self.fenced else slots
