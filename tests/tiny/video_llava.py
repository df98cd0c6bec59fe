"""Video-LLaVA: pictures, and videos with a CLS token in every frame, through towers of their own."""

from __future__ import annotations

import inspect
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.models.video_llava.modeling_video_llava import VideoLlavaModel

from tests.tiny.llava import FRAMES, clip, llava_pixels, saliency, text_config, videos
from tests.tiny.rows import IMAGE, VIDEO, Row, features_of, finish

PIXELS = next(name for name in inspect.signature(VideoLlavaModel.forward).parameters if name.startswith("pixel_values"))
"""What pictures are called, here."""


@cache
def video_llava(attention: str) -> Any:
    torch.manual_seed(0)
    config = VideoLlavaConfig(
        vision_config=clip(), text_config=text_config(), image_token_index=IMAGE, video_token_index=VIDEO,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    return finish(VideoLlavaForConditionalGeneration(config), attention)


def pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    return {PIXELS: llava_pixels(numbers)["pixel_values"]}


def tower(kind: str, model: Any) -> Any:
    return getattr(model.model, f"{kind}_tower")


def read(kind: str, model: Any) -> Any:
    found = tower(kind, model)
    return getattr(found, "vision_model", found).encoder.layers[-2].self_attn


def films(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """A video's frames, one behind the other."""
    frames = features_of(model, inputs, kind).pooler_output
    return [video.flatten(0, 1) for video in frames.split(FRAMES)]


def first_of_frames(model: Any, stream: Tensor) -> Tensor:
    """CLS, in front of every frame."""
    return torch.arange(len(stream)) % (len(stream) // FRAMES) == 0


ROWS: dict[str, Row] = {
    "video_llava": Row(video_llava, pixels, partial(read, "image"), saliency, hands=partial(tower, "image")),
    "video_llava-video": Row(
        video_llava,
        videos,
        partial(read, "video"),
        saliency,
        kind="video",
        write=lambda _, count: [VIDEO] * count,
        streams=films,
        hands=partial(tower, "video"),
        marks=first_of_frames,
    ),
}
