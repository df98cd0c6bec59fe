"""GLM-4.1V, its MoE variant (GLM-4.5V), GLM-4.6V and what is made like them: images, and videos under their id."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
)

from tests.tiny.qwen import VIDEOS, image_pixels, read, saliency, video_pixels, write_image
from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, Row, finish, known

FILM, CUT = 94, 95
"""A video's start and end."""
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": FILM,
    "video_end_token_id": CUT,
}
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "image_size": 112,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
MOE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "head_dim": 16,
}


@cache
def glm4v(attention: str) -> Any:
    torch.manual_seed(0)
    config = Glm4vConfig(vision_config=VISION, text_config={**TEXT, "rope_parameters": ROPE}, **IDS)
    return finish(Glm4vForConditionalGeneration(config), attention)


@cache
def glm4v_moe(attention: str) -> Any:
    torch.manual_seed(0)
    config = Glm4vMoeConfig(vision_config=VISION, text_config={**TEXT, **MOE, "rope_parameters": ROPE}, **IDS)
    return finish(Glm4vMoeForConditionalGeneration(config), attention)


@cache
def glm46v(attention: str) -> Any:
    return _glm46v("Glm46VConfig", attention, TEXT, "glm4v_text")


@cache
def glm46v_moe(attention: str) -> Any:
    return _glm46v("Glm46VConfig", attention, {**TEXT, **MOE}, "glm4v_moe_text")


@cache
def glmga(attention: str) -> Any:
    return _glm46v("GlmgaConfig", attention, TEXT, "glm4v_text")


def _glm46v(config: str, attention: str, text: dict[str, Any], model_type: str) -> Any:
    torch.manual_seed(0)
    made = getattr(transformers, config)(
        vision_config=VISION, text_config={"model_type": model_type, **text, "rope_parameters": ROPE}, **IDS
    )
    return finish(transformers.Glm46VForConditionalGeneration(made), attention)


@cache
def glm_ocr(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.GlmOcrConfig(vision_config=VISION, text_config={**TEXT, "rope_parameters": ROPE}, **IDS)
    return finish(transformers.GlmOcrForConditionalGeneration(config), attention)


GLM5 = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "mlp_layer_types": ["dense", "sparse"],
    "layer_types": ["linear_attention", "indexed_attention"],
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "index_topk": 512,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_kpool": 4,
    "hc_mult": 2,
}
"""More positions are chosen than a prompt has, so that what stays can be compared."""


@cache
def glm5_next(attention: str) -> Any:
    torch.manual_seed(0)
    vision = {**VISION, "projection_intermediate_size": 64}
    config = transformers.Glm5NextConfig(vision_config=vision, text_config={**TEXT, **GLM5}, **IDS)
    return finish(transformers.Glm5NextForConditionalGeneration(config), attention)


def types(ids: Tensor) -> dict[str, Tensor]:
    """A placeholder is a video's between its marks."""
    inside = (ids == FILM).cumsum(1) > (ids == CUT).cumsum(1)
    return {"mm_token_type_ids": (ids == IMAGE).int() * (1 + inside.int())}


def write_video(number: int, count: int) -> list[int]:
    """A time behind every frame."""
    frames = VIDEOS[number][0]
    each = [IMAGE] * (count // frames)
    return [FILM, *(token for frame in range(frames) for token in (START, *each, END, 70 + frame)), CUT]


SHARED: dict[str, Any] = {"per_token": types, "rope": True, "mixes_beams": True}


def _row(make: Any) -> Row:
    return Row(make, partial(image_pixels, 14), read, saliency, write=write_image, **SHARED)


def _film(make: Any, model: Any = Glm4vForConditionalGeneration) -> Row:
    return Row(
        make,
        partial(video_pixels, 14, False),
        read,
        saliency,
        kind="video",
        write=write_video,
        placeholder=IMAGE,
        repeats=not (hasattr(model, "_expand_multimodal_outputs") and "video" in model.input_modalities),
        **SHARED,
    )


ROWS = {
    "glm4v": _row(glm4v),
    "glm4v-video": _film(glm4v),
    "glm4v_moe": _row(glm4v_moe),
    "glm4v_moe-video": _film(glm4v_moe),
}
if known("glm46v"):
    ROWS |= {"glm46v": _row(glm46v), "glm46v-video": _film(glm46v), "glm46v_moe": _row(glm46v_moe)}
if known("glm_ocr"):
    ROWS["glm_ocr"] = _row(glm_ocr)
if known("glmga"):
    ROWS["glmga"] = _row(glmga)
if known("glm5_next"):
    ROWS["glm5_next"] = Row(glm5_next, partial(image_pixels, 14), read, saliency, write=write_image, mixes_beams=True)
    ROWS["glm5_next-video"] = replace(
        _film(glm5_next, transformers.Glm5NextForConditionalGeneration), per_token=lambda _: {}, rope=False
    )
