"""Tiny random models of the real classes, one row per family and tower, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

IMAGE, PAD, BOS = 99, 0, 1
SIDE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168]]
# (height, width): a crop layout of every kind, unpadded on either side
SIZES = [(90, 50), (56, 112), (100, 100)]


def text_config(layers: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        # Wide enough that greedy choices are far from ties.
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
    )


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
        projection_dim=32,
        initializer_range=0.3,
    )


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
        vision_use_head=False,
    )


@dataclass(frozen=True)
class Row:
    """One line of the family matrix: how to build the model, and its image inputs.

    Args:
        make: attention implementation -> model.
        pixels: image numbers -> the model's image inputs.
        newlines: whether some placeholders carry ``model.model.image_newline``.
    """

    make: Callable[[str], Any]
    pixels: Callable[[list[int]], dict[str, Tensor]]
    newlines: bool


def _finish(model: Any, attention: str) -> Any:
    model = model.eval()
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():  # position embeddings and projectors too: no two tokens alike
        if parameter.ndim > 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.set_attn_implementation(attention)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def _build(config_class: Any, model_class: Any, tower: str, attention: str, siglip_layer: int, **options: Any) -> Any:
    torch.manual_seed(0)
    vision, layer, strategy = (clip(), -2, "default") if tower == "clip" else (siglip(), siglip_layer, "full")
    config = config_class(
        vision_config=vision,
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        **options,
    )
    return _finish(model_class(config), attention)


@cache
def llava(tower: str, attention: str) -> Any:
    return _build(LlavaConfig, LlavaForConditionalGeneration, tower, attention, siglip_layer=-1)


@cache
def llava_next(tower: str, attention: str) -> Any:
    return _build(
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        tower,
        attention,
        siglip_layer=-2,
        image_grid_pinpoints=PINPOINTS,
    )


def _noise(number: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(10 + number))


def llava_pixels(images: list[int]) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([_noise(number, 3, SIDE, SIDE) for number in images])}


def llava_next_pixels(images: list[int]) -> dict[str, Tensor]:
    sizes = [SIZES[number] for number in images]
    views = [image_size_to_num_patches(list(size), PINPOINTS, SIDE) for size in sizes]
    pixels = torch.zeros(len(images), max(views), 3, SIDE, SIDE)
    for place, (number, count) in enumerate(zip(images, views, strict=True)):
        pixels[place, :count] = _noise(number, count, 3, SIDE, SIDE)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


ROWS: dict[str, Row] = {
    "llava-clip": Row(lambda attention: llava("clip", attention), llava_pixels, newlines=False),
    "llava-siglip": Row(lambda attention: llava("siglip", attention), llava_pixels, newlines=False),
    "llava_next-clip": Row(lambda attention: llava_next("clip", attention), llava_next_pixels, newlines=True),
    "llava_next-siglip": Row(lambda attention: llava_next("siglip", attention), llava_next_pixels, newlines=True),
}

# Image numbers per prompt of the batch.
BATCHES: dict[str, list[list[int]]] = {"one": [[0]], "several": [[1, 2]], "mixed": [[0], [], [1, 2]]}


def prompts(row: Row, model: Any, batch: str) -> dict[str, Tensor]:
    """Model inputs for a batch of prompts, padded on the left."""
    numbers = BATCHES[batch]
    pixels = row.pixels([number for images in numbers for number in images])
    with torch.no_grad():
        features = model.get_image_features(**pixels, return_dict=True).pooler_output
    lengths = iter([len(one) for one in features])
    rows = []
    for place, images in enumerate(numbers):
        ids = [BOS, 5 + place, 6]
        for image in images:
            ids += [IMAGE] * next(lengths) + [20 + image, 30 + place]
        rows.append([*ids, 40 + place, 41, 42, 40 + place, 41])
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(one)) + one for one in rows])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in rows])
    return {"input_ids": ids, "attention_mask": mask, **pixels}


@cache
def assistant() -> Any:
    torch.manual_seed(3)
    return _finish(LlamaForCausalLM(text_config(layers=1)), "sdpa")
