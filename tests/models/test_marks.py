"""Which tokens of a prompt stand for images, mark or label them, and so are no text that guides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.models import family_for
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, ROWS, START, VIDEO
from tests.tiny.siglip import write_grid
from tests.tiny.tiles import LINE, TOKENS, tiles_of, write_breaks

NEWLINE, FRAME, FROM, COLON, LESS, SECONDS, DOT, ZERO = 60, 61, 62, 63, 64, 65, 66, 70
"""Digits are ``ZERO`` and the nine ids after it."""


def number(value: int, digits: int = 1) -> list[int]:
    return [ZERO + int(digit) for digit in f"{value:0{digits}d}"]


def text_of(name: str, ids: list[int]) -> list[int]:
    """What is left of a prompt without marks."""
    marks = family_for(ROWS[name].make("sdpa")).marks(torch.tensor([[-1, *ids]]))[0, 1:]
    return [token for token, mark in zip(ids, marks.tolist(), strict=True) if not mark]


def internvl(frame: int) -> list[int]:
    return [FRAME, *number(frame), COLON, START, *[IMAGE] * TOKENS, END, NEWLINE]


def smolvlm(frame: int) -> list[int]:
    time = [*number(frame // 60, 2), COLON, *number(frame % 60, 2)]
    return [NEWLINE, FRAME, FROM, *time, COLON, *write_grid((0, 0), 4)]


def qwen3(frame: int) -> list[int]:
    return [LESS, *number(frame), DOT, *number(5), SECONDS, LESS + 20, START, *[VIDEO] * 6, END]


FRAMES = {"internvl": internvl, "smolvlm": smolvlm, "qwen3_vl": qwen3}
QUESTION = [40, 41, 42]


@pytest.mark.parametrize("name", list(FRAMES))
@pytest.mark.parametrize("numbers", [range(1, 4), range(1, 13), [0, 29, 58, 87, 116], [8, 9, 10, 11]])
def test_labels_of_frames_are_no_text(name: str, numbers: Any) -> None:
    frames = [token for frame in numbers for token in FRAMES[name](frame)]
    left = text_of(name, [BOS, 5, 6, NEWLINE, *frames, *QUESTION])
    assert [token for token in left if token != NEWLINE] == [BOS, 5, 6, *QUESTION]


@pytest.mark.parametrize("name", list(FRAMES))
def test_other_text_between_images_is_text(name: str) -> None:
    """Two frames repeat once, as sentences may; sentences of their own are no labels."""
    write = FRAMES[name]
    two = text_of(name, [BOS, 5, *write(1), *write(2), *QUESTION])
    assert {FRAME, LESS} & set(two)
    frames = [[token for token in write(frame) if token not in (FRAME, FROM, LESS)] for frame in (1, 2, 3)]
    sentences = [[31, 32, 33, 34], [35, 36, 37], [38, 39, 30, 31, 45, 46, 47, 48]]
    ids = [token for frame, sentence in zip(frames, sentences, strict=True) for token in (*sentence, *frame)]
    assert {token for sentence in sentences for token in sentence} <= set(text_of(name, [BOS, *ids, *QUESTION]))


@pytest.mark.skipif("cohere2_vision" not in ROWS, reason="this transformers cannot make a Cohere 2 config")
def test_coheres_tiles_are_one_image() -> None:
    """Thirteen tiles with a break behind each: one image, one budget; start, breaks and end are no text."""
    model = ROWS["cohere2_vision"].make("sdpa")
    ids = [BOS, 5, *write_breaks(0, 3 * TOKENS), *write_breaks(1, TOKENS), 50, *write_breaks(2, 4 * TOKENS), *QUESTION]
    assert text_of("cohere2_vision", ids) == [BOS, 5, 50, *QUESTION]
    prompt = torch.tensor([ids])
    pixels = torch.cat([tiles_of(number, whole_first=False) for number in range(3)])
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pixel_values": pixels}
    assert [image.placeholders for image in encode(model, inputs)] == [3 * TOKENS, TOKENS, 4 * TOKENS]
    pruner = foveate.AdaFV(keep=3)
    with pruner(model):
        model.generate(**inputs, max_new_tokens=1)
    assert [len(one) for one in pruner.selections] == [3, 3, 3]


@pytest.mark.skipif("cohere2_vision" not in ROWS, reason="this transformers cannot make a Cohere 2 config")
@pytest.mark.parametrize(
    "ids, message",
    [
        ([START, *[IMAGE] * 2 * TOKENS, LINE, END], "8 placeholders stand together where a tile has 4"),
        ([START, *[IMAGE] * TOKENS], "breaks off after a tile"),
        ([START, *[IMAGE] * TOKENS, LINE, END], "placeholders for 1 tiles of 1 image.*brings 3 tiles"),
    ],
)
def test_prompts_that_coheres_processor_does_not_write(ids: list[int], message: str) -> None:
    prompt = torch.tensor([[BOS, *ids]])
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pixel_values": tiles_of(0, False)}
    with pytest.raises(ValueError, match=message):
        encode(ROWS["cohere2_vision"].make("sdpa"), inputs)
