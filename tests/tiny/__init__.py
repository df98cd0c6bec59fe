"""Tiny random models of the real classes, one row per family and tower, and prompts for them.

A new family joins by a file here and a line in ``ROWS``.
"""

from __future__ import annotations

from tests.tiny import (
    compass,
    deepseek,
    ernie,
    films,
    gemma4,
    generic,
    glm,
    lfm2,
    lfm3,
    llama4,
    llava,
    minicpm,
    mistral,
    ocr,
    omni,
    onevision,
    plain,
    qwen,
    qwen35,
    siglip,
    tiles,
    timm_towers,
)
from tests.tiny.llava import PINPOINTS, SIZES, assistant, llava_next, text_config
from tests.tiny.rows import BATCHES, BOS, END, IMAGE, PAD, SIDE, SILENT, START, VIDEO, Row, prompts

ROWS: dict[str, Row] = {
    **llava.ROWS,
    **qwen.ROWS,
    **qwen35.ROWS,
    **omni.ROWS,
    **compass.ROWS,
    **siglip.ROWS,
    **gemma4.ROWS,
    **minicpm.ROWS,
    **lfm2.ROWS,
    **tiles.ROWS,
    **generic.ROWS,
    **glm.ROWS,
    **ernie.ROWS,
    **llama4.ROWS,
    **ocr.ROWS,
    **lfm3.ROWS,
    **mistral.ROWS,
    **onevision.ROWS,
    **films.ROWS,
    **plain.ROWS,
    **timm_towers.ROWS,
    **deepseek.ROWS,
}

SEEING = [name for name, row in ROWS.items() if not row.unread]
"""Rows whose encoder has attention to read."""
KIN = frozenset({
    "llava-siglip", "llava_next-siglip", "llava-pixtral", "llava_onevision-crops", "smolvlm", "smolvlm-uneven",
    "glm4v_moe", "qwen2_vl-video", "qwen2_5_vl-video", "qwen3_vl_moe", "qwen3_5-video", "qwen3_5_moe",
    "qwen2_5_omni-video", "cohere_compass", "cohere_compass-video", "qwen3_omni_moe-video", "cosmos3_omni",
    "cosmos3_edge-video",
    "generic-deepseek_vl", "generic-pixel_shuffle",
    "internvl-video", "smolvlm-video", "llava_next_video", "llava_next_video-clip-video",
    "llava_next_video-siglip-video", "mistral_large4", "lighton_ocr", "qianfan_ocr",
    "vipllava",
    "gemma4-experts", "gemma4-per-layer", "gemma4-video", "minicpmv4_6-4x", "minicpm_ocr",
    "shieldgemma2",
})  # fmt: skip
"""Rows whose adapter another row takes through every combination of the matrix's values: these go through those that
hold every pair of them."""

__all__ = [
    "BATCHES",
    "BOS",
    "END",
    "IMAGE",
    "KIN",
    "PAD",
    "PINPOINTS",
    "ROWS",
    "SEEING",
    "SIDE",
    "SILENT",
    "SIZES",
    "START",
    "VIDEO",
    "Row",
    "assistant",
    "llava_next",
    "prompts",
    "text_config",
]  # fmt: skip
