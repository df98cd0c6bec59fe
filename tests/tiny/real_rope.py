"""The same as ``tests.tiny.real`` for Qwen-VL after 3, the omni thinkers, and what is made like them."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version

from tests.tiny import omni, qwen, qwen35
from tests.tiny.real import _TEXT as TEXT
from tests.tiny.real import _WIDTHS as WIDTHS
from tests.tiny.real import Real, _counts, _finished, _qwen_images
from tests.tiny.real_packed import pil
from tests.tiny.rows import known

SIDES = {"shortest_edge": 65536, "longest_edge": 16777216}
FINE = {"num_position_embeddings": 2304, "hidden_size": 32, "out_hidden_size": 64}
HEADS = {**TEXT, "head_dim": 16}


def _qwen3_5() -> Any:
    text = {**HEADS, **qwen35.LINEAR, "layer_types": ["full_attention"], **qwen.rope(mrope_interleaved=True)}
    config = transformers.Qwen3_5Config(vision_config=qwen.vision(16, 2, **FINE), text_config=text, **qwen.IDS)
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _omni(name: str, vision: dict[str, Any], **text: Any) -> Any:
    config = getattr(transformers, f"{name}ThinkerConfig")(
        audio_config=omni.HEARING, vision_config=vision, text_config={**TEXT, **text}, **qwen.IDS, **omni.AUDIO_IDS
    )
    return getattr(transformers, f"{name}ThinkerForConditionalGeneration")(config)


def _qwen2_5_omni() -> Any:
    windows = {"window_size": 112, "fullatt_block_indexes": [1]}
    return _omni("Qwen2_5Omni", qwen.vision(14, 2, hidden_size=32, out_hidden_size=64, **windows), **qwen.rope())


def _qwen3_omni() -> Any:
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "head_dim": 16}
    deep = qwen.vision(16, 2, deepstack_visual_indexes=[0], **FINE)
    return _omni("Qwen3OmniMoe", deep, **experts, **qwen.rope(mrope_interleaved=True))


def _compass() -> Any:
    kind = "full_attention"
    text = {**HEADS, "layer_types": [kind], "rope_parameters": {kind: qwen.rope()["rope_parameters"]}}
    vision = qwen.vision(16, 2, deepstack_visual_indexes=[0], **FINE)
    config = transformers.CohereCompassConfig(vision_config=vision, text_config=text, **qwen.IDS)
    return transformers.CohereCompassForConditionalGeneration(config)


def _edge() -> Any:
    vision = {**WIDTHS, "patch_size": 16, "num_patches": 256, "spatial_merge_size": 2}
    config = transformers.Cosmos3EdgeConfig(
        vision_config=vision, text_config={**HEADS, **qwen.rope()}, projector_hidden_size=64, **qwen.IDS
    )
    return transformers.Cosmos3EdgeForConditionalGeneration(config)


REAL: dict[str, Real] = {}
if qwen35.ROWS:
    REAL["qwen3.5"] = Real(
        _finished(_qwen3_5), _qwen_images(16, 65536, 16777216), counts=_counts(100, 768, 11750, 558, 64)
    )
if omni.ROWS:
    REAL["qwen2.5-omni"] = Real(
        _finished(_qwen2_5_omni), _qwen_images(14, 3136, 12845056), counts=_counts(144, 999, 15301, 781, 4)
    )
    REAL["qwen3-omni"] = Real(_finished(_qwen3_omni), _qwen_images(16, 3136, 12845056))
if known("cohere_compass"):
    REAL["cohere-compass"] = Real(
        _finished(_compass), pil("cohere_compass", "CohereCompass", size=SIDES, patch_size=16)
    )
if known("cosmos3_edge") and Version(transformers.__version__) >= Version("5.24"):
    REAL["cosmos3-edge"] = Real(_finished(_edge), pil("cosmos3_edge", "Cosmos3Edge"))
