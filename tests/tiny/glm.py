"""GLM-4.1V and its MoE variant (GLM-4.5V): images."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

from tests.tiny.qwen import image_pixels, read, saliency, types, write_image
from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, Row, finish

IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": 94,
    "video_end_token_id": 95,
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


def _row(make: Any) -> Row:
    return Row(
        make,
        partial(image_pixels, 14),
        read,
        saliency,
        write=write_image,
        per_token=types,
        rope=True,
        mixes_beams=True,
    )


ROWS = {"glm4v": _row(glm4v), "glm4v_moe": _row(glm4v_moe)}
