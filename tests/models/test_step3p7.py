"""Step 3.7: which patches a token stands for, counts of crops, prompts that its processor does not write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import conv1d

import foveate
from foveate.models import family_for
from foveate.models.step3p7 import cells
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, ROWS, SILENT, START, prompts
from tests.tiny.step3p7 import CROP, CROPPED, LINE

GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
there = pytest.mark.skipif("step3p7" not in ROWS, reason="this transformers has no Step 3.7")


@pytest.mark.parametrize("side", [4, 8, 12, 36, 52])
def test_a_patch_goes_to_the_token_that_most_ways_lead_to(side: int) -> None:
    """Two convolutions of ones count the ways."""
    ones, patches = torch.ones(1, 1, 3), torch.eye(side)[:, None]
    ways = conv1d(conv1d(patches, ones, stride=2, padding=1), ones, stride=2, padding=1)[:, 0]
    best = ways.argmax(dim=1)  # the first, where it is a tie
    assert ways.shape[1] == side // 4
    expected = [
        sorted(row * side + column for row in range(side) for column in range(side) if (best[row], best[column]) == one)
        for one in ((i, j) for i in range(side // 4) for j in range(side // 4))
    ]
    assert [[patch for patch in one if patch >= 0] for one in cells(side).tolist()] == expected


@there
def test_boxes_are_those_patches() -> None:
    """In the whole view of a picture that is not cut."""
    model = ROWS["step3p7"].make("sdpa")
    image = encode(model, prompts(ROWS["step3p7"], model, "mixed"))[1]
    borders = [0, 12, 28, 48]
    expected = [[borders[x], borders[y], borders[x + 1], borders[y + 1]] for y in range(3) for x in range(3)]
    assert image.tokens.geometry.boxes.tolist() == expected


@there
@pytest.mark.parametrize("change", ["list", "none", "few", "pixels"])
def test_counts_of_crops(change: str) -> None:
    row = ROWS["step3p7"]
    model = row.make("sdpa")
    inputs: dict[str, Any] = prompts(row, model, "several")
    stock = model.generate(**inputs, **GREEDY)
    assert inputs["num_local_patches"].tolist() == [0, 4]
    if change == "list":
        inputs["num_local_patches"] = [0, 4]
    elif change == "none":
        del inputs["num_local_patches"]
    elif change == "few":
        inputs["num_local_patches"] = torch.tensor([0, 3])
    else:
        del inputs["pixel_values_local"]
    if change == "list":
        with foveate.AdaFV(keep=1.0)(model):
            assert torch.equal(model.generate(**inputs, **GREEDY), stock)
        return
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match=r"num_local_patches=.* pass all that the"):
        model.generate(**inputs, **GREEDY)


@there
@pytest.mark.parametrize(
    "gap, message",
    [
        ([CROPPED, LINE, 50, CROP], r"\[2, 4, 2, 2\] tokens stand between the views"),
        ([CROPPED, CROP], None),  # four in a row are an arrangement too
        ([50], r"\[2, 1, 2, 2\] tokens stand between the views"),
    ],
)
def test_prompts_that_its_processor_does_not_write(gap: list[int], message: str | None) -> None:
    row = ROWS["step3p7"]
    model = row.make("sdpa")
    inputs = dict(row.pixels([[2]]))
    part, whole = [IMAGE] * 4, [IMAGE] * 9
    ids = [BOS, CROP, *part, CROPPED, CROP, *part, *gap, *part, CROPPED, CROP, *part, CROPPED, START, *whole, END, 40]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if message is None:
        (image,) = encode(model, inputs)
        assert image.tokens.geometry.image_size == (32, 128)
        return
    with pytest.raises(ValueError, match=message):
        encode(model, inputs)


@there
def test_a_picture_that_is_spread_over_two_prompts_is_refused() -> None:
    row = ROWS["step3p7"]
    model = row.make("sdpa")
    part, whole = [IMAGE] * 4, [IMAGE] * 9
    first = [BOS, CROP, *part, CROPPED, CROP, *part, CROPPED]
    second = [BOS, START, *whole, END]
    width = max(len(first), len(second))
    ids = torch.tensor([one + [40] * (width - len(one)) for one in (first, second)])
    inputs = {**row.pixels([[0]]), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(ValueError, match="every picture must stand in one prompt"):
        encode(model, inputs)


@there
def test_words_between_pictures_are_text() -> None:
    """As many of them as marks between two crops."""
    family = family_for(ROWS["step3p7"].make("sdpa"))
    part, whole = [IMAGE] * 4, [IMAGE] * 9
    cut = [CROP, *part, CROPPED, LINE, CROP, *part, CROPPED, START, *whole, END]
    ids = [BOS, 5, START, *whole, END, 50, *cut, 51, *cut, 52, START, *whole, END, 40, 41]
    left = [token for token, mark in zip(ids, family.marks(torch.tensor([ids]))[0].tolist(), strict=True) if not mark]
    assert left == [BOS, 5, 50, 51, 52, 40, 41]
