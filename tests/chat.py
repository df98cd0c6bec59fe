"""Conversations in a family's own chat format, written by its real processor: which words of them guide a picture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

import foveate
from foveate.guiding import Guide, locate_images
from foveate.models import family_for
from foveate.options import Options
from tests.encoding import encode
from tests.tiny import BOS, PAD
from tests.tiny.words import of_words

WORDS = [
    *("you", "answer", "questions", "is", "there", "a", "cat", "?", "yes", "what", "color", "the", "card", "and", "."),
    *("seconds", "system", "user", "assistant", ":", *map(str, range(10))),
]
SYSTEM, FIRST, SECOND, ANSWER = "you answer questions .", "is there a cat ?", "what color is the card ?", "yes ."


def tokenizer(marks: Mapping[str, int], named: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """Of ``WORDS``, in lower case.

    Args:
        marks: special tokens by what is written; a negative id stands for any that is free.
        named: attributes that processors read (``image_token``), each with the token it names.
    """
    taken = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, **{mark: one for mark, one in marks.items() if one >= 0}}
    free = (number for number in range(4, 100) if number not in taken.values())
    vocabulary = taken | {mark: next(free) for mark, one in marks.items() if one < 0}
    vocabulary |= {word: next(free) for word in WORDS}
    return of_words(vocabulary, marks, named)


def text(*words: str) -> dict[str, str]:
    return {"type": "text", "text": " ".join(words)}


IMAGE_PART = {"type": "image"}
TALKS: dict[str, tuple[list[tuple[str, list[Any]]], list[str]]] = {
    "question last": ([("user", [IMAGE_PART, text(FIRST)])], [FIRST]),
    "question first": ([("user", [text(FIRST), IMAGE_PART])], [FIRST]),
    "on both sides": ([("user", [text(FIRST), IMAGE_PART, text(SECOND)])], [f"{FIRST} {SECOND}"]),
    "system": ([("system", [text(SYSTEM)]), ("user", [IMAGE_PART, text(FIRST)])], [FIRST]),
    "turns": (
        [("user", [IMAGE_PART, text(FIRST)]), ("assistant", [text(ANSWER)]), ("user", [IMAGE_PART, text(SECOND)])],
        [FIRST, SECOND],
    ),
    "picture first": (
        [("user", [IMAGE_PART]), ("assistant", [text(ANSWER)]), ("user", [text(SECOND)])],
        [SECOND],
    ),
}
"""Conversations, and the words that guide each of their pictures."""


def of_kind(talk: Sequence[tuple[str, list[Any]]], kind: str) -> list[tuple[str, list[Any]]]:
    """The same about videos."""
    return [(role, [{"type": kind} if part == IMAGE_PART else part for part in parts]) for role, parts in talk]


def written(processor: Any, talk: Sequence[tuple[str, list[Any]]], **media: Any) -> dict[str, Any]:
    """A conversation by a processor's own template and code; it waits for an answer."""
    messages = [{"role": role, "content": parts} for role, parts in talk]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return dict(processor(text=[prompt], return_tensors="pt", **media))


def guiding(model: Any, processor: Any, inputs: dict[str, Any], kind: Any = "image") -> list[str]:
    """The words that guide the choice among each picture's tokens."""
    family = family_for(model)
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    counts = [image.placeholders for image in encode(model, inputs, kind)]
    spans = locate_images(ids, mask, family.placeholder_ids[kind], counts, kind)
    guide = Guide(ids, mask & ~family.marks(ids), Options(processor=processor).turns(family))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [guide.of(span).ids for span in spans]
    return [" ".join(processor.tokenizer.convert_ids_to_tokens(one.tolist())) for one in found]


def check_one_budget(model: Any, inputs: dict[str, Any], times: int, options: Mapping[str, Any]) -> None:
    """Every video of a call has one budget over all its frames; with all kept, the answer is stock's.

    Args:
        model: of a family of 2x2 patches a token.
        inputs: the call's, ``video_grid_thw`` among them.
        times: frames of each after the encoder.
        options: of greedy decoding.
    """
    inputs = {name: value for name, value in inputs.items() if name != "video_metadata"}
    whole, few = foveate.AdaFV(keep=1.0), foveate.AdaFV(keep=5)
    with whole(model):
        result = model.generate(**inputs, **options)
    assert torch.equal(result, model.generate(**inputs, **options))
    assert [one.total for one in whole.selections] == (inputs["video_grid_thw"].prod(dim=1) // 4).tolist()
    with few(model):
        model.generate(**inputs, **options)
    assert [len(one) for one in few.selections] == [5] * len(inputs["video_grid_thw"])
    assert all(len(one.geometry.grids) == times for one in few.selections)


def moving(seed: int, frames: int, height: int, width: int) -> torch.Tensor:
    """(frames, 3, height, width) uint8: something that changes."""
    coarse = torch.rand(frames, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, (height, width)) * 255).to(torch.uint8)
