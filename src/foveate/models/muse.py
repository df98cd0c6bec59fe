"""Muse Glimmer and Muse Spark: windows of patches but for a few layers, squares merged behind the last norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from foveate.models.packed import Grid, PackedFamily
from foveate.models.squares import packed_squares
from foveate.models.windowed import window_order


class Muse(PackedFamily):
    """``MuseGlimmerForConditionalGeneration`` and ``MuseSparkForConditionalGeneration``."""

    title = "Muse"
    model_types = ("muse_glimmer", "muse_spark")
    tower_at = "vision_tower"
    blocks_at = "layers"
    reader_at = "vision_tower.ln_post"  # the last norm, which gives patches row by row
    timed = True
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    reads_output = True
    saliency = "mean received attention, last layer that sees the whole image"
    checkpoints = {
        "muse_glimmer": "meta-models/Muse-Glimmer-30B",
        "muse_spark": "meta-models/Muse-Spark-Open-816B-A42B",
    }

    def check(self) -> None:
        if "full_attention" not in self._kinds:
            raise ValueError(
                f"{self.title}: vision_config.layer_types has no 'full_attention', so no layer sees the whole image "
                "and no saliency can be read"
            )

    @property
    def _kinds(self) -> list[str]:
        return list(self.tower.config.layer_types)[: len(self.blocks)]

    @property
    def side(self) -> int:
        return int(self.tower.merge_size)

    @property
    def read_layer(self) -> int:
        """The last layer that is not confined to windows."""
        return max(layer for layer, kind in enumerate(self._kinds) if kind == "full_attention")

    def _order(self, grids: Sequence[Grid]) -> Tensor:
        """(P,) int64: the patches, numbered row by row, in the order of the encoder's attention."""
        return window_order(grids, 1, self.tower.window_size // self.tower.patch_size)

    def handed(self, grids: Sequence[Grid]) -> Callable[[Tensor], Tensor]:
        order = self._order(grids)
        return lambda given: given[order.to(given.device)]

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """Squares of a frame, row by row; their patches stand where windows have put them."""
        return self._order(grids).argsort()[packed_squares(grids, self.side)]
