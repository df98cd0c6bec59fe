"""What a processor makes of a question and its pictures."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from foveate.locks import lock_of
from foveate.models import FAMILIES
from foveate.models.encoded import Kind
from foveate.turns import adds_special_tokens

PROBE = "?"
"""A question that only shows what a processor makes of a prompt."""
TIMES = ("second_per_grid_ts",)
"""What is no feature: positions are made of it, which less precise numbers would move."""


def question_prompt(processor: Any, question: str, images: int, model: Any = None, *, kind: Kind = "image") -> str:
    """The text for a processor: its chat template around the images and the question, else a plain one.

    Args:
        processor: the model's.
        question: what is asked.
        images: how many pictures stand before it.
        model: whose prompts are no conversation in some families; by default they are.
        kind: what the pictures are.

    Raises:
        ValueError: the question is empty.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    if getattr(processor, "chat_template", None):
        content = [{"type": kind}] * images + [{"type": "text", "text": question}]
        rendered: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return rendered
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    if family is not None and not family.chats:
        return mark_of(processor, kind) * images + question
    marks = f"{mark_of(processor, kind)}\n" * images
    return f"USER: {marks}{question} ASSISTANT:"


def image_mark(processor: Any) -> str:
    """What stands for an image in a prompt's text: the processor's mark, else its placeholder."""
    return str(getattr(processor, "boi_token", None) or processor.image_token)


def mark_of(processor: Any, kind: Kind) -> str:
    """The same for an image or a video.

    Raises:
        ValueError: the processor knows no mark for videos.
    """
    if kind == "image":
        return image_mark(processor)
    mark = getattr(processor, "video_token", None)
    if mark is None:
        raise ValueError(f"{type(processor).__name__} has no mark for a video: pass its frames as images")
    return str(mark)


def input_device(model: Any) -> torch.device:
    """Where a model takes its inputs: where its first weights are, or, offloaded, where accelerate's hook runs it."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    where = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if where is None else where)


def process(
    processor: Any, model: Any, prompts: Sequence[str], pictures: Sequence[Image], **videos: Any
) -> dict[str, Tensor]:
    """The processor's inputs for several prompts about the same pictures, padded on the left, for the model's device.

    Pixels get the model's dtype.

    Args:
        processor, model: the two.
        prompts: each with its marks.
        pictures: of every prompt.
        videos: what the processor takes in place of pictures: its arguments for videos.

    Raises:
        ValueError: the processor cannot be told to pad on the left (Video-LLaVA's in transformers 5.5).
    """
    known = inspect.signature(processor).parameters
    if "padding_side" not in known and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
        raise ValueError(
            f"{type(processor).__name__} of this transformers takes no padding_side, which several questions in one "
            "batch need: upgrade transformers, or call model.generate under the pruner with what it returns"
        )
    with lock_of(processor.tokenizer):
        inputs = processor(
            text=list(prompts),
            **(videos or {"images": [list(pictures) for _ in prompts]}),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=adds_special_tokens(processor, prompts[0]),
        )
    device = input_device(model)
    return {
        name: value.to(device, model.dtype if value.is_floating_point() and name not in TIMES else value.dtype)
        for name, value in inputs.items()
        if torch.is_tensor(value)
    }


def probe_inputs(processor: Any, model: Any, pictures: Sequence[Image]) -> tuple[dict[str, Tensor], Tensor]:
    """What the processor makes of pictures before there is a question, and the prompt's (1, S) ids on the CPU, -1 where
    there is padding: see ``Request.prompt``."""
    inputs = process(processor, model, [question_prompt(processor, PROBE, len(pictures), model)], pictures)
    return inputs, torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -1).cpu()


def picture_list(images: Any) -> list[Image]:
    """The pictures as a list, checked."""
    single = isinstance(images, (Image, str, bytes)) or not isinstance(images, Iterable)
    pictures: list[Any] = [images] if single else list(images)
    if not pictures:
        raise ValueError("no image to look at")
    for one in pictures:
        if isinstance(one, (str, bytes)) or hasattr(one, "__fspath__"):
            raise TypeError(f"expected a PIL image, got a path: foveate.images.load_image({one!r}) reads it")
        if not isinstance(one, Image):
            raise TypeError(
                f"expected a PIL image, got {type(one).__name__}: PIL.Image.fromarray(array) makes one of (height, "
                "width, 3) uint8 values"
            )
    return pictures


MANY = 8
"""Words that are named before the others are left unsaid."""


def warning_of_unknown(tokenizer: Any, question: str) -> str:
    """What is to be said, without a full stop, of a question with words that the model cannot read; else nothing."""
    unknown = unknown_words(tokenizer, question)
    if not unknown:
        return ""
    some = ", ".join(unknown[:MANY]) + (", ..." if len(unknown) > MANY else "")
    return f"the model's vocabulary lacks {some}: the model does not know what that means and answers all the same"


def unknown_words(tokenizer: Any, question: str) -> list[str]:
    """The words of a question that a tokenizer can only read as its unknown token."""
    if getattr(tokenizer, "unk_token_id", None) is None or not tokenizer.is_fast:
        return []
    with lock_of(tokenizer):
        read = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(read["input_ids"], read["offset_mapping"], strict=True)
    words = [question[start:end].strip() for token, (start, end) in spans if token == tokenizer.unk_token_id]
    return list(dict.fromkeys(words))
