"""Readers of documents: PaddleOCR-VL."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.qwen import IMAGES, types, write_image
from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, VISION, Row, features_of, finish, flat, known, noise

IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}


@cache
def paddleocr(attention: str) -> Any:
    torch.manual_seed(0)
    vision = {**VISION, "spatial_merge_size": 2}
    config = transformers.PaddleOCRVLConfig(
        vision_config=vision, text_config={**TEXT, **ROPE, "head_dim": 16, "eos_token_id": None}, **IDS
    )
    return finish(transformers.PaddleOCRVLForConditionalGeneration(config), attention)


def patches(numbers: list[list[int]]) -> dict[str, Tensor]:
    """Each patch a picture of its own, row by row."""
    pixels = [noise(number, math.prod(IMAGES[number]), 3, 14, 14) for number in flat(numbers)]
    return {
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.tensor([IMAGES[number] for number in flat(numbers)]),
    }


def read(model: Any) -> Any:
    return model.model.visual.vision_model.encoder.layers[-1].self_attn


def hands(model: Any) -> Any:
    return model.model.visual.vision_model


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What the patches of a frame receive, row by row, summed over squares."""
    frames = iter(matrices)
    grids = next(inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs).tolist()
    return [
        torch.cat(
            [
                next(frames)[0].mean(dim=0).view(rows // 2, 2, columns // 2, 2).sum(dim=(1, 3)).flatten()
                for _ in range(times)
            ]
        )
        for times, rows, columns in grids
    ]


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """Per image its features, which come as one tensor before 5.18."""
    found = features_of(model, inputs, kind).pooler_output
    counts = (inputs["image_grid_thw"].prod(dim=1) // 4).tolist()
    return list(found.split(counts) if torch.is_tensor(found) else found)


ROWS: dict[str, Row] = {}
if known("paddleocr_vl"):
    ROWS["paddleocr_vl"] = Row(
        paddleocr,
        patches,
        read,
        saliency,
        write=write_image,
        per_token=types,
        streams=streams,
        hands=hands,
        rope=True,
        mixes_beams=True,
    )
