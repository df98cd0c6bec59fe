"""Masses of crops, their mixture and how many hold a share, against loops over pixels and over subsets, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.functional import crops_holding, mass_in_boxes, mixed_masses

SIDE = 12
"""Pixels per side of the pictures here."""


def cuts(draw: Any, most: int) -> list[int]:
    """Borders of up to ``most`` stretches of a side, both ends among them."""
    inner = draw(st.sets(st.integers(1, SIDE - 1), max_size=most - 1))
    return [0, *sorted(inner), SIDE]


@st.composite
def regions_in_a_grid(draw: Any) -> list[list[int]]:
    """Some cells of a grid, row by row: they do not overlap, and need not cover the picture."""
    rows, columns = cuts(draw, 3), cuts(draw, 3)
    cells = [[x0, y0, x1, y1] for y0, y1 in itertools.pairwise(rows) for x0, x1 in itertools.pairwise(columns)]
    stays = draw(st.lists(st.booleans(), min_size=len(cells), max_size=len(cells)).filter(any))
    return [cell for cell, there in zip(cells, stays, strict=True) if there]


@st.composite
def scored_boxes(draw: Any) -> tuple[list[list[int]], list[float]]:
    """Boxes anywhere, empty ones among them, with scores."""
    corner = st.integers(0, SIDE)
    box = st.tuples(corner, corner, corner, corner).map(
        lambda one: [min(one[0], one[2]), min(one[1], one[3]), max(one[0], one[2]), max(one[1], one[3])]
    )
    boxes = draw(st.lists(box, min_size=1, max_size=8))
    score = st.one_of(st.just(0.0), st.floats(2**-13, 10.0, width=32))
    return boxes, draw(st.lists(score, min_size=len(boxes), max_size=len(boxes)))


def by_pixels(scores: list[float], boxes: list[list[int]], regions: list[list[int]]) -> list[float]:
    """Every token hands its score out in equal parts to the pixels of its box; a region has what its pixels have."""
    canvas = np.zeros((SIDE, SIDE))
    for score, (x0, y0, x1, y1) in zip(scores, boxes, strict=True):
        for y, x in itertools.product(range(y0, y1), range(x0, x1)):
            canvas[y, x] += score / ((y1 - y0) * (x1 - x0))
    mass = [canvas[y0:y1, x0:x1].sum() for x0, y0, x1, y1 in regions]
    whole = sum(mass)
    return [one / whole for one in mass] if whole > 0 else [1 / len(mass)] * len(mass)


def masses(scores: list[float], boxes: list[list[int]], regions: list[list[int]]) -> torch.Tensor:
    return mass_in_boxes(torch.tensor(scores), torch.tensor(boxes).float(), torch.tensor(regions).float())


@settings(max_examples=60, deadline=None)
@given(scored_boxes(), regions_in_a_grid())
def test_mass_is_what_the_pixels_hold(tokens: tuple[list[list[int]], list[float]], regions: list[list[int]]) -> None:
    boxes, scores = tokens
    found = masses(scores, boxes, regions)
    assert found.dtype == torch.float32
    assert math.isclose(float(found.sum()), 1.0, abs_tol=1e-5)
    torch.testing.assert_close(
        found.double(), torch.tensor(by_pixels(scores, boxes, regions)).double(), atol=1e-5, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(scored_boxes(), regions_in_a_grid(), st.randoms(use_true_random=False))
def test_order_does_not_matter(
    tokens: tuple[list[list[int]], list[float]], regions: list[list[int]], random: Any
) -> None:
    boxes, scores = tokens
    found = masses(scores, boxes, regions)
    turned, other = list(range(len(boxes))), list(range(len(regions)))
    random.shuffle(turned)
    random.shuffle(other)
    again = masses([scores[n] for n in turned], [boxes[n] for n in turned], [regions[n] for n in other])
    torch.testing.assert_close(again, found[other], atol=1e-5, rtol=0)


def test_a_box_across_a_border_counts_for_both_by_area() -> None:
    found = masses([1.0], [[2, 0, 6, 4]], [[0, 0, 3, 12], [3, 0, 12, 12]])
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize(
    ("scores", "boxes"),
    [([0.0, 0.0], [[0, 0, 4, 4], [4, 4, 8, 8]]), ([1.0], [[9, 9, 12, 12]]), ([1.0], [[2, 2, 2, 5]])],
)
def test_without_mass_all_regions_have_the_same(scores: list[float], boxes: list[list[int]]) -> None:
    """No score, one outside of every region, one of a token that sees nothing."""
    assert masses(scores, boxes, [[0, 0, 3, 3], [3, 0, 6, 3], [0, 3, 3, 6]]).tolist() == pytest.approx([1 / 3] * 3)


def test_a_single_region_has_it_all() -> None:
    assert masses([0.3, 0.1], [[0, 0, 1, 1], [5, 5, 9, 9]], [[0, 0, 12, 12]]).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_floating_dtype(dtype: torch.dtype) -> None:
    boxes, regions = [[0, 0, 6, 6], [6, 0, 12, 6]], [[0, 0, 4, 6], [4, 0, 12, 6]]
    given = torch.tensor([0.5, 0.25], dtype=dtype)  # exact in all of them
    found = mass_in_boxes(given, torch.tensor(boxes).float(), torch.tensor(regions).float())
    assert found.dtype == torch.float32
    assert torch.equal(found, masses([0.5, 0.25], boxes, regions))


def test_float32_under_autocast() -> None:
    scores, boxes, regions = [0.3, 0.123], [[0, 0, 6, 7], [5, 0, 12, 6]], [[0, 0, 4, 6], [4, 0, 12, 6]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = masses(scores, boxes, regions)
    assert torch.equal(found, masses(scores, boxes, regions))


BOXES, REGIONS = torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2]]), torch.tensor([[0.0, 0, 4, 4]])


@pytest.mark.parametrize(
    ("scores", "boxes", "regions", "error", "message"),
    [
        (torch.ones(2).long(), BOXES, REGIONS, TypeError, "float"),
        (torch.ones(3), BOXES, REGIONS, ValueError, "each of the 2 tokens"),
        (torch.ones(2, 1), BOXES, REGIONS, ValueError, "each of the 2 tokens"),
        (torch.ones(2), BOXES[:, :3], REGIONS, ValueError, r"boxes \(N, 4\)"),
        (torch.ones(2), BOXES[0], REGIONS, ValueError, r"boxes \(N, 4\)"),
        (torch.ones(2), BOXES, REGIONS[:, :2], ValueError, r"regions \(C, 4\)"),
        (torch.ones(2), BOXES, REGIONS[:0], ValueError, "are needed"),
        (torch.ones(0), BOXES[:0], REGIONS, ValueError, "N >= 1"),
        (torch.tensor([1.0, torch.nan]), BOXES, REGIONS, ValueError, "NaN or infinity in scores"),
        (torch.tensor([1.0, torch.inf]), BOXES, REGIONS, ValueError, "NaN or infinity in scores"),
        (torch.tensor([1.0, -0.1]), BOXES, REGIONS, ValueError, "must not be negative"),
    ],
)
def test_masses_refuse(scores: Any, boxes: Any, regions: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mass_in_boxes(scores, boxes, regions)


def shares(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


some_shares = (
    st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=8).filter(lambda s: sum(s) > 1e-3).map(shares)
)


def distance(masses: list[float]) -> float:
    """From the uniform distribution (Kullback-Leibler), nats."""
    return sum(mass * math.log(mass * len(masses)) for mass in masses if mass > 0)


@settings(max_examples=60, deadline=None)
@given(some_shares, st.data())
def test_the_mixture_weighs_by_what_each_side_tells(saliency: list[float], data: Any) -> None:
    size = len(saliency)
    values = data.draw(
        st.lists(st.floats(0.0, 1.0, width=32), min_size=size, max_size=size).filter(lambda s: sum(s) > 1e-3)
    )
    text = shares(values)
    found = mixed_masses(torch.tensor(saliency), torch.tensor(text))
    assert math.isclose(float(found.sum()), 1.0, abs_tol=1e-5)
    told = distance(saliency), distance(text)
    low, high = np.minimum(saliency, text), np.maximum(saliency, text)
    assert ((found.numpy() >= low - 1e-5) & (found.numpy() <= high + 1e-5)).all()
    if sum(told) < 1e-4:  # next to nothing, where float32 says little about the proportion
        return
    weight = told[0] / sum(told)
    wanted = [weight * a + (1 - weight) * b for a, b in zip(saliency, text, strict=True)]
    torch.testing.assert_close(found.double(), torch.tensor(wanted).double(), atol=5e-3, rtol=0)


def test_ends_of_the_mixture() -> None:
    """A side that says nothing leaves the choice to the other; where neither says anything, nothing is said."""
    flat, peaked, other = torch.full((4,), 0.25), torch.tensor([0.7, 0.1, 0.1, 0.1]), torch.tensor([0.1, 0.7, 0.1, 0.1])
    torch.testing.assert_close(mixed_masses(flat, peaked), peaked)
    torch.testing.assert_close(mixed_masses(peaked, flat), peaked)
    torch.testing.assert_close(mixed_masses(flat, flat), flat)
    torch.testing.assert_close(mixed_masses(peaked, other), torch.tensor([0.4, 0.4, 0.1, 0.1]))  # they tell alike
    certain = torch.tensor([0.0, 1.0, 0.0, 0.0])
    weight = distance(peaked.tolist()) / (distance(peaked.tolist()) + math.log(4))
    torch.testing.assert_close(mixed_masses(peaked, certain), weight * peaked + (1 - weight) * certain)
    one = torch.ones(1)
    assert mixed_masses(one, one).tolist() == [1.0]


def test_mixture_refuses() -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        mixed_masses(torch.ones(2) / 2, torch.ones(3) / 3)
    with pytest.raises(ValueError, match="NaN or infinity in saliency"):
        mixed_masses(torch.tensor([torch.nan, 1.0]), torch.ones(2) / 2)
    with pytest.raises(TypeError, match="float"):
        mixed_masses(torch.ones(2).long(), torch.ones(2) / 2)


@settings(max_examples=60, deadline=None)
@given(some_shares, st.floats(0.01, 1.0))
def test_the_fewest_crops_that_hold_a_share(masses: list[float], share: float) -> None:
    """Of all subsets, one of so many holds the share, and none of fewer."""
    found = crops_holding(torch.tensor(masses), share)
    assert found.dtype == torch.int64 and found.shape == ()
    count = int(found)
    best = [max(sum(some) for some in itertools.combinations(masses, n)) for n in range(len(masses) + 1)]
    assert 1 <= count <= len(masses)
    assert best[count] >= share - 1e-5
    assert count == 1 or best[count - 1] < share + 1e-5


@pytest.mark.parametrize(
    ("masses", "share", "count"),
    [([1.0], 0.8, 1), ([0.5, 0.5], 0.5, 1), ([0.5, 0.5], 0.51, 2), ([0.25] * 4, 1.0, 4), ([1.0, 0.0, 0.0], 1.0, 1),
     ([0.1, 0.6, 0.3], 0.9, 2), ([0.1, 0.6, 0.3], 0.01, 1)],
)  # fmt: skip
def test_crops_holding(masses: list[float], share: float, count: int) -> None:
    assert int(crops_holding(torch.tensor(masses), share)) == count
