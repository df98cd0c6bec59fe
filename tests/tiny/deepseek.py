"""DeepSeek-VL, with one encoder and with two; Janus, with an encoder of its own and marks around pictures."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekVLConfig

from tests.tiny.generic import SIGLIP, deepseek_vl
from tests.tiny.rows import END, IMAGE, SIDE, START, TEXT, VISION, Row, finish, flat, known, noise
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


# Of those that draw, the least that its class can be built with: normalisation has groups of 32 channels.
DRAWING = {
    "embed_dim": 8, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1],
    "num_res_blocks": 1, "projection_dim": 64, "image_token_embed_dim": 64,
}  # fmt: skip


@cache
def janus(attention: str) -> Any:
    from transformers import JanusConfig, JanusForConditionalGeneration

    torch.manual_seed(0)
    config = JanusConfig(
        vision_config={**VISION, "mlp_ratio": 2.0, "projection_dim": 64, "num_image_tokens": 16},
        vq_config=DRAWING,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return finish(JanusForConditionalGeneration(config), attention)


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
if known("janus"):
    ROWS["janus"] = Row(
        janus, partial(pixels, False), read, pooled, write=lambda _, count: [START, *[IMAGE] * count, END]
    )
