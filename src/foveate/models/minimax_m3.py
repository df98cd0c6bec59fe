"""MiniMax M3: Qwen-VL's patches, an LLM whose sparse layers choose blocks of keys."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.models.packed import Grid, PackedFamily


class MiniMaxM3(PackedFamily):
    """``MiniMaxM3SparseForConditionalGeneration``.

    A sparse layer takes a key's block from its place in the cache and a query's from its position: they agree only
    where positions leave nothing out.
    """

    title = "MiniMax M3"
    model_types = ("minimax_m3_vl",)
    tower_at = "vision_tower"
    blocks_at = "layers"
    attention_at = "self_attn"
    reader_at = "multi_modal_projector"
    timed = True
    positions = ("compact",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    since = "5.24"
    checkpoints = {"minimax_m3_vl": "MiniMaxAI/MiniMax-M3"}

    def check(self) -> None:
        if not hasattr(self.tower, "merge_temporal"):  # which came with the borders between images
            raise ValueError(
                f"{self.title}: in this version of transformers its encoder lets all images of a call see each other, "
                "so what an image becomes depends on the others: use a newer one (5.24 is known to be right)"
            )

    def segments(self, grids: Sequence[Grid]) -> list[int]:
        """The frames that are encoded together see each other."""
        return [times * rows * columns for times, rows, columns in grids]
