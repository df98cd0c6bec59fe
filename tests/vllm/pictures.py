"""Drawn scenes with their questions, and what transformers answers about them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

import foveate
from foveate.evaluation.scenes.files import make_sample
from foveate.inputs import question_prompt


def asked(count: int, seed: int = 0) -> Iterator[tuple[Image.Image, str]]:
    """Pictures with the first question about each."""
    for index in itertools.count():
        if index == count:
            return
        sample = make_sample("test", seed, index)
        yield sample.picture, sample.questions[index % len(sample.questions)].text


FIRST = "<s>user: {} <image> assistant:"
"""The bundled model's prompt with the question before the picture, where its own template never puts it."""


def ids_of(processor: Any, question: str, images: int = 1) -> list[int]:
    """A prompt's ids, with one placeholder per image."""
    return written(processor, question_prompt(processor, question, images))


def written(processor: Any, prompt: str) -> list[int]:
    """The ids of a prompt as it is."""
    found: list[int] = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return found


def reference(
    model: Any,
    processor: Any,
    pictures: list[Image.Image],
    question: str,
    pruner: Any,
    tokens: int = 8,
    prompt: str | None = None,
) -> tuple[tuple[int, ...], int]:
    """What transformers with Foveate generates, up to the end token, and the length of the pruned prompt.

    Args:
        prompt: as it is, in place of the template's around the question.
    """
    prompt = question_prompt(processor, question, len(pictures)) if prompt is None else prompt
    inputs = processor(images=pictures, text=prompt, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad(), pruner(model):
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1]
    generated = output.sequences[0, length:].tolist()
    return tuple(generated), int(output.past_key_values.get_seq_length()) - len(generated) + 1


def keeping(method: str, keep: float | int, **options: Any) -> Any:
    """A method by name."""
    return foveate.get_pruner(method, keep=keep, **options)
