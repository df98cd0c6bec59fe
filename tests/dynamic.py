"""Tiny models of dynamic resolution with their families' own processors, which make words of pictures of any size."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

from tests import checkpoint
from tests.tiny import BOS, END, IMAGE, PAD, ROWS, START, VIDEO
from tests.tiny.mistral import BREAK
from tests.tiny.words import of_words

UNITS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32, "glm4v": 28, "mistral3": 28, "llava-pixtral": 14}
"""By row of ``ROWS``: the side in pixels of what becomes one token."""
_PROCESSORS = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "glm4v": "Glm4v"}
_SPECIAL = {
    "<image>": IMAGE,
    "<video>": VIDEO,
    "<start>": START,
    "<end>": END,
    "<|begin_of_video|>": 94,
    "<|end_of_video|>": 95,
}
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}{% if part['type'] == "
    "'image' %}<start><image><end>{% else %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
_NAMED = {
    "image_token": "<image>",
    "video_token": "<video>",
    "vision_start_token": "<start>",
    "vision_end_token": "<end>",
}


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, **_SPECIAL}
    free = [number for number in range(4, 100) if number not in vocabulary.values()]
    vocabulary |= dict(zip(checkpoint.WORDS, free, strict=False))
    vocabulary |= {f"w{number}": number for number in free[len(checkpoint.WORDS) :]}
    return of_words(vocabulary, _SPECIAL, _NAMED)


def processor(name: str) -> Any:
    """The real processor of a family, around the image processor that works on PIL alone."""
    with pytest.MonkeyPatch.context() as patch:
        if name in ("mistral3", "llava-pixtral"):
            pil = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
            if not is_torchvision_available():  # all it wants is the size that its PIL sibling works out too
                patch.setitem(sys.modules, "transformers.models.pixtral.image_processing_pixtral", pil)
            module = importlib.import_module("transformers.models.pixtral.processing_pixtral")
            if not is_torchvision_available():
                del sys.modules["transformers.models.pixtral.processing_pixtral"]
            side = UNITS[name] // 14
            return module.PixtralProcessor(
                pil.PixtralImageProcessorPil(size={"longest_edge": 112}), checkpoint.tokenizer(), patch_size=14,
                spatial_merge_size=side, image_token="<image>", image_break_token=f"w{BREAK}",
                image_end_token=f"w{END}",
            )  # fmt: skip
        folder = "glm4v" if name == "glm4v" else "qwen2_vl"
        kind = "Glm4vImageProcessorPil" if name == "glm4v" else "Qwen2VLImageProcessorPil"
        images = getattr(pytest.importorskip(f"transformers.models.{folder}.image_processing_pil_{folder}"), kind)(
            size={"shortest_edge": UNITS[name] ** 2, "longest_edge": (40 * UNITS[name]) ** 2},
            patch_size=UNITS[name] // 2,
        )
        module = importlib.import_module(f"transformers.models.{name}.processing_{name}")
        made = getattr(module, f"{_PROCESSORS[name]}Processor")
        # Its video processor needs torchvision, which pictures do not: only the check for one is left out.
        patch.setattr(made, "check_argument_for_proper_class", lambda *_: None)
        return made(images, _tokenizer(), None, chat_template=_TEMPLATE)


def pair(name: str) -> tuple[Any, Any]:
    """A model and its processor."""
    return ROWS[name].make("sdpa"), processor(name)


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Something of many colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
