"""The question in front of the picture guides as the one behind it: the same words, so the same tokens stay."""

from __future__ import annotations

from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate import bundled
from foveate.evaluation.scenes import SCENES
from foveate.images import load_image

BEHIND = "<s>user: <image> {} assistant:"
BEFORE = "<s>user: {} <image> assistant:"
EARLIER = "<s>user: What is the biggest object? assistant: cat</s>"
PICTURES = 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("scenes")
    SCENES.write(folder, PICTURES, seed=77, split="test")
    return folder, SCENES.read(next(folder.glob("*.jsonl")))


@cache
def pair() -> tuple[Any, Any]:
    return bundled.load()


def choices(pruner: foveate.Pruner, picture: Any, prompts: list[str]) -> list[torch.Tensor]:
    model, processor = pair()
    inputs = processor(
        images=[[picture]] * len(prompts), text=prompts, return_tensors="pt", padding=True, padding_side="left",
        add_special_tokens=False,
    )  # fmt: skip
    with pruner(model):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return [one.indices for one in pruner.selections]


@pytest.mark.parametrize("method", ["adafv", "text", "fixed-mix", "cdpruner"])
def test_the_same_tokens_stay(method: str, scenes: tuple[Path, list[Any]]) -> None:
    folder, items = scenes
    pruner = foveate.get_pruner(method, keep=0.1)
    differ = total = 0
    for image, group in groupby(items, key=lambda item: item.image):
        picture, questions = load_image(folder / image), [item.question for item in group]
        behind = choices(pruner, picture, [BEHIND.format(one) for one in questions])
        before = choices(pruner, picture, [BEFORE.format(one) for one in questions])
        later = choices(pruner, picture, [EARLIER + BEFORE.removeprefix("<s>").format(one) for one in questions[:2]])
        assert all(torch.equal(a, b) for a, b in zip(behind, before, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(behind, later, strict=False))
        differ += sum(not torch.equal(behind[0], one) for one in behind[1:])
        total += len(behind) - 1
    assert differ > 0.8 * total  # and they are the question's, not the template's


def test_the_released_rule_does_not_read_it(scenes: tuple[Path, list[Any]]) -> None:
    folder, items = scenes
    picture = load_image(folder / items[0].image)
    questions = [BEFORE.format(item.question) for item in items[:3]]
    first, *others = choices(foveate.TextSimilarity(keep=0.1, text_span="prompt"), picture, questions)
    assert all(torch.equal(first, one) for one in others)
