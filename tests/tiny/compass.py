"""Cohere Compass, with images and with videos: Qwen3-VL's encoder, DeepStack, and an LLM that sees a window in every
other layer; Cosmos 3's reasoner, which is Qwen3-VL by another
name, and its Edge variant."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from packaging.version import Version

from tests.tiny.qwen import DEEPSTACK, IDS, QWEN3, qwen_rows, rope, vision, write_frames
from tests.tiny.rows import TEXT, VISION, Row, finish, known


@cache
def cohere_compass(attention: str) -> Any:
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    parameters = rope(mrope_interleaved=True)["rope_parameters"]
    text = {
        **TEXT,
        "head_dim": 16,
        "layer_types": kinds,
        "sliding_window": 24,
        "logit_scale": 0.5,
        "rope_parameters": {kind: dict(parameters) for kind in kinds},
    }
    config = transformers.CohereCompassConfig(vision_config=vision(16, 3, **QWEN3), text_config=text, **IDS)
    return finish(transformers.CohereCompassForConditionalGeneration(config), attention)


@cache
def cosmos3_omni(attention: str) -> Any:
    torch.manual_seed(0)
    text = {**TEXT, "head_dim": 16, **rope(mrope_interleaved=True)}
    config = transformers.Cosmos3OmniConfig(vision_config=vision(16, 3, **QWEN3), text_config=text, **IDS)
    return finish(transformers.Cosmos3OmniForConditionalGeneration(config), attention)


@cache
def cosmos3_edge(attention: str) -> Any:
    torch.manual_seed(0)
    tower = {**VISION, "patch_size": 16, "num_patches": 16, "spatial_merge_size": 2}
    del tower["image_size"]
    text = {**TEXT, "head_dim": 16, **rope()}
    config = transformers.Cosmos3EdgeConfig(vision_config=tower, text_config=text, projector_hidden_size=64, **IDS)
    return finish(transformers.Cosmos3EdgeForConditionalGeneration(config), attention)


def _last_layer(model: Any) -> Any:
    return model.model.visual.encoder.layers[-1].self_attn


def _last_norm(model: Any) -> Any:
    return model.model.visual.post_layernorm


def _last_block(model: Any) -> Any:
    return model.model.visual.blocks[-1]


ROWS: dict[str, Row] = {}
if known("cohere_compass"):
    ROWS |= qwen_rows("cohere_compass", cohere_compass, 16, write_frames, hands=_last_block, **DEEPSTACK)
if known("cosmos3_omni"):
    ROWS["cosmos3_omni"] = qwen_rows("cosmos3_omni", cosmos3_omni, 16, write_frames, hands=_last_block, **DEEPSTACK)[
        "cosmos3_omni"
    ]
if known("cosmos3_edge") and Version(transformers.__version__) >= Version("5.24"):
    ROWS |= qwen_rows("cosmos3_edge", cosmos3_edge, 16, write_frames, depth=1, read=_last_layer, hands=_last_norm)
