"""Kimi K2.5: dynamic resolution, patches in rows, squares of them merged in the encoder, frames averaged by chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.models.frame_labels import frame_labels
from foveate.models.packed import Grid, PackedFamily
from foveate.models.squares import square_sources


class KimiK25(PackedFamily):
    """``Kimi_K25ForConditionalGeneration``."""

    title = "Kimi K2.5"
    model_types = ("kimi_k25",)
    tower_at = "vision_tower"
    blocks_at = "layers"
    reader_at = "vision_tower.final_layernorm"  # the encoder's last norm
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    pixel_axes = ("patches", "channels", "rows", "columns")
    reads_output = True
    pads = True
    checkpoints = {"kimi_k25": "moonshotai/Kimi-K2.6"}

    def check(self) -> None:
        height, width = self.tower.merge_kernel_size
        if height != width:
            raise ValueError(
                f"{self.title}: vision_config.merge_kernel_size={tuple(self.tower.merge_kernel_size)} merges oblongs, "
                "and only squares of patches are supported: use a checkpoint that merges 2x2, or no pruner"
            )

    @property
    def side(self) -> int:
        return int(self.tower.merge_kernel_size[0])

    def segments(self, grids: Sequence[Grid]) -> list[int]:
        """The frames of a chunk see each other."""
        return [times * rows * columns for times, rows, columns in grids]

    def tokens_of(self, grid: Grid) -> Grid:
        """The frames of a chunk are averaged."""
        return 1, grid[1] // self.side, grid[2] // self.side

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """Patches stand row by row, frame after frame; a token is a square of every frame."""
        longest = max(times for times, _, _ in grids)
        found, first = [], 0
        for times, rows, columns in grids:
            square = square_sources((rows, columns), self.side)
            frames = first + rows * columns * torch.arange(times, device="cpu")
            places = torch.full((len(square), longest, self.side**2), -1, device="cpu")
            places[:, :times] = square[:, None] + frames[:, None]
            found.append(places.flatten(1))
            first += times * rows * columns
        return torch.cat(found)

    def marks(self, ids: Tensor) -> Tensor:
        """All between the marks of an image (its kind is written out before its placeholders), and a video's times."""
        start, end = (ids == token for token in (self.config.vision_start_token_id, self.config.vision_end_token_id))
        inside = start.cumsum(dim=1) > end.cumsum(dim=1)
        known = super().marks(ids) | inside
        return known | frame_labels(ids, self.placeholder_ids["video"], known, self.special_token_ids)
