"""AgilePruner, against its rule written out with loops, in float64."""

import math

import pytest
import torch

from foveate.functional import effective_rank, salient_and_apart
from tests.functional.test_diversity import cosines, flat, gaussian, ranking, signs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def singular_values(rows):
    """By one-sided Jacobi rotations of the columns."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for _ in range(30):
        for i in range(len(columns)):
            for j in range(i):
                p = sum(a * a for a in columns[i])
                q = sum(b * b for b in columns[j])
                r = sum(a * b for a, b in zip(columns[i], columns[j], strict=True))
                if abs(r) <= 1e-15 * math.sqrt(p * q):
                    continue
                angle = 0.5 * math.atan2(2 * r, p - q)
                c, s = math.cos(angle), math.sin(angle)
                one = [c * a + s * b for a, b in zip(columns[i], columns[j], strict=True)]
                other = [c * b - s * a for a, b in zip(columns[i], columns[j], strict=True)]
                columns[i], columns[j] = one, other
    return [math.sqrt(sum(a * a for a in column)) for column in columns]


def agilepruner(features, saliency, budget, step, limit):
    sim, order = cosines(features), ranking(saliency, range(len(features)))
    left, kept = list(order), []
    while left and len(kept) < budget:
        token = left.pop(0)
        kept.append(token)
        threshold = min((order.index(token) + 1) * step, limit)
        left = [i for i in left if not 1 - sim[token][i] < threshold]
    kept += [i for i in order if i not in kept][: budget - len(kept)]
    return kept, [min((order.index(i) + 1) * step, limit) for i in range(len(features))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
@pytest.mark.parametrize("tokens", [1, 9, 24])
def test_effective_rank(inputs, dtype, tokens):
    for seed in range(2):
        features, _ = inputs(max(tokens, 4), seed, dtype)
        features = features[:tokens]
        values = singular_values(features.double().tolist())
        parts = [value / sum(values) for value in values]
        expected = math.exp(-sum(part * math.log(part) for part in parts if part > 0))
        found = effective_rank(features)
        assert found.shape == () and found.dtype == torch.float32
        # Of values that are zero, their squares' rounding leaves 1e-8 of the largest.
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_effective_rank_by_hand():
    assert float(effective_rank(torch.eye(5, 7))) == pytest.approx(5.0)
    assert float(effective_rank(torch.ones(6, 3))) == pytest.approx(1.0, abs=1e-5)
    assert float(effective_rank(torch.zeros(6, 3))) == 1.0
    third = effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))  # 3/4 and 1/4
    assert float(third) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 16, 29])
@pytest.mark.parametrize("step, limit", [(0.01, 2.0), (0.0, 2.0), (0.1, 2.0), (0.0625, 0.25), (5.0, 2.0), (0.3, 0.0)])
def test_salient_and_apart(inputs, dtype, budget, step, limit):
    for seed in range(3):
        features, saliency = inputs(30, seed, dtype)
        for given in (step, torch.tensor(step)):
            kept, threshold = salient_and_apart(features, saliency, budget, given, limit)
            expected, thresholds = agilepruner(features, saliency.double().tolist(), budget, step, limit)
            assert kept.dtype == torch.int64 and kept.tolist() == sorted(expected) and len(set(expected)) == budget
            torch.testing.assert_close(threshold, torch.tensor(thresholds))


def test_salient_and_apart_by_hand():
    """At 0, 10, 60, 61 and 90 degrees, the most salient first: distances 0.015, 0.5, 0.515 and 1 from the first."""
    angle = torch.tensor([90.0, 61.0, 60.0, 10.0, 0.0]).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    saliency = torch.tensor([1.0, 2, 3, 4, 5])
    # Thresholds 0.02, 0.04, 0.06 ...: 10 degrees goes, then 61 (0.0002 from 60, which has rank 3).
    kept, threshold = salient_and_apart(features, saliency, 3, 0.02)
    assert kept.tolist() == [0, 2, 4]
    torch.testing.assert_close(threshold, torch.tensor([0.1, 0.08, 0.06, 0.04, 0.02]))
    # One too few: of those that went the most salient comes back.
    assert salient_and_apart(features, saliency, 4, 0.02)[0].tolist() == [0, 2, 3, 4]
    # Nothing goes: by saliency.
    assert salient_and_apart(features, saliency, 3, 0.0)[0].tolist() == [2, 3, 4]


def test_everything_is_kept():
    features, saliency = gaussian(9, 0, torch.float32)
    assert salient_and_apart(features, saliency, 9)[0].tolist() == list(range(9))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"budget": 0}, ValueError, "budget=0"),
        ({"budget": 1.0}, TypeError, "budget must be an int"),
        ({"step": -0.1}, ValueError, "step must be finite"),
        ({"step": torch.tensor(math.nan)}, ValueError, "step must be finite"),
        ({"limit": 2.5}, ValueError, "limit must be in"),
        ({"limit": math.nan}, ValueError, "limit must be in"),
        ({"saliency": torch.tensor([0.5, math.nan])}, ValueError, "NaN or infinity in saliency"),
        ({"saliency": torch.ones(3)}, ValueError, "one value for each of the 2 tokens"),
        ({"visual": torch.tensor([[math.inf, 0], [1, 1]])}, ValueError, "NaN or infinity in visual"),
    ],
)
def test_bad_inputs(change, error, message):
    given = {"visual": torch.ones(2, 2), "saliency": torch.ones(2), "budget": 1} | change
    with pytest.raises(error, match=message):
        salient_and_apart(**given)


def test_bad_inputs_of_effective_rank():
    with pytest.raises(TypeError, match="floating dtype"):
        effective_rank(torch.ones(2, 2).long())
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        effective_rank(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match=r"visual must be \(N, D\)"):
        effective_rank(torch.ones(2))
