"""HunyuanVL, with four axes of positions and with three, and Hy 4 VL, with images and with videos: marks among a
picture's own placeholders."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from tests.tiny.ocr import saliency
from tests.tiny.qwen import image_pixels, types, video_pixels, write_image, write_video
from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, VISION, Row, features_of, finish, known

TOWER = {name: value for name, value in VISION.items() if name != "image_size"} | {"max_image_size": 112}
NEWLINE = 95
IDS = {"image_token_id": IMAGE, "im_start_id": START, "im_end_id": END, "im_newline_id": NEWLINE}


def text(sections: list[int]) -> dict[str, Any]:
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    return {**TEXT, "head_dim": 16, "rope_parameters": parameters}


@cache
def hunyuan_vl(sections: tuple[int, ...], attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.HunYuanVLConfig(
        vision_config={**TOWER, "out_hidden_size": 64}, text_config=text(list(sections)), **IDS
    )
    return finish(transformers.HunYuanVLForConditionalGeneration(config), attention)


# Fewer positions are chosen than a prompt has; so many heads that no two keys score the same, which a ReLU makes 0.
HY4 = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "index_topk": 12,
    "index_head_dim": 16,
    "index_n_heads": 8,
    "hc_mult": 2,
}


@cache
def hy_v4_vl(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.HYV4VLConfig(
        vision_config={**TOWER, "out_hidden_size": 64},
        text_config={**text([2, 3, 3]), **HY4},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    # Its language model knows eager attention alone.
    return finish(transformers.HYV4VLForConditionalGeneration(config), {"vision_config": attention})


def marks(model: Any, stream: Tensor) -> Tensor:
    """What the merger makes of its marks, known by their values."""
    merger = model.model.vision_tower.patch_merger
    with torch.no_grad():
        known = merger.after_rms(torch.stack([merger.image_begin, merger.image_end, merger.mlp(merger.image_newline)]))
    return (stream[:, None] - known).abs().amax(dim=-1).lt(1e-4).any(dim=1)


def newlines(model: Any, stream: Tensor) -> Tensor:
    """The marks that Hy 4 VL puts behind rows as they are."""
    return (stream == model.model.vision_tower.patch_merger.image_newline).all(dim=1)


def read(model: Any) -> Any:
    return model.model.vision_tower.layers[-1].self_attn


def encoded(model: Any, inputs: dict[str, Tensor], kind: str) -> Tensor:
    """The last layer's patches, row by row."""
    states: Tensor = features_of(model, inputs, kind).last_hidden_state
    return states[0]


SHARED: dict[str, Any] = {"per_token": types, "rope": True, "write": write_image, "encoded": encoded}
ROWS: dict[str, Row] = {}
if known("hunyuan_vl") and Version(transformers.__version__) >= Version("5.24"):
    for name, sections in {"hunyuan_vl": (2, 2, 2, 2), "hunyuan_vl-three": (2, 3, 3)}.items():
        ROWS[name] = Row(
            partial(hunyuan_vl, sections),
            partial(image_pixels, VISION["patch_size"], depth=1),
            read,
            saliency,
            marks=marks,
            text_row=False,
            alone=False,
            **SHARED,
        )
if known("hy_v4_vl"):
    hy4: dict[str, Any] = {"read": read, "saliency": saliency, "marks": newlines, **SHARED}
    side = VISION["patch_size"]
    ROWS["hy_v4_vl"] = Row(hy_v4_vl, partial(image_pixels, side, depth=1), **hy4)
    films = partial(video_pixels, side, "", depth=1)
    ROWS["hy_v4_vl-video"] = Row(hy_v4_vl, films, **{**hy4, "write": write_video, "kind": "video"})
