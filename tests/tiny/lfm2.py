"""LFM2-VL: images in their own proportions, and tiles with the whole image behind them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.rows import END, IMAGE, START, TEXT, Row, encodes_apart, features_of, finish, flat, noise

PATCH, TAG, STRIDE, THUMBNAIL = 4, 70, 3, 80
"""Tags of tiles are ids from ``TAG`` on, those of a row one behind the other, ``STRIDE`` from row to row."""
MOST = 32
"""Patches that every view is filled up to."""
# (rows, columns) of tiles, (rows, columns) of the whole image's patches; tiles are 4 x 4 patches
IMAGES = [((1, 2), (4, 6)), ((0, 0), (6, 4)), ((2, 2), (4, 4))]
TILE = (4, 4)
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": PATCH,
    "num_patches": 16,
}
LLM = {**TEXT, "model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}


@cache
def lfm2_vl(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.Lfm2VlConfig(
        vision_config={**VISION, "model_type": "siglip2_vision_model"}, text_config=LLM, image_token_id=IMAGE,
        projector_hidden_size=32, tie_word_embeddings=False,
    )  # fmt: skip
    return finish(transformers.Lfm2VlForConditionalGeneration(config), attention)


def views(number: int) -> list[tuple[int, int]]:
    (rows, columns), whole = IMAGES[number]
    return [*[TILE] * (rows * columns), whole]


def pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    found = flat(numbers)
    if not found:
        return {}
    sizes = [size for number in found for size in views(number)]
    mask = torch.tensor([[1] * (h * w) + [0] * (MOST - h * w) for h, w in sizes], dtype=torch.int32)
    patches = torch.cat([noise(number, len(views(number)), MOST, 3 * PATCH**2) for number in found])
    return {
        "pixel_values": patches * mask[..., None],
        "spatial_shapes": torch.tensor(sizes),
        "pixel_attention_mask": mask,
    }


def write(number: int, count: int) -> list[int]:
    (rows, columns), (height, width) = IMAGES[number]
    ids = [START]
    for row in range(rows):
        for column in range(columns):
            ids += [TAG + row * STRIDE + column, *[IMAGE] * 4]
    ids += [*([THUMBNAIL] if rows else []), *[IMAGE] * (height * width // 4), END]
    assert ids.count(IMAGE) == count
    return ids


def numbers_in(inputs: dict[str, Tensor]) -> Iterator[int]:
    """Which of ``IMAGES`` they are, by their sizes."""
    sizes = [tuple(size) for size in inputs["spatial_shapes"].tolist()]
    while sizes:
        number = next(n for n in (2, 0, 1) if sizes[: len(views(n))] == views(n))
        sizes = sizes[len(views(number)) :]
        yield number


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    if "pixel_values" not in inputs:
        return []
    output = iter(features_of(model, inputs, kind).pooler_output)
    return [torch.cat([next(output) for _ in views(number)]) for number in numbers_in(inputs)]


def tower(model: Any) -> Any:
    found = model.model.vision_tower
    return getattr(found, "vision_model", found)


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What a view's own patches give each other, 2x2 summed to a token; what fills it up is looked at by nobody."""
    tokens = iter(
        matrix[: h * w, : h * w].mean(dim=0).view(h // 2, 2, w // 2, 2).sum(dim=(1, 3)).flatten()
        for matrix, (h, w) in zip(torch.cat(matrices), inputs["spatial_shapes"].tolist(), strict=True)
    )
    return [torch.cat([next(tokens) for _ in views(number)]) for number in numbers_in(inputs)]


ROWS: dict[str, Row] = {}
if encodes_apart("Lfm2VlModel"):
    ROWS["lfm2_vl"] = Row(
        lfm2_vl,
        pixels,
        lambda model: tower(model).encoder.layers[-1].self_attn,
        saliency,
        write=write,
        streams=streams,
        hybrid=True,
        hands=lambda model: tower(model).post_layernorm,
    )
