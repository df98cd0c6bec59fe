"""Qwen3.5 and its MoE variant, with images and with videos: linear attention beside full attention, no DeepStack."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

from tests.tiny.qwen import IDS, qwen_rows, rope, vision, write_frames
from tests.tiny.rows import TEXT, Row, finish, known

# One layer of either kind; wide enough that a state holds more than the last token.
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}


def _text(**more: Any) -> dict[str, Any]:
    parameters = rope(mrope_interleaved=True, partial_rotary_factor=1.0)
    # A smaller range than elsewhere: stock computes linear attention step by step or in chunks, in float32, and wilder
    # weights make more of the difference than the matrix allows.
    return {**TEXT, "head_dim": 16, "initializer_range": 0.2, **LINEAR, **parameters, **more}


def _model(name: str, attention: str, **more: Any) -> Any:
    torch.manual_seed(0)
    tower = vision(16, 3, hidden_size=32, out_hidden_size=64, num_position_embeddings=64)
    config = getattr(transformers, f"{name}Config")(vision_config=tower, text_config=_text(**more), **IDS)
    return finish(getattr(transformers, f"{name}ForConditionalGeneration")(config), attention)


@cache
def qwen3_5(attention: str) -> Any:
    return _model("Qwen3_5", attention)


@cache
def qwen3_5_moe(attention: str) -> Any:
    return _model("Qwen3_5Moe", attention, **MOE)


ROWS: dict[str, Row] = {}
if known("qwen3_5", "qwen3_5_moe"):
    # In 5.19 the class does not say that it takes images, and generate repeats patches, not images, for beams.
    mixes = "image" not in transformers.Qwen3_5ForConditionalGeneration.input_modalities
    more = {"mixes_beams": mixes, "hybrid": True}
    ROWS |= qwen_rows("qwen3_5", qwen3_5, 16, write_frames, **more)
    ROWS["qwen3_5_moe"] = qwen_rows("qwen3_5_moe", qwen3_5_moe, 16, write_frames, **more)["qwen3_5_moe"]
