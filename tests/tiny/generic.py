"""Classes without an adapter that the generic one takes: CLS and patches, pixel shuffle and several views, plain."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cohere2VisionConfig,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.tiny.rows import IMAGE, SIDE, TEXT, VISION, Row, features_of, finish, flat, noise
from tests.tiny.tiles import cohere2_vision

SIGLIP = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
# Views of every image of the unknown one, all in one run of placeholders
VIEWS = [2, 1, 3]


class AnotherConfig(VipLlavaConfig):
    """Of a type that no adapter knows either."""

    model_type = "another_llava"


@cache
def vipllava(attention: str, config_class: Any = VipLlavaConfig) -> Any:
    """Reads several layers of its tower, together; not the last."""
    torch.manual_seed(0)
    config = config_class(
        vision_config={"model_type": "clip_vision_model", **VISION, "initializer_range": 0.3},
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE,
        vision_feature_layers=[1, -3, -2],
    )
    return finish(VipLlavaForConditionalGeneration(config), attention)


class UnknownConfig(Cohere2VisionConfig):
    """Of a type that no adapter knows."""

    model_type = "unknown_vision"


def unknown_vision(attention: str) -> Any:
    """Squares of 2 x 2 patches become tokens."""
    return cohere2_vision(attention, UnknownConfig)


class UnknownVlConfig(DeepseekVLConfig):
    """Another one."""

    model_type = "unknown_vl"


@cache
def deepseek_vl(attention: str, config_class: Any = UnknownVlConfig) -> Any:
    torch.manual_seed(0)
    config = config_class(
        vision_config=SIGLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return finish(DeepseekVLForConditionalGeneration(config), attention)


def pixel_shuffle_is_flat() -> bool:
    """Before 5.15 its features are squares (views, side, side, D), which the generic adapter refuses."""
    pixels = {"pixel_values": torch.zeros(1, 3, SIDE, SIDE)}
    found: Tensor = features_of(unknown_vision("sdpa"), pixels, "image").pooler_output
    return found[0].ndim == 2


def views_of(views: list[int], number: int) -> Tensor:
    return noise(number, views[number], 3, SIDE, SIDE)


def pixels(views: list[int], numbers: list[list[int]]) -> dict[str, Tensor]:
    return {"pixel_values": torch.cat([views_of(views, number) for number in flat(numbers)])}


def streams(views: list[int], model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """The views of every image, one after the other; images are recognised by the first pixel of their first view."""
    found = features_of(model, inputs, kind).pooler_output
    first = {float(views_of(views, number)[0, 0, 0, 0]): count for number, count in enumerate(views)}
    counts = [first[value] for value in inputs["pixel_values"][:, 0, 0, 0].tolist() if value in first]
    return [features.flatten(0, 1) for features in found.split(counts)]


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """By view, row and column: the CLS row or the mean over all rows, summed over the square that makes a token."""
    whole = torch.cat(matrices)
    rows = whole[:, 0, 1:] if model.config.vision_config.model_type == "clip_vision_model" else whole.mean(dim=1)
    found, first = [], 0
    for image in images:
        geometry = image.tokens.geometry
        patches = int(rows.shape[1] ** 0.5)
        size = patches // geometry.grids[0][0]
        places = zip(geometry.view.tolist(), geometry.row.tolist(), geometry.column.tolist(), strict=True)
        sums = [
            rows[first + view]
            .view(patches, patches)[row * size : (row + 1) * size, column * size : (column + 1) * size]
            .sum()
            for view, row, column in places
        ]
        found.append(torch.stack(sums))
        first += len(geometry.grids)
    return found


def _row(make: Any, read: Any, views: list[int]) -> Row:
    return Row(make, partial(pixels, views), read, saliency, streams=partial(streams, views))


def _layers(tower: Any) -> Any:
    return getattr(tower, "vision_model", tower).encoder.layers  # one level less since 5.10


ROWS: dict[str, Row] = {
    "vipllava": _row(vipllava, lambda model: _layers(model.model.vision_tower)[-2].self_attn, [1, 1, 1]),
    "generic-several_layers": _row(
        partial(vipllava, config_class=AnotherConfig),
        lambda model: _layers(model.model.vision_tower)[-2].self_attn,
        [1, 1, 1],
    ),
    "generic-deepseek_vl": _row(deepseek_vl, lambda model: _layers(model.model.vision_model)[-1].self_attn, [1, 1, 1]),
}
if pixel_shuffle_is_flat():
    ROWS["generic-pixel_shuffle"] = _row(
        unknown_vision, lambda model: _layers(model.model.vision_tower)[-1].self_attn, VIEWS
    )
