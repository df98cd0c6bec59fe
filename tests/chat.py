"""Prompts in a family's own chat format, written by its own processor around a small tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import foveate

WORDS = (
    *("system", "user", "assistant", "you", "answer", "briefly", "what", "is", "on", "the", "sign", "how", "many"),
    *("cats", "are", "there", "in", "this", "film", "two", "a", "dog", "?", ".", ":", "<", ">", "-", "seconds", "s"),
    *map(str, range(10)),
)
SYSTEM = "You answer briefly."
FIRST, SECOND = "what is on the sign?", "how many cats are there?"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ marks[part['type']] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen's checkpoints and those made like them write."""


def template(text: str, **marks: str) -> str:
    """A chat template in which parts that are no text are written as told, by their type."""
    return "{% set marks = " + repr(marks) + " %}" + text


def tokenizer(special: Mapping[str, int], **named: str) -> PreTrainedTokenizerFast:
    """Lower case, one token per word; digits and punctuation are words.

    Args:
        special: special tokens and their ids.
        named: attributes of the tokenizer (``image_token``) and the special token each names; its id goes along.
    """
    vocabulary = {"<pad>": 0, "<unk>": 3, **special}
    free = (number for number in range(4, 94) if number not in special.values())
    vocabulary |= dict(zip(WORDS, free, strict=False))
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=list(special),
        padding_side="left",
    )  # fmt: skip
    for name, token in named.items():
        setattr(found, name, token)
        setattr(found, f"{name}_id", vocabulary[token])
    return found


def picture(seed: int, width: int = 128, height: int = 96) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def film(seed: int, frames: int = 6, width: int = 128, height: int = 96) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def said(role: str, *parts: str) -> dict[str, Any]:
    """A turn; parts in angle brackets (``<image>``) are of that type, others text."""
    content = [{"type": part[1:-1]} if part.startswith("<") else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


CONVERSATIONS: dict[str, tuple[Sequence[dict[str, Any]], Sequence[str]]] = {
    "question last": ([said("user", "<image>", FIRST)], [FIRST]),
    "question first": ([said("user", FIRST, "<image>")], [FIRST]),
    "system prompt": ([said("system", SYSTEM), said("user", "<image>", FIRST)], [FIRST]),
    "two pictures": ([said("user", "<image>", "<image>", FIRST)], [FIRST, FIRST]),
    "asked again": (
        [said("user", "<image>", FIRST), said("assistant", "two cats."), said("user", SECOND)], [FIRST],
    ),
    "a picture each": (
        [said("user", FIRST, "<image>"), said("assistant", "a dog."), said("user", "<image>", SECOND)],
        [FIRST, SECOND],
    ),
    "a picture alone": (
        [said("system", SYSTEM), said("user", "<image>"), said("assistant", "a dog."), said("user", SECOND)], [SECOND],
    ),
}  # fmt: skip
"""By name: the turns, and of every picture the question that guides its choice."""


class Listening(foveate.TextSimilarity):
    """A method that keeps what guided it."""

    heard: list[Tensor]

    def choose(self, visual: Any, text: Any, budget: int) -> Any:
        self.heard.append(text.embeddings)
        return super().choose(visual, text, budget)


def guided_by(model: Any, processor: Any, inputs: Mapping[str, Any]) -> list[list[str]]:
    """Of every picture and film of a prompt, the tokens that guide its choice."""
    pruner = Listening(keep=0.4)
    pruner.heard = []
    with pruner(model, processor=processor):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    table = model.get_input_embeddings().weight
    return [
        processor.tokenizer.convert_ids_to_tokens([int(torch.cdist(one[None], table).argmin()) for one in heard])
        for heard in pruner.heard
    ]


def words(processor: Any, text: str) -> list[str]:
    """The tokens of a text."""
    found: list[str] = processor.tokenizer.tokenize(text)
    return found
