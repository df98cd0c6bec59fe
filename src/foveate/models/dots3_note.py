"""dots3 Note: Qwen-VL's patches and squares, experts in the encoder; audio is left alone."""

from __future__ import annotations

from typing import Any, ClassVar

from foveate.models.packed import PackedFamily


class Dots3Note(PackedFamily):
    """``Dots3NoteForConditionalGeneration``."""

    title = "dots3 Note"
    model_types = ("dots3_note",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    checkpoints: ClassVar = {"dots3_note": "dots-studio/dots3-note-prev"}

    @property
    def tower(self) -> Any:
        return self.base.vision_tower
