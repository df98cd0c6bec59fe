"""Tiny random models of the real classes, one row per family and tower, and prompts for them.

A new family joins by a file here and a line in ``ROWS``.
"""

from __future__ import annotations

from tests.tiny import (
    ernie,
    films,
    generic,
    glm,
    lfm3,
    llama4,
    llava,
    mistral,
    ocr,
    onevision,
    qwen,
    qwen35,
    siglip,
    tiles,
)
from tests.tiny.llava import PINPOINTS, SIZES, assistant, llava_next, text_config
from tests.tiny.rows import BATCHES, BOS, END, IMAGE, PAD, SIDE, SILENT, START, VIDEO, Row, prompts

ROWS: dict[str, Row] = {
    **llava.ROWS,
    **qwen.ROWS,
    **qwen35.ROWS,
    **siglip.ROWS,
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
}

SEEING = [name for name, row in ROWS.items() if not row.unread]
"""Rows whose encoder has attention to read."""
KIN = frozenset({
    "llava-siglip", "llava_next-siglip", "llava-pixtral", "llava_onevision-crops", "smolvlm", "smolvlm-uneven",
    "glm4v_moe", "qwen2_vl-video", "qwen2_5_vl-video", "qwen3_vl_moe", "qwen3_5-video", "qwen3_5_moe",
    "generic-deepseek_vl", "generic-pixel_shuffle",
    "internvl-video", "smolvlm-video", "llava_next_video", "llava_next_video-clip-video",
    "llava_next_video-siglip-video", "mistral_large4", "lighton_ocr", "qianfan_ocr",
    "vipllava", "shieldgemma2",
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
