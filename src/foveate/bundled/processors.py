"""Processors of the bundled models, from their parts: they read pictures and videos with Pillow, as in training,
everywhere.

Left to itself, transformers chooses torchvision's resizing where that is installed, which gives other pixels, and does
without Qwen3-VL's processor where it is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import ProcessorMixin

from foveate.bundled.videos import PillowVideos


def load(folder: Path) -> ProcessorMixin:
    """The processor of a checkpoint folder."""
    options = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    images = options.pop("image_processor")
    images.pop("image_processor_type", None)
    name = options.pop("processor_class")
    if name == "Qwen3VLProcessor":
        return qwen3_vl(images, tokenizer, template, options.get("video_processor"))
    assert name == "LlavaNextProcessor", name
    return transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessorPil(**images), tokenizer, chat_template=template, **options
    )


def qwen3_vl(
    images: dict[str, Any], tokenizer: Any, template: str, videos: dict[str, Any] | None = None
) -> ProcessorMixin:
    """Qwen3-VL's processor without torchvision.

    Args:
        images: options of the image processor.
        tokenizer: with Qwen's marks in its vocabulary.
        template: chat template, Jinja.
        videos: options of the video processor; default those for images.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class Pictures(transformers.Qwen3VLProcessor):  # type: ignore[misc]
        """``Qwen3VLProcessor`` whose parts need not be torchvision's."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "tokenizer":
                return super().check_argument_for_proper_class(argument_name, argument)
            return type(argument)

    # Transformers tells processors by their class's name.
    Pictures.__name__ = Pictures.__qualname__ = "Qwen3VLProcessor"
    return Pictures(
        Qwen2VLImageProcessorPil(**images),
        tokenizer,
        PillowVideos(**(images if videos is None else videos)),
        chat_template=template,
    )
