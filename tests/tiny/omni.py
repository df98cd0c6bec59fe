"""The thinkers of Qwen2.5-Omni and Qwen3-Omni, with images and with videos."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

from tests.tiny.qwen import DEEPSTACK, IDS, QWEN3, WINDOWS, qwen_rows, rope, vision
from tests.tiny.rows import TEXT, Row, finish, known

AUDIO, AUDIO_START, AUDIO_END = 93, 92, 91
AUDIO_IDS = {"audio_token_id": AUDIO, "audio_start_token_id": AUDIO_START, "audio_end_token_id": AUDIO_END}
HEARING = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "output_dim": 64,
    "n_window": 4,
}
SECONDS = {"position_id_per_seconds": 2}


def _model(name: str, attention: str, tower: dict[str, Any], hearing: dict[str, Any], **text: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}ThinkerConfig")
    parts = {"audio_config": {**HEARING, **hearing}, "vision_config": tower, "text_config": {**TEXT, **text}}
    made = getattr(transformers, f"{name}ThinkerForConditionalGeneration")
    return finish(made(config(**parts, **IDS, **AUDIO_IDS, **SECONDS)), attention)


@cache
def qwen2_5_omni(attention: str) -> Any:
    windows = {name: value for name, value in WINDOWS.items() if name != "tokens_per_second"}
    return _model("Qwen2_5Omni", attention, vision(14, 4, hidden_size=32, out_hidden_size=64, **windows), {}, **rope())


@cache
def qwen3_omni_moe(attention: str) -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    hearing = {"downsample_hidden_size": 8, "n_window": 50, "n_window_infer": 100, "conv_chunksize": 50}
    text = {"head_dim": 16, **rope(mrope_interleaved=True), **experts}
    return _model("Qwen3OmniMoe", attention, vision(16, 3, **QWEN3), hearing, **text)


def _nothing(_: Any) -> dict[str, Any]:
    return {}


ROWS: dict[str, Row] = {}
if known("qwen2_5_omni_thinker"):
    ROWS |= qwen_rows("qwen2_5_omni", qwen2_5_omni, 14, seconds="video_second_per_grid", per_token=_nothing)
if known("qwen3_omni_moe_thinker"):
    ROWS |= qwen_rows(
        "qwen3_omni_moe", qwen3_omni_moe, 16, seconds="video_second_per_grid", per_token=_nothing, **DEEPSTACK
    )
