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
    granite4,
    hunyuan,
    inkling2,
    lfm2,
    lfm3,
    llama4,
    llava,
    minicpm,
    mistral,
    molmo2,
    ocr,
    omni,
    onevision,
    plain,
    qwen,
    qwen35,
    siglip,
    step3p7,
    tiles,
    timm_towers,
    video_llava,
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
    **granite4.ROWS,
    **inkling2.ROWS,
    **ernie.ROWS,
    **llama4.ROWS,
    **ocr.ROWS,
    **hunyuan.ROWS,
    **lfm3.ROWS,
    **mistral.ROWS,
    **molmo2.ROWS,
    **onevision.ROWS,
    **films.ROWS,
    **plain.ROWS,
    **timm_towers.ROWS,
    **deepseek.ROWS,
    **step3p7.ROWS,
    **video_llava.ROWS,
}

KIN = frozenset({
    "cohere_compass", "cohere_compass-video", "cosmos3_edge-video", "cosmos3_omni", "deepseek_vl_hybrid",
    "dots3_note-video", "ernie4_5_vl_moe-video", "exaone4_5-video", "gemma4-experts", "gemma4-per-layer",
    "gemma4-video", "generic-deepseek_vl", "generic-pixel_shuffle", "glm46v", "glm46v-video", "glm46v_moe",
    "glm4v_moe", "glm4v_moe-video", "glm5_next-video", "glm_ocr", "glmga", "hunyuan_vl-three", "hy_v4_vl-video",
    "hyperclovax_vision_v2-video", "inkling2_loop", "internvl-video", "kimi_k25-video", "lfm3_vl-video",
    "lighton_ocr", "llava-pixtral", "llava-siglip", "llava_next-siglip", "llava_next_video",
    "llava_next_video-clip-video", "llava_next_video-siglip-video", "llava_onevision-crops", "minicpm_ocr",
    "minicpmv4_6-4x", "minimax_m3_vl-video", "mistral_large4", "molmo2-video", "muse_glimmer-video", "muse_spark",
    "muse_spark-video", "qianfan_ocr", "qwen2_5_omni-video", "qwen2_5_vl-video", "qwen2_vl-video", "qwen3_5-video",
    "qwen3_5_moe", "qwen3_omni_moe-video", "qwen3_vl-video", "qwen3_vl_moe", "qwen4_exp", "qwen4_exp-video",
    "shieldgemma2", "smolvlm", "smolvlm-uneven", "smolvlm-video", "video_llama_3-video", "video_llava-video",
    "vipllava",
})  # fmt: skip
"""Rows whose adapter another row takes through the matrix: these go through every value, not every pair of values."""
WHOLE = frozenset({"llava-clip", "llava_next-clip", "internvl", "qwen2_5_vl", "qwen3_vl", "gemma3"})
"""Rows that go through every product of the matrix's values."""

SEEING = [name for name, row in ROWS.items() if not row.unread]
"""Rows whose encoder has attention to read."""
APART = [name for name in SEEING if name not in KIN]
"""Of these, one for every adapter: what is tested with them does not depend on how an adapter's models differ."""

__all__ = [
    "APART",
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
    "WHOLE",
    "Row",
    "assistant",
    "llava_next",
    "prompts",
    "text_config",
]  # fmt: skip
