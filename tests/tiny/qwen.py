"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, with images and with videos."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, Row, features_of, finish, flat, noise

# (frames, rows, columns) of patches: portrait, square and landscape
IMAGES = [(1, 8, 4), (1, 6, 6), (1, 4, 10)]
VIDEOS = [(3, 4, 6), (1, 6, 4), (2, 4, 4)]

IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
WINDOWS = {"window_size": 56, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}


def rope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], **more}}


def vision(patch: int, depth: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": depth,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **more,
    }


@cache
def qwen2_vl(attention: str) -> Any:
    torch.manual_seed(0)
    tower = vision(14, 3, embed_dim=32, hidden_size=64, mlp_ratio=2)
    config = Qwen2VLConfig(vision_config=tower, text_config={**TEXT, **rope()}, **IDS)
    return finish(Qwen2VLForConditionalGeneration(config), attention)


@cache
def qwen2_5_vl(attention: str) -> Any:
    torch.manual_seed(0)
    tower = vision(14, 4, hidden_size=32, out_hidden_size=64, **WINDOWS)
    config = Qwen2_5_VLConfig(vision_config=tower, text_config={**TEXT, **rope()}, **IDS)
    return finish(Qwen2_5_VLForConditionalGeneration(config), attention)


QWEN3 = {"hidden_size": 32, "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}


@cache
def qwen3_vl(attention: str) -> Any:
    torch.manual_seed(0)
    text = {**TEXT, "head_dim": 16, **rope(mrope_interleaved=True)}
    return finish(
        Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision(16, 3, **QWEN3), text_config=text, **IDS)),
        attention,
    )


@cache
def qwen3_vl_moe(attention: str) -> Any:
    torch.manual_seed(0)
    text = {
        **TEXT,
        "head_dim": 16,
        **rope(mrope_interleaved=True),
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }
    return finish(
        Qwen3VLMoeForConditionalGeneration(
            Qwen3VLMoeConfig(vision_config=vision(16, 3, **QWEN3), text_config=text, **IDS)
        ),
        attention,
    )


def image_pixels(patch: int, numbers: list[list[int]]) -> dict[str, Tensor]:
    grids = [IMAGES[number] for number in flat(numbers)]
    patches = [noise(number, math.prod(IMAGES[number]), 6 * patch**2) for number in flat(numbers)]
    return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}


def video_pixels(patch: int, seconds: bool, numbers: list[list[int]]) -> dict[str, Tensor]:
    grids = [VIDEOS[number] for number in flat(numbers)]
    patches = [noise(20 + number, math.prod(VIDEOS[number]), 6 * patch**2) for number in flat(numbers)]
    timing = {"second_per_grid_ts": torch.tensor([2.0 - min(number, 1) for number in flat(numbers)])} if seconds else {}
    return {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids), **timing}


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def write_image(_: int, count: int) -> list[int]:
    return [START, *[IMAGE] * count, END]


def write_video(_: int, count: int) -> list[int]:
    return [START, *[VIDEO] * count, END]


def write_frames(number: int, count: int) -> list[int]:
    """Qwen3-VL writes a time before every frame."""
    frames = VIDEOS[number][0]
    each = count // frames
    return [token for frame in range(frames) for token in (70 + frame, START, *[VIDEO] * each, END)]


def planes(model: Any, inputs: dict[str, Tensor], kind: str) -> list[list[Tensor]]:
    """Per image its DeepStack planes."""
    output = features_of(model, inputs, kind)
    counts = [len(one) for one in output.pooler_output]
    found = [plane.split(counts) if torch.is_tensor(plane) else plane for plane in output.deepstack_features]
    return [list(image) for image in zip(*found, strict=True)]


def with_planes(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """The language model with DeepStack planes at the visual places; what was generated carries none."""
    visual = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
    visual[:, : prompt.visual.shape[1]] = prompt.visual
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        visual_pos_masks=visual,
        deepstack_visual_embeds=[plane[prompt.visual] for plane in prompt.planes],
    ).last_hidden_state


def read(model: Any) -> Any:
    """The last layer; Qwen2.5-VL's last is one of those that see the whole image."""
    return model.model.visual.blocks[-1].attn


def read_tower(model: Any) -> Any:
    """The last layer, where the encoder is called a tower."""
    return model.model.vision_tower.blocks[-1].attn


def windows(rows: int, columns: int, side: int) -> list[tuple[int, int]]:
    """The merged squares of one frame, as Qwen2.5-VL's encoder visits them."""
    return [
        (row, column)
        for top in range(0, rows, side)
        for left in range(0, columns, side)
        for row in range(top, min(top + side, rows))
        for column in range(left, min(left + side, columns))
    ]


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """Per frame what every patch receives, four summed to a token, windows put back in their places."""
    frames = iter(matrices)
    found = []
    for image in images:
        tokens = []
        for rows, columns in image.tokens.geometry.grids:
            sums = next(frames)[0].mean(dim=0).view(-1, 4).sum(dim=1)
            if model.config.model_type == "qwen2_5_vl":
                side = WINDOWS["window_size"] // 2 // 14
                order = [row * columns + column for row, column in windows(rows, columns, side)]
                sums = sums[torch.tensor([order.index(place) for place in range(rows * columns)])]
            tokens.append(sums)
        found.append(torch.cat(tokens))
    return found


def qwen_rows(name: str, make: Any, patch: int, frames: Any = write_video, **more: Any) -> dict[str, Row]:
    """A row with images and one with videos, whose prompts ``frames`` writes."""
    return {
        name: Row(
            make, partial(image_pixels, patch), read, saliency, write=write_image, per_token=types, rope=True, **more
        ),
        f"{name}-video": Row(
            make,
            partial(video_pixels, patch, make is qwen2_5_vl),
            read,
            saliency,
            kind="video",
            write=frames,
            per_token=types,
            rope=True,
            **more,
        ),
    }


DEEPSTACK: dict[str, Any] = {"planes": planes, "hidden": with_planes, "embeds": False}
ROWS = {
    **qwen_rows("qwen2_vl", qwen2_vl, 14),
    **qwen_rows("qwen2_5_vl", qwen2_5_vl, 14),
    **qwen_rows("qwen3_vl", qwen3_vl, 16, write_frames, **DEEPSTACK),
    "qwen3_vl_moe": qwen_rows("qwen3_vl_moe", qwen3_vl_moe, 16, write_frames, **DEEPSTACK)["qwen3_vl_moe"],
}
