"""LLaVA-OneVision: crops (some shrunk), single views of several images, videos; an odd number of patches per side."""

from __future__ import annotations

import inspect
import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel, image_size_to_num_patches

from tests.tiny.rows import IMAGE, TEXT, VIDEO, VISION, Row, finish, flat, noise

EDGE, PER_SIDE, LIMIT = 70, 5, 2
PINPOINTS = [[70, 140], [140, 70], [140, 140], [70, 210]]
# (height, width), cut into 2 x 1, 2 x 2 (unpadded, then shrunk) and 1 x 3 (shrunk)
SIZES = [(110, 60), (110, 125), (70, 210)]
FRAMES = 3


@cache
def llava_onevision(attention: str) -> Any:
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**{**VISION, "image_size": EDGE}, vision_use_head=False),
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{LIMIT}",
    )
    return finish(LlavaOnevisionForConditionalGeneration(config), attention)


def image_pixels(grouped: bool, numbers: list[list[int]]) -> dict[str, Tensor]:
    images = flat(numbers)
    alone = [len(prompt) == 1 or not grouped for prompt in numbers for _ in prompt]
    sizes = [SIZES[number] for number in images]
    views = [
        image_size_to_num_patches(list(size), PINPOINTS, EDGE) if cut else 1
        for size, cut in zip(sizes, alone, strict=True)
    ]
    pixels = torch.zeros(len(images), max(views), 3, EDGE, EDGE)
    for place, (number, count) in enumerate(zip(images, views, strict=True)):
        pixels[place, :count] = noise(number, count, 3, EDGE, EDGE)
    groups = {"batch_num_images": torch.tensor([len(prompt) for prompt in numbers if prompt])} if grouped else {}
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes), **groups}


def video_pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    videos = [noise(20 + number, FRAMES, 3, EDGE, EDGE) for number in flat(numbers)]
    return {"pixel_values_videos": torch.stack(videos)}


def read(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn


def shrunk(plane: Tensor, rows: int, columns: int) -> Tensor:
    """(rows * columns,) bilinear samples of a plane, pixel centres at halves, worked out one by one."""

    def taps(place: int, size: int, wanted: int) -> list[tuple[int, float]]:
        at = max((place + 0.5) * size / wanted - 0.5, 0.0)
        low = math.floor(at)
        return [(low, 1 - (at - low)), (min(low + 1, size - 1), at - low)]

    return torch.stack(
        [
            sum(  # type: ignore[misc]
                plane[r, c] * down * across
                for r, down in taps(row, plane.shape[0], rows)
                for c, across in taps(column, plane.shape[1], columns)
            )
            for row in range(rows)
            for column in range(columns)
        ]
    )


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What every patch receives in its view, then as the features go: laid out, unpadded, shrunk."""
    received = torch.cat(matrices).mean(dim=1).view(-1, PER_SIDE, PER_SIDE)
    if "pixel_values_videos" in inputs:
        frames = [shrunk(frame, 3, 3) for frame in received]
        return [torch.cat(frames[start : start + FRAMES]) for start in range(0, len(frames), FRAMES)]
    found, first = [], 0
    for image in images:
        geometry = image.tokens.geometry
        views = received[first : first + len(geometry.grids)]
        first += len(views)
        if len(views) == 1:
            found.append(views[0].flatten())
            continue
        height, width = geometry.image_size
        across = {SIZES[0]: 1, SIZES[1]: 2, SIZES[2]: 3}[height, width]
        lines = views[1:].split(across)
        canvas = torch.cat([torch.cat(list(line), dim=1) for line in lines])
        rows, columns = canvas.shape
        if width / height > columns / rows:
            padding = (rows - int(round(height * columns / width, 7))) // 2
            canvas = canvas[padding : rows - padding]
        else:
            padding = (columns - int(round(width * rows / height, 7))) // 2
            canvas = canvas[:, padding : columns - padding]
        ratio = math.sqrt(canvas.numel() / (LIMIT * PER_SIDE**2))
        if ratio > 1.1:
            tokens = shrunk(canvas, int(canvas.shape[0] // ratio), int(canvas.shape[1] // ratio))
        else:
            tokens = canvas.flatten()
        found.append(torch.cat([views[0].flatten(), tokens]))
    return found


ROWS = {
    "llava_onevision": Row(llava_onevision, partial(image_pixels, True), read, saliency, newlines=True),
    "llava_onevision-crops": Row(llava_onevision, partial(image_pixels, False), read, saliency, newlines=True),
}
FILM = Row(
    llava_onevision,
    video_pixels,
    read,
    saliency,
    newlines=True,
    kind="video",
    write=lambda _, count: [VIDEO] * count,
)
# Before 5.18 stock transformers put a video's newline behind what get_video_features gives: refused.
VIDEOS = "mm_encoder_outputs" in inspect.signature(LlavaOnevisionModel.forward).parameters
if VIDEOS:
    ROWS["llava_onevision-video"] = FILM
