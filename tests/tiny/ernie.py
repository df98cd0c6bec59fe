"""ERNIE-4.5-VL: images, and videos whose frames are merged in pairs."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.qwen import IMAGES, read_tower, saliency, write_image
from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, Row, finish, flat, known, noise

FILM, CUT = 94, 95
"""A video's start and end."""
# (frames, rows, columns) of patches
VIDEOS = [(4, 4, 6), (2, 6, 4), (2, 4, 4)]
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_merge_size": 2,
}
MOE = {
    "moe_k": 2,
    "moe_num_experts": 4,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": [32, 16],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
}
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": FILM,
    "video_end_token_id": CUT,
}


@cache
def ernie(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.Ernie4_5_VLMoeConfig(vision_config=VISION, text_config={**TEXT, **MOE}, **IDS)
    model = finish(transformers.Ernie4_5_VLMoeForConditionalGeneration(config), attention)
    # A norm is the last that tokens go through: weights that are all one would give all of them the same length, by
    # which some methods choose, and the choice would be rounding's.
    with torch.no_grad():
        model.model.resampler_model.after_norm.weight.uniform_(0.5, 1.5)
    return model


def image_pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    patches = [noise(number, math.prod(IMAGES[number]), 588) for number in flat(numbers)]
    return {
        "pixel_values": torch.cat(patches),
        "image_grid_thw": torch.tensor([IMAGES[number] for number in flat(numbers)]),
    }


def video_pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    patches = [noise(20 + number, math.prod(VIDEOS[number]), 588) for number in flat(numbers)]
    return {
        "pixel_values_videos": torch.cat(patches),
        "video_grid_thw": torch.tensor([VIDEOS[number] for number in flat(numbers)]),
    }


def types(ids: Tensor) -> dict[str, Tensor]:
    """The experts' types count the marks around an image among it."""
    image, video = (ids == IMAGE).int(), (ids == VIDEO).int()
    image_marks, video_marks = torch.isin(ids, torch.tensor([START, END])), torch.isin(ids, torch.tensor([FILM, CUT]))
    return {
        "mm_token_type_ids": image + 2 * video,
        "moe_mm_token_type_ids": image + 2 * video + image_marks.int() + 2 * video_marks.int(),
    }


def write_video(_: int, count: int) -> list[int]:
    return [FILM, *[VIDEO] * count, CUT]


def with_types(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """The language model, told which tokens its vision experts see; what was generated is text."""
    types = torch.zeros(embeddings.shape[:2], dtype=torch.int64)
    known = prompt.types["moe_mm_token_type_ids"]
    types[:, : known.shape[1]] = known
    hidden: Tensor = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        moe_mm_token_type_ids=types,
        use_cache=False,
    ).last_hidden_state
    return hidden


def film_saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What the patches of a token receive within each of its two frames."""
    received = iter([matrix[0].mean(dim=0).view(-1, 4).sum(dim=1) for matrix in matrices])
    return [
        torch.cat([next(received) + next(received) for _ in range(frames // 2)])
        for frames, _, _ in inputs["video_grid_thw"].tolist()
    ]


SHARED: dict[str, Any] = {
    "read": read_tower,
    "per_token": types,
    "hidden": with_types,
    "rope": True,
    "embeds": False,
    "grows": False,
}
ROWS: dict[str, Row] = {}
if known("ernie4_5_vl_moe"):
    ROWS = {
        "ernie4_5_vl_moe": Row(ernie, image_pixels, saliency=saliency, write=write_image, **SHARED),
        "ernie4_5_vl_moe-video": Row(
            ernie, video_pixels, saliency=film_saliency, kind="video", write=write_video, **SHARED
        ),
    }
