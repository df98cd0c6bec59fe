"""Budgets, and where a token lies in the original image."""

import math

import numpy as np
import pytest
import torch

from foveate.tokens import Geometry, Keep, Selection, TextTokens, VisualTokens


@pytest.mark.parametrize(
    "keep, tokens, budget",
    [
        (1.0, 576, 576),
        (1, 576, 1),
        (0.1, 576, 58),
        (0.1, 2880, 288),
        (0.05, 2880, 144),
        (0.55, 100, 55),  # 0.55 * 100 is a hair above 55 in binary
        (0.07, 100, 7),
        (0.001, 10, 1),
        (1e-300, 10, 1),
        (0.999, 10, 10),
        (10, 576, 10),
        (600, 576, 576),
        (np.float32(0.25), 576, 144),
        (np.int64(7), 576, 7),
    ],
)
def test_budget(keep, tokens, budget):
    assert Keep(keep).budget(tokens) == budget
    assert type(Keep(keep).budget(tokens)) is int


def test_every_fraction_gives_the_exact_ceiling():
    """keep = k / N is k of N, whatever k / N looks like in binary."""
    for tokens in (1, 7, 49, 100, 576, 2880):
        for kept in range(1, tokens + 1):
            assert Keep(kept / tokens).budget(tokens) == kept


@pytest.mark.parametrize("keep", [0, -1, 0.0, -0.1, 1.5, 1.0000001, math.nan, math.inf, -math.inf, np.float64("nan")])
def test_keep_out_of_range(keep):
    with pytest.raises(ValueError, match="keep="):
        Keep(keep)


@pytest.mark.parametrize("keep", [True, False, None, "0.1", [0.1], 1j, torch.tensor(0.1)])
def test_keep_of_the_wrong_type(keep):
    with pytest.raises(TypeError, match="keep must be a float"):
        Keep(keep)


@pytest.mark.parametrize("tokens", [0, -3])
def test_an_image_without_tokens(tokens):
    with pytest.raises(ValueError, match="without patch tokens"):
        Keep(0.5).budget(tokens)


def geometry(image_size=(28, 28), cropped=False):
    """2 x 2 patches of 14 pixels."""
    row, column = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    corner = torch.stack([column, row], dim=-1) * 14.0
    return Geometry(
        view=torch.zeros(4, dtype=torch.int64),
        row=row,
        column=column,
        boxes=torch.cat([corner, corner + 14], dim=-1),
        image_size=image_size,
        grids=((2, 2),),
        cropped=cropped,
    )


def test_boxes_are_scaled_to_the_original():
    boxes = geometry().boxes_in(56, 280)
    assert boxes[0].tolist() == [0, 0, 140, 28]
    assert boxes[3].tolist() == [140, 28, 280, 56]
    assert boxes.dtype == torch.float32


@pytest.mark.parametrize(
    "height, width, first, last",
    [
        (28, 28, [0, 0, 14, 14], [14, 14, 28, 28]),
        (56, 56, [0, 0, 28, 28], [28, 28, 56, 56]),
        (28, 128, [50, 0, 64, 14], [64, 14, 78, 28]),  # the middle square of a wide picture
        (156, 56, [0, 50, 28, 78], [28, 78, 56, 106]),  # and of a tall one, at half size
    ],
)
def test_boxes_of_a_centre_crop(height, width, first, last):
    boxes = geometry(cropped=True).boxes_in(height, width)
    torch.testing.assert_close(boxes[[0, 3]], torch.tensor([first, last], dtype=torch.float32))


def test_selection_reads_its_geometry():
    where = geometry()
    selection = Selection(torch.tensor([1, 2]), where)
    assert len(selection) == 2 and selection.total == len(where) == 4 and selection.ratio == 0.5
    assert selection.view.tolist() == [0, 0]
    assert (selection.row.tolist(), selection.column.tolist()) == ([0, 1], [1, 0])
    assert selection.boxes.tolist() == [[14, 0, 28, 14], [0, 14, 14, 28]]
    assert selection.boxes_in(56, 56).tolist() == [[28, 0, 56, 28], [0, 28, 28, 56]]
    assert selection.mask().tolist() == [False, True, True, False]
    assert not selection.scores and not selection.shares


def test_a_token_that_stands_twice_is_one_in_the_mask():
    selection = Selection(torch.tensor([1, 1, 3]), geometry())
    assert len(selection) == 3 and selection.mask().tolist() == [False, True, False, True]


def test_lengths():
    assert len(VisualTokens(torch.zeros(4, 8), geometry())) == 4
    flags = torch.zeros(3, dtype=torch.bool)
    assert len(TextTokens(torch.zeros(3, 8), flags, flags)) == 3
