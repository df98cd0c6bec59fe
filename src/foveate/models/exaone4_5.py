"""EXAONE 4.5 and HyperCLOVA X Think: Qwen2.5-VL's encoder before an LLM with plain positions.

Stock ``generate`` of both drops positions that it is given, and counts what is in the cache.
"""

from __future__ import annotations

from foveate.models.windowed import WindowedFamily


class Exaone45(WindowedFamily):
    """``Exaone4_5_ForConditionalGeneration``: keys and values have fewer heads than queries in its encoder."""

    title = "EXAONE 4.5"
    model_types = ("exaone4_5",)
    positions = ("compact",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    checkpoints = {"exaone4_5": "LGAI-EXAONE/EXAONE-4.5-33B"}


class HyperClovaX(WindowedFamily):
    """``HyperCLOVAXVisionV2ForConditionalGeneration``: another projection follows the encoder's merger."""

    title = "HyperCLOVA X SEED Think"
    model_types = ("hyperclovax_vision_v2",)
    tower_at = "vision_model"
    reader_at = "vision_model.merger"
    positions = ("compact",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    checkpoints = {"hyperclovax_vision_v2": "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B"}
