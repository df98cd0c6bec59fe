"""Budgets, and where a token lies in the original image."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from foveate.functional import Merge
from foveate.models.encoded import EncodedImage, Kept, Rope
from foveate.pruners import Choice
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
        (np.float32(0.1), 1000, 100),  # 0.100000001 in double precision
        (np.float16(0.3), 1000, 300),
        (np.float64(0.1), 1000, 100),
        (np.float32(1.0), 576, 576),
        (Fraction(1, 3), 9, 3),
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


@pytest.mark.parametrize(
    "keep, shown",
    [
        (True, "True, a bool"),
        (np.bool_(True), "a? ?bool"),
        (None, "NoneType"),
        ("0.1", "'0.1', a str"),
        ([0.1], "list"),
        (1j, "complex"),
        (torch.tensor(0.1), "Tensor"),
        (torch.rand(99, 99), "Tensor"),
        (np.array(0.1), "ndarray"),
        (np.float32([0.1]), "ndarray"),
        ("x" * 999, "a str"),
    ],
)
def test_keep_of_the_wrong_type(keep, shown):
    with pytest.raises(TypeError, match=f"keep must be a float .* got .*{shown}.*: write keep=0.1, say$") as error:
        Keep(keep)
    assert len(str(error.value)) < 160 and "tensor(" not in str(error.value)


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


def test_what_holds_tensors_is_itself_alone():
    """Compared by value, a tensor of truths would have to be one truth."""
    flags = torch.zeros(3, dtype=torch.bool)
    for make in (
        geometry,
        lambda: VisualTokens(torch.zeros(4, 8), geometry()),
        lambda: TextTokens(torch.zeros(3, 8), flags, flags),
        lambda: Selection(torch.tensor([1, 2]), geometry()),
        lambda: Choice(torch.tensor([1, 2])),
        lambda: Merge.picking(torch.tensor([1, 2]), 4),
        lambda: Kept(torch.zeros(2, 8), (), torch.ones(4)),
        lambda: EncodedImage.of_patches(VisualTokens(torch.zeros(4, 8), geometry())),
        lambda: Rope(torch.zeros(3, 1, 4), torch.zeros(1)),
    ):
        one, other = make(), make()
        assert one == one and one != other and one in [other, one] and len({one, other, one}) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather(dtype):
    """Kept as they are, put together by dense weights of one's own, and by sparse ones: with autocast as without."""
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = [[0.5, 0.25, 0.0, 0.25], [0.0, 0.0, 1.0, 0.0]]
    expected = (torch.tensor(rows, dtype=torch.float64) @ features.double()).to(dtype)
    kept = torch.tensor([0, 2])
    sparse = Merge.of_entries(
        torch.tensor([0, 1, 0, 0]), torch.tensor([3, 2, 0, 1]), torch.tensor([0.25, 1.0, 0.5, 0.25]), (2, 4)
    )
    for weights in (torch.tensor(rows), sparse):
        selection = Selection(kept, geometry(), weights=weights)
        plain = selection.gather(features)
        assert plain.dtype == dtype
        torch.testing.assert_close(plain, expected, atol=1e-6, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(selection.gather(features), plain)
    assert torch.equal(Selection(kept, geometry()).gather(features), features[kept])
    with pytest.raises(ValueError, match=r"weights must be \(kept, patch\) tokens, \(2, 4\), got \(2, 5\)"):
        Selection(kept, geometry(), weights=Merge.picking(kept, 5))


def test_a_geometry_elsewhere():
    there = geometry(cropped=True).to(torch.device("meta"))
    assert all(place.is_meta for place in (there.view, there.row, there.column, there.boxes))
    assert (there.image_size, there.grids, there.cropped, len(there)) == ((28, 28), ((2, 2),), True, 4)
