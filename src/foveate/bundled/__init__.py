"""The small model that ships with Foveate: a stock LLaVA-NeXT checkpoint, trained on drawn scenes (MODEL_CARD.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

#: What a complete checkpoint folder holds.
PARTS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "chat_template.jinja",
)


def path(name: str | None = None) -> Path:
    """The checkpoint's folder, as ``from_pretrained`` and vLLM take it."""
    return Path(__file__).with_name("dynamic" if name == "dynamic" else "checkpoint")


def text_config() -> dict[str, Any]:
    """The language model's part of config.json."""
    found: dict[str, Any] = json.loads((path() / "config.json").read_text(encoding="utf-8"))["text_config"]
    return found


def load(
    dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Load the bundled model, offline, on the CPU.

    The image processor is the one that uses Pillow, with which the model was trained; torchvision is not needed.

    Args:
        dtype: of the weights; they are stored in float16.
        attn_implementation: as for ``from_pretrained``.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: the checkpoint folder, or a part of it, is missing.
    """
    folder = path()
    missing = [part for part in PARTS if not (folder / part).is_file()]
    if missing:
        raise FileNotFoundError(
            f"the bundled model in {folder} lacks {', '.join(missing)}: install foveate again, "
            "or make the model with `python -m training` in a checkout"
        )
    from transformers import LlavaNextForConditionalGeneration

    model = LlavaNextForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
    )
    return model.eval(), _processor(folder)


def _processor(folder: Path) -> LlavaNextProcessor:
    """The processor, from its parts: left to itself, transformers chooses torchvision's resizing where that is
    installed, which gives other pixels.
    """
    import transformers

    options = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    options.pop("processor_class", None)
    image_options = options.pop("image_processor")
    image_options.pop("image_processor_type", None)
    return transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessorPil(**image_options),
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
        chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
        **options,
    )
