"""LFM3-VL: images, and videos with a time before every frame."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import transformers

from tests.tiny.qwen import image_pixels, saliency, video_pixels, write_frames, write_image
from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, Row, finish, known

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    # Of the convolution behind it is read what attention is read of in the layer before.
    "layer_types": ["conv", "full_attention", "full_attention", "conv"],
}
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


@cache
def lfm3_vl(attention: str) -> Any:
    torch.manual_seed(0)
    text = {**TEXT, "model_type": "lfm3", "head_dim": 16, "layer_types": ["conv", "full_attention"]}
    config = transformers.Lfm3VlConfig(vision_config=VISION, text_config=text, projector_hidden_size=64, **IDS)
    return finish(transformers.Lfm3VlForConditionalGeneration(config), attention)


def read(model: Any) -> Any:
    return model.model.vision_tower.layers[2].self_attn


ROWS: dict[str, Row] = {}
if known("lfm3_vl"):
    ROWS = {
        "lfm3_vl": Row(lfm3_vl, partial(image_pixels, 16), read, saliency, write=write_image),
        "lfm3_vl-video": Row(
            lfm3_vl, partial(video_pixels, 16, False), read, saliency, kind="video", write=write_frames
        ),
    }
