"""Dropped tokens merged into their nearest kept one, against the rule written out with loops, in float64."""

import math

import pytest
import torch

from foveate.functional import merge_into_nearest
from tests.functional.test_diversity import cosines, flat, gaussian, seeded, signs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def literal(features, kept, threshold):
    """Rows of weights: every kept token the mean of itself and of those whose nearest kept token it is."""
    sim, members = cosines(features), {token: [token] for token in kept}
    for i in range(len(features)):
        if i in members:
            continue
        nearest = kept[0]
        for token in kept[1:]:
            if sim[i][token] > sim[i][nearest]:
                nearest = token
        if sim[i][nearest] >= threshold:
            members[nearest].append(i)
    return [[1 / len(members[k]) if i in members[k] else 0.0 for i in range(len(features))] for k in kept]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
@pytest.mark.parametrize("budget", [1, 2, 7, 16, 29, 30])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 1.0])
def test_merge_into_nearest(inputs, dtype, budget, threshold):
    if threshold == 1.0:
        if inputs is gaussian:
            threshold = 0.9
        elif inputs is flat:
            threshold = 0.5  # equal tokens of ones have a cosine that rounds below 1
    for seed in range(3):
        features, _ = inputs(30, seed, dtype)
        kept = torch.randperm(30, generator=seeded(seed))[:budget].sort().values
        found = merge_into_nearest(features, kept, threshold)
        assert found.shape == (budget, 30)
        expected = torch.tensor(literal(features, kept.tolist(), threshold))
        torch.testing.assert_close(found.dense(), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.dense().sum(dim=1), torch.ones(budget))


def test_merge_into_nearest_by_hand():
    """Kept at 0 and 90 degrees: 30 joins the one, 80 the other, 45 the earlier of two as near, and 200 the nearer."""
    angle = torch.tensor([0.0, 30.0, 80.0, 90.0, 200.0], dtype=torch.float64).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1).float()
    features = torch.cat([features, torch.tensor([[3.0, 3.0], [0.0, 0.0]])])
    kept = torch.tensor([0, 3])
    third, quarter = 1 / 4, 1 / 3
    expected = torch.tensor([[third, third, 0, 0, 0, third, third], [0, 0, quarter, quarter, quarter, 0, 0]])
    torch.testing.assert_close(merge_into_nearest(features, kept).dense(), expected)
    # The zero token's cosine is 0 to all, that of 200 degrees -0.34 at best, of 45 degrees 0.707, of 30 0.87.
    half = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0, 0]])
    torch.testing.assert_close(merge_into_nearest(features, kept, 0.8).dense(), half)
    none = merge_into_nearest(features, kept, 0.99).dense()
    assert none.tolist() == [[1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0]]


def test_a_token_that_stands_twice_takes_others_up_once():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    found = merge_into_nearest(features, torch.tensor([0, 0, 2])).dense()
    assert found.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_no_cosine_is_below_the_default():
    """In bfloat16 and float32 an opposite vector's cosine may round below -1."""
    for seed in range(200):
        one = torch.randn(1, 37, generator=seeded(seed))
        found = merge_into_nearest(torch.cat([one, -one]), torch.tensor([0])).dense()
        assert found.tolist() == [[0.5, 0.5]]


def test_blocks_change_nothing(monkeypatch):
    features, _ = gaussian(57, 0, torch.float32)
    kept = torch.arange(0, 57, 5)
    whole = merge_into_nearest(features, kept).dense()
    monkeypatch.setattr("foveate.functional.nearest._BLOCK", 30)
    assert torch.equal(merge_into_nearest(features, kept).dense(), whole)


@pytest.mark.parametrize(
    "features, kept, threshold, error, message",
    [
        (torch.ones(3, 2), torch.tensor([0]), 1.1, ValueError, "threshold must be in"),
        (torch.ones(3, 2), torch.tensor([0]), math.nan, ValueError, "threshold must be in"),
        (torch.ones(3, 2).long(), torch.tensor([0]), 0.0, TypeError, "visual must be of a floating dtype"),
        (torch.full((3, 2), math.nan), torch.tensor([0]), 0.0, ValueError, "NaN or infinity in visual"),
        (torch.ones(3, 2), torch.tensor([0.0]), 0.0, TypeError, "kept must be int64"),
        (torch.ones(3, 2), torch.tensor([[0]]), 0.0, ValueError, r"kept must be \(K,\)"),
        (torch.ones(3, 2), torch.tensor([]).long(), 0.0, ValueError, r"kept must be \(K,\) with 1 <= K <= 3"),
        (torch.ones(3, 2), torch.tensor([1, 0]), 0.0, ValueError, "kept must ascend"),
        (torch.ones(3, 2), torch.tensor([0, 3]), 0.0, ValueError, "kept must ascend"),
        (torch.ones(3, 2), torch.tensor([-1, 2]), 0.0, ValueError, "kept must ascend"),
    ],
)
def test_bad_inputs(features, kept, threshold, error, message):
    with pytest.raises(error, match=message):
        merge_into_nearest(features, kept, threshold)
