"""TOPS, against the paper's algorithm 1 written out with loops, in float64."""

import math

import pytest
import torch

from foveate.functional import optimal_preservation
from tests.functional.test_diversity import cosines, first_best, flat, gaussian, seeded, signs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tops(features, saliency, budget, coverage, diversity, scale):
    sim, everything = cosines(features), range(len(features))

    def scaled(values):
        if scale == "mean":
            mean = sum(values.values()) / len(values)
            return {i: value / mean if mean > 1e-9 else 0.0 for i, value in values.items()}
        low, high = min(values.values()), max(values.values())
        return {i: (value - low) / (high - low) if high - low > 1e-9 else 0.0 for i, value in values.items()}

    chosen = [first_best(everything, lambda i: saliency[i])]
    while len(chosen) < budget:
        left = [i for i in everything if i not in chosen]
        most = {j: max(sim[j][k] for k in chosen) for j in left}
        a = scaled({i: saliency[i] for i in left})
        d = scaled({i: 1 - most[i] for i in left})
        c = scaled({i: sum(max(0.0, sim[i][j] - most[j]) for j in left) for i in left})
        score = {i: a[i] + diversity * d[i] + coverage * c[i] for i in left}
        chosen.append(first_best(left, score.__getitem__))
    return chosen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 16, 29])
@pytest.mark.parametrize("scale", ["mean", "range"])
@pytest.mark.parametrize("coverage, diversity", [(0.5, 0.5), (2.0, 0.0), (0.0, 1.0), (0.0, 0.0), (3.0, 3.0)])
def test_optimal_preservation(inputs, dtype, budget, scale, coverage, diversity):
    for seed in range(2):
        features, saliency = inputs(30, seed, dtype)
        kept, alone = optimal_preservation(features, saliency, budget, coverage, diversity, scale)
        expected = tops(features, saliency.double().tolist(), budget, coverage, diversity, scale)
        assert kept.dtype == torch.int64 and kept.tolist() == sorted(expected) and len(set(expected)) == budget
        covers = [sum(max(0.0, value) for value in row) / 30 for row in cosines(features)]
        torch.testing.assert_close(alone, torch.tensor(covers), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", ["mean", "range"])
def test_rounding_does_not_decide(scale):
    """Of equal tokens, whose cosines round, saliency alone chooses."""
    one = torch.randn(1, 37, generator=seeded(0))
    features = one * (torch.rand(50, 1, generator=seeded(1)) + 0.5)
    saliency = torch.rand(50, generator=seeded(2))
    kept, _ = optimal_preservation(features, saliency, 9, 5.0, 5.0, scale)
    assert kept.tolist() == saliency.topk(9).indices.sort().values.tolist()
    kept, _ = optimal_preservation(features, torch.zeros(50), 9, 5.0, 5.0, scale)
    assert kept.tolist() == list(range(9))


def test_by_hand():
    """Token 3 is the most salient. Beside it: 0 and 1 as salient as each other, 0 its twin, 1 across, 2 between."""
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    saliency = torch.tensor([0.4, 0.4, 0.5, 0.6])
    # Means of what is left: a 0.4333, d (0 + 1 + 0.2929) / 3 = 0.4310; c of 1: 1 + 0 and what it adds to 2,
    # max(0, 0.7071 - 0.7071) = 0; c of 2: 0.2929 + 0.7071 = 1; c of 0: 0. So 1: 0.923 + 1.160 + 0.75 wins.
    for weights, second in [((), 1), ((0.5, 0.0), 2), ((0.0, 0.0), 2)]:
        found = optimal_preservation(features, saliency, 2, *(weights or (0.5, 0.5)), "mean")[0]
        assert found.tolist() == [second, 3]
    # From 0 to 1: a of 2 is 1, the others' 0; d 0, 1, 0.2929; c 0, 1, 1. So 2: 1 + 0.1464 + 0.5 wins, and 1 as soon as
    # diversity counts twice (2.5 against 2.09).
    assert optimal_preservation(features, saliency, 2)[0].tolist() == [2, 3]
    assert optimal_preservation(features, saliency, 2, 0.5, 2.0)[0].tolist() == [1, 3]
    assert optimal_preservation(features, saliency, 1)[0].tolist() == [3]


def test_everything_is_kept():
    features, saliency = gaussian(9, 0, torch.float32)
    assert optimal_preservation(features, saliency, 9)[0].tolist() == list(range(9))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"budget": 0}, ValueError, "budget=0"),
        ({"budget": 1.0}, TypeError, "budget must be an int"),
        ({"coverage": -1.0}, ValueError, "coverage must be finite"),
        ({"diversity": math.inf}, ValueError, "diversity must be finite"),
        ({"scale": "most"}, ValueError, "unknown scale 'most'; known: range, mean"),
        ({"saliency": torch.tensor([0.5, -0.5])}, ValueError, "must not be negative"),
        ({"saliency": torch.tensor([0.5, math.nan])}, ValueError, "NaN or infinity in saliency"),
        ({"saliency": torch.ones(3)}, ValueError, "one value for each of the 2 tokens"),
        ({"visual": torch.tensor([[math.inf, 0], [1, 1]])}, ValueError, "NaN or infinity in visual"),
    ],
)
def test_bad_inputs(change, error, message):
    given = {"visual": torch.ones(2, 2), "saliency": torch.ones(2), "budget": 1} | change
    with pytest.raises(error, match=message):
        optimal_preservation(**given)
