"""dots3 Note: Qwen-VL's patches and squares, experts in the encoder; audio is left alone."""

from __future__ import annotations

from foveate.models.packed import PackedFamily


class Dots3Note(PackedFamily):
    """``Dots3NoteForConditionalGeneration``."""

    title = "dots3 Note"
    model_types = ("dots3_note",)
    tower_at = "vision_tower"
    reader_at = "vision_tower.merger"
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    checkpoints = {"dots3_note": "dots-studio/dots3-note-prev"}
