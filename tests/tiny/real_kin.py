"""Released geometry of what reads its pictures by an encoder that another family of ``real`` has too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from tests.tiny.deepseek import DRAWING
from tests.tiny.rows import END, IMAGE, START, known
from tests.tiny.video_llava import PIXELS


def video_llava_images(picture: Image.Image) -> dict[str, Any]:
    """Under the name that this version's functions take."""
    (pixels,) = transformers.VideoLlavaImageProcessor()(picture, return_tensors="pt").values()
    return {PIXELS: pixels}


def rows(tools: Any) -> dict[str, Any]:
    """By checkpoint.

    Args:
        tools: the module ``tests.tiny.real``, which asks.
    """

    def made(name: str, **config: Any) -> Callable[[], Any]:
        def make() -> Any:
            return getattr(transformers, f"{name}ForConditionalGeneration")(
                getattr(transformers, f"{name}Config")(**config)
            )

        return tools._finished(make)

    square, pixtral = (
        tools._square(336),
        PixtralImageProcessorPil(size={"longest_edge": 1540}, patch_size=tools._square(28)),
    )
    found = {
        "llava-next-video": tools.Real(
            made(
                "LlavaNextVideo",
                vision_config=tools._clip(),
                text_config=tools._llama(),
                image_token_index=IMAGE,
                image_grid_pinpoints=tools.NEXT_PINPOINTS,
            ),
            tools._by(
                LlavaNextImageProcessorPil(
                    size={"shortest_edge": 336}, crop_size=square, image_grid_pinpoints=tools.NEXT_PINPOINTS
                )
            ),
            counts=tools._counts(1176, 2340, 2340, 1368, 1176),
        ),
        "video-llava": tools.Real(
            made(
                "VideoLlava",
                vision_config=tools._clip(224),
                text_config=tools._llama(),
                image_token_index=IMAGE,
            ),
            video_llava_images,
            counts=tools._counts(256, 256, 256, 256, 256),
        ),
        "vip-llava": tools.Real(
            made(
                "VipLlava",
                vision_config=tools._clip(),
                text_config=tools._llama(),
                image_token_index=IMAGE,
                vision_feature_layers=[-2, 1],
            ),
            tools._by(CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=square)),
            counts=tools._counts(576, 576, 576, 576, 576),
        ),
    }
    if known("janus"):
        from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

        half = [0.5, 0.5, 0.5]
        vision = {**tools._WIDTHS, "image_size": 384, "patch_size": 16, "mlp_ratio": 2.0, "projection_dim": 64}
        found["janus-pro"] = tools.Real(
            made("Janus", vision_config=vision, vq_config=DRAWING, text_config=tools._llama(), image_token_id=IMAGE),
            tools._by(JanusImageProcessorPil(size=tools._square(384), image_mean=half, image_std=half)),
            lambda _, count: [START, *[IMAGE] * count, END],
            counts=tools._counts(576, 576, 576, 576, 576),
        )
    if known("lighton_ocr"):
        text = {"model_type": "qwen3", **tools._TEXT, "head_dim": 16}
        found["lighton-ocr"] = tools.Real(
            made("LightOnOcr", vision_config=tools._pixtral(14, 1540), text_config=text, image_token_id=IMAGE),
            tools._by(pixtral),
            counts=tools._counts(144, 1036, 2310, 495),
        )
    if known("qianfan_ocr"):
        vision = {**tools._WIDTHS, "image_size": [448, 448], "patch_size": [14, 14]}
        text = {"model_type": "qwen3", **tools._TEXT, "head_dim": 16}
        found["qianfan-ocr"] = tools.Real(
            made("QianfanOCR", vision_config=vision, text_config=text, image_token_id=IMAGE),
            tools._by(tools._tiles(448, 12)),
            counts=tools._counts(256, 3328, 3328, 2048, 256),
        )
    return found
