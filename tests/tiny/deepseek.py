"""DeepSeek-VL, with one encoder and with two."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekVLConfig

from tests.tiny.generic import SIGLIP, deepseek_vl
from tests.tiny.rows import IMAGE, SIDE, TEXT, Row, finish, flat, known, noise
from tests.tiny.siglip import pooled

HIGH = 64
"""Pixels of a side that SAM sees."""


@cache
def hybrid(attention: str) -> Any:
    from transformers import DeepseekVLHybridConfig, DeepseekVLHybridForConditionalGeneration

    torch.manual_seed(0)
    config = DeepseekVLHybridConfig(
        vision_config=SIGLIP,
        high_res_vision_config={
            "model_type": "sam_vision_model", "hidden_size": 32, "output_channels": 8, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": HIGH, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1],
            "mlp_dim": 64,
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = finish(DeepseekVLHybridForConditionalGeneration(config), attention)
    model.model.high_res_vision_alpha.data.fill_(0.5)
    return model


def pixels(both: bool, numbers: list[list[int]]) -> dict[str, Tensor]:
    if not flat(numbers):
        return {}
    names = {"pixel_values": SIDE, **({"high_res_pixel_values": HIGH} if both else {})}
    return {
        name: torch.stack([noise(number, 3, side, side) for number in flat(numbers)]) for name, side in names.items()
    }


def read(model: Any) -> Any:
    tower = model.model.vision_model
    return getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn


ROWS: dict[str, Row] = {
    "deepseek_vl": Row(lambda attention: deepseek_vl(attention, DeepseekVLConfig), partial(pixels, False), read, pooled)
}
if known("deepseek_vl_hybrid"):
    ROWS["deepseek_vl_hybrid"] = Row(hybrid, partial(pixels, True), read, pooled)
