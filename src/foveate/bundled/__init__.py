"""The small models that ship with Foveate, each a stock checkpoint with a MODEL_CARD.md.

``"bundled"`` is a LLaVA-NeXT, trained on drawn scenes: its encoder has a CLS token, and sees pictures in views.
``"dynamic"`` is a Qwen3-VL, trained on drawn scenes and documents: no CLS token, merged patches, positions of two
dimensions, pictures of any size at their own resolution.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

if TYPE_CHECKING:
    from transformers import (
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

#: Name of a model, wherever a folder or a hub id may be given -> name of its folder here.
FOLDERS = {"bundled": "checkpoint", "dynamic": "dynamic"}

#: What a complete checkpoint folder holds.
PARTS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "chat_template.jinja",
)


def shipped(source: str | None) -> str | None:
    """Which of these models a source names, where a folder or a hub id may be given: None is ``"bundled"``; None comes
    back where it is another model."""
    name = source or "bundled"
    return name if name in FOLDERS else None


def path(name: str = "bundled") -> Path:
    """A checkpoint's folder, as ``from_pretrained`` and vLLM take it.

    Raises:
        ValueError: no model of that name ships.
    """
    if name not in FOLDERS:
        raise ValueError(f"no model called {name!r} ships with foveate; there are {' and '.join(FOLDERS)}")
    return Path(__file__).with_name(FOLDERS[name])


def text_config(name: str = "bundled") -> dict[str, Any]:
    """The language model's part of a checkpoint's config.json."""
    found: dict[str, Any] = json.loads((path(name) / "config.json").read_text(encoding="utf-8"))["text_config"]
    return found


@overload
def load(
    name: Literal["bundled"] = "bundled", dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]: ...


@overload
def load(
    name: Literal["dynamic"], dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]: ...


@overload
def load(name: str, dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa") -> tuple[Any, Any]: ...


def load(
    name: str = "bundled", dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[Any, Any]:
    """Load a bundled model, offline, on the CPU.

    Its image processor is the one that uses Pillow, with which the model was trained; torchvision is not needed.

    Args:
        name: ``"bundled"`` or ``"dynamic"``; see the module.
        dtype: of the weights; they are stored in float16.
        attn_implementation: as for ``from_pretrained``.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        ValueError: no model of that name ships.
        TypeError: something else than a name comes first.
        FileNotFoundError: the checkpoint folder, or a part of it, is missing.
    """
    if not isinstance(name, str):
        raise TypeError(f"foveate.bundled.load takes a model's name first, got {name!r}: give dtype= by its name")
    folder = path(name)
    missing = [part for part in PARTS if not (folder / part).is_file()]
    if missing:
        raise FileNotFoundError(
            f"the model {name!r} in {folder} lacks {', '.join(missing)}: install foveate again, "
            "or make the model with `python -m training` in a checkout"
        )
    from transformers import AutoModelForImageTextToText

    from foveate.bundled import processors

    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
    )
    return model.eval(), processors.load(folder)
