"""Pixtral's encoder in Mistral 3 (patches merged by squares) and in LLaVA (Pixtral-12B; not merged)."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralVisionConfig,
)

from tests.tiny.rows import END, IMAGE, START, TEXT, Row, finish, flat, known, noise

BREAK = START
PATCH = 14
# (rows, columns) of squares of 28 pixels
GRIDS = [(3, 2), (2, 2), (1, 3)]
LAYER = -2
"""Not the last: the one after it is skipped."""


def _vision() -> PixtralVisionConfig:
    return PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=112,
        patch_size=PATCH,
        initializer_range=0.3,
    )


@cache
def mistral3(attention: str) -> Any:
    torch.manual_seed(0)
    config = Mistral3Config(
        vision_config=_vision(),
        text_config={"model_type": "mistral", **TEXT, "head_dim": 16},
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=LAYER,
    )
    return finish(Mistral3ForConditionalGeneration(config), attention)


@cache
def llava_pixtral(attention: str) -> Any:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=_vision(),
        text_config={"model_type": "mistral", **TEXT, "head_dim": 16},
        image_token_index=IMAGE,
        vision_feature_layer=LAYER,
        vision_feature_select_strategy="full",
    )
    return finish(LlavaForConditionalGeneration(config), attention)


@cache
def mistral_large4(attention: str) -> Any:
    torch.manual_seed(0)
    text = {
        **TEXT,
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "no_rope_layers": [1, 0],
    }
    config = transformers.MistralLarge4Config(
        vision_config=_vision(),
        text_config=text,
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=LAYER,
    )
    return finish(transformers.MistralLarge4ForConditionalGeneration(config), attention)


@cache
def lighton_ocr(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.LightOnOcrConfig(
        vision_config=_vision(),
        text_config={"model_type": "qwen3", **TEXT, "head_dim": 16},
        image_token_id=IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return finish(transformers.LightOnOcrForConditionalGeneration(config), attention)


def pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    images = flat(numbers)
    sizes = [[rows * 28, columns * 28] for rows, columns in (GRIDS[number] for number in images)]
    planes = torch.zeros(len(images), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for place, (number, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        planes[place, :, :height, :width] = noise(number, 3, height, width)
    return {"pixel_values": planes, "image_sizes": torch.tensor(sizes)}


def write(squares: int, number: int, count: int) -> list[int]:
    """Every row of tokens ends with a break, the last one with the end."""
    columns = GRIDS[number][1] * squares
    assert count % columns == 0
    ids = [token for _ in range(count // columns) for token in (*[IMAGE] * columns, BREAK)]
    return [*ids[:-1], END]


def read(model: Any) -> Any:
    return model.model.vision_tower.transformer.layers[LAYER].attention


def last(model: Any) -> Any:
    return model.model.vision_encoder.transformer.layers[-1].attention


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """The images' blocks of the one packed matrix; what each patch receives, summed over a token's square."""
    side = getattr(model.config, "spatial_merge_size", 1)
    found, first = [], 0
    for image in images:
        height, width = image.tokens.geometry.image_size
        rows, columns = height // PATCH, width // PATCH
        block = matrices[0][0, first : first + rows * columns, first : first + rows * columns]
        first += rows * columns
        received = block.mean(dim=0).view(rows, columns)
        tokens = [
            received[row : row + side, column : column + side].sum()
            for row in range(0, rows, side)
            for column in range(0, columns, side)
        ]
        found.append(torch.stack(tokens))
    return found


ROWS = {
    "mistral3": Row(mistral3, pixels, read, saliency, write=partial(write, 1)),
    "llava-pixtral": Row(llava_pixtral, pixels, read, saliency, write=partial(write, 2)),
}
if known("mistral_large4"):
    ROWS["mistral_large4"] = Row(mistral_large4, pixels, read, saliency, write=partial(write, 1), cap=30.0)
if known("lighton_ocr"):
    ROWS["lighton_ocr"] = Row(lighton_ocr, pixels, last, saliency)
