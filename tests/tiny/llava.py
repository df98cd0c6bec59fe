"""LLaVA-1.5 and LLaVA-NeXT, with a CLIP and with a SigLIP tower."""

from __future__ import annotations

import inspect
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoModel

from tests.tiny.rows import IMAGE, SIDE, TEXT, VIDEO, VISION, Row, features_of, finish, flat, noise

PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168]]
# (height, width): a crop layout of every kind, unpadded on either side
SIZES = [(90, 50), (56, 112), (100, 100)]


def text_config(layers: int = 2) -> LlamaConfig:
    return LlamaConfig(**{**TEXT, "num_hidden_layers": layers})


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, projection_dim=32, initializer_range=0.3)


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**VISION, vision_use_head=False)


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
    return finish(model_class(config), attention)


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


def llava_pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([noise(number, 3, SIDE, SIDE) for number in flat(numbers)])}


def llava_next_pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    images = flat(numbers)
    sizes = [SIZES[number] for number in images]
    views = [image_size_to_num_patches(list(size), PINPOINTS, SIDE) for size in sizes]
    pixels = torch.zeros(len(images), max(views), 3, SIDE, SIDE)
    for place, (number, count) in enumerate(zip(images, views, strict=True)):
        pixels[place, :count] = noise(number, count, 3, SIDE, SIDE)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def read(model: Any) -> Any:
    tower = model.model.vision_tower
    layer = model.config.vision_feature_layer
    layers = getattr(tower, "vision_model", tower).encoder.layers
    return layers[layer if layer < 0 else layer - 1].self_attn


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """By view, row and column: the CLS row, or the mean over all rows."""
    whole = torch.cat(matrices)
    cls = model.config.vision_config.model_type == "clip_vision_model"
    views = whole[:, 0, 1:] if cls else whole.mean(dim=1)
    found, first = [], 0
    for image in images:
        geometry = image.tokens.geometry
        side = geometry.grids[0][1]
        found.append(views[first + geometry.view, geometry.row * side + geometry.column])
        first += len(geometry.grids)
    return found


@cache
def llava_next_video(tower: str, attention: str) -> Any:
    return _build(
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        tower,
        attention,
        siglip_layer=-2,
        image_grid_pinpoints=PINPOINTS,
        video_token_index=VIDEO,
    )


FRAMES = 3


def videos(numbers: list[list[int]]) -> dict[str, Tensor]:
    return {"pixel_values_videos": torch.stack([noise(20 + one, FRAMES, 3, SIDE, SIDE) for one in flat(numbers)])}


def films(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """A video's frames, one behind the other."""
    return [video.flatten(0, -2) for video in features_of(model, inputs, kind).pooler_output]


def pooled(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """By frame: what the patches of every square of four that is pooled have together."""
    whole = torch.cat(matrices)
    views = whole[:, 0, 1:] if model.config.vision_config.model_type == "clip_vision_model" else whole.mean(dim=1)
    squares = views.view(-1, FRAMES, 2, 2, 2, 2).sum(dim=(3, 5))
    return list(squares.flatten(1))


def _row(family: Any, pixels: Any, tower: str, newlines: bool) -> Row:
    return Row(lambda attention: family(tower, attention), pixels, read, saliency, newlines)


ROWS: dict[str, Row] = {
    "llava-clip": _row(llava, llava_pixels, "clip", newlines=False),
    "llava-siglip": _row(llava, llava_pixels, "siglip", newlines=False),
    "llava_next-clip": _row(llava_next, llava_next_pixels, "clip", newlines=True),
    "llava_next-siglip": _row(llava_next, llava_next_pixels, "siglip", newlines=True),
    "llava_next_video": _row(llava_next_video, llava_next_pixels, "clip", newlines=True),
}
# Where its features say every frame by itself (5.19), beams count frames for tokens.
LISTED = "torch.split(video_features" in inspect.getsource(LlavaNextVideoModel.get_video_features)
EXPANDED = hasattr(GenerationMixin, "_expand_multimodal_outputs")  # before, pixels were repeated
# Before, its argument had another name, by which the tests do not ask.
NAMED = "pixel_values_videos" in inspect.signature(LlavaNextVideoModel.get_video_features).parameters
for tower in ("clip", "siglip") if NAMED else ():
    ROWS[f"llava_next_video-{tower}-video"] = Row(
        partial(llava_next_video, tower),
        videos,
        read,
        pooled,
        kind="video",
        write=lambda _, count: [VIDEO] * count,
        streams=films,
        only_pruned={"beams": "non-empty list"} if LISTED and EXPANDED else {},
    )


@cache
def assistant() -> Any:
    torch.manual_seed(3)
    return finish(LlamaForCausalLM(text_config(layers=1)), "sdpa")
