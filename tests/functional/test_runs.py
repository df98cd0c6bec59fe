"""HoloV as its authors' code has it, written out with loops, in float64."""

import math

import pytest
import torch

from foveate.functional import attention_in_runs
from tests.functional.test_diversity import cosines, flat, gaussian, ranking, seeded, signs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def released(features, saliency, budget, runs, beta):
    """One run after the other; then whole shares, one more for the best runs, and the most salient of the rest."""
    sim, tokens = cosines(features), len(features)
    members, start = [], 0
    for p in range(runs):
        size = tokens // runs + (1 if p < tokens % runs else 0)
        if size:
            members.append(list(range(start, start + size)))
        start += size
    score, worth = [0.0] * tokens, []
    for run in members:
        n, loud = len(run), {i: 1000 * saliency[i] for i in run}
        variance = dict.fromkeys(run, 0.0)
        if n > 1:
            for i in run:
                masked = [0.0 if j == i else sim[i][j] for j in run]
                mean = sum(masked) / (n - 1)
                variance[i] = sum((c - mean) ** 2 for c in masked) / (n - 1)
        scale = (sum(loud.values()) / n) / (sum(variance.values()) / n + 1e-6)
        for i in run:
            score[i] = loud[i] + beta * scale * variance[i]
        worth.append(sum(score[i] for i in run) / n)
    total = sum(worth) + 1e-6
    share = [math.floor(w / total * budget) for w in worth]
    for p in ranking(worth, range(len(members)))[: budget - sum(share)]:
        share[p] += 1
    kept = []
    for run, count in zip(members, share, strict=True):
        kept += ranking(saliency, run)[:count]
    rest = [i for i in range(tokens) if i not in kept]
    return kept + ranking(saliency, rest)[: budget - len(kept)], score


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
@pytest.mark.parametrize("budget", [1, 2, 7, 16, 25, 29])
@pytest.mark.parametrize("runs", [1, 4, 7, 16, 30, 50])
def test_attention_in_runs(inputs, dtype, budget, runs):
    for seed in range(3):
        features, saliency = inputs(30, seed, dtype)
        kept, score = attention_in_runs(features, saliency, budget, runs)
        expected, scores = released(features, saliency.double().tolist(), budget, runs, 0.09)
        assert kept.dtype == torch.int64 and kept.tolist() == sorted(expected) and len(set(expected)) == budget
        torch.testing.assert_close(score, torch.tensor(scores), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_beta_moves_scores_and_not_the_choice(beta):
    """What the released scaling comes to: a run's variance counts as its saliency does, whatever its variety."""
    features, saliency = gaussian(60, 0, torch.float32)
    kept, score = attention_in_runs(features, saliency, 20, 8, beta)
    usual, other = attention_in_runs(features, saliency, 20, 8)
    assert torch.equal(kept, usual) and not torch.equal(score, other)
    expected, scores = released(features, saliency.double().tolist(), 20, 8, beta)
    assert kept.tolist() == sorted(expected)
    torch.testing.assert_close(score, torch.tensor(scores), rtol=1e-4, atol=1e-3)


def test_by_hand():
    """Two runs of four; means 3 and 1, so of four tokens three and one."""
    features = torch.randn(8, 5, generator=seeded(0))
    saliency = torch.tensor([3.0, 2, 6, 1, 1, 0.5, 2, 0.5])
    assert attention_in_runs(features, saliency, 4, 2)[0].tolist() == [0, 1, 2, 6]
    # Of six, floor(4.5) = 4 and floor(1.5) = 1, and the one left over goes to the better run, which is full: of the
    # others the most salient, token 4, stays beside token 6.
    assert attention_in_runs(features, saliency, 6, 2)[0].tolist() == [0, 1, 2, 3, 4, 6]


def test_nothing_salient():
    """No run has a share: one token each for the first, as many as there are, then the first tokens."""
    features = torch.randn(12, 5, generator=seeded(0))
    assert attention_in_runs(features, torch.zeros(12), 2, 4)[0].tolist() == [0, 3]
    assert attention_in_runs(features, torch.zeros(12), 6, 4)[0].tolist() == [0, 1, 2, 3, 6, 9]


def test_everything_is_kept():
    features, saliency = gaussian(9, 0, torch.float32)
    for budget in (9, 100):
        assert attention_in_runs(features, saliency, budget)[0].tolist() == list(range(9))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"budget": 0}, ValueError, "budget=0"),
        ({"budget": 1.0}, TypeError, "budget must be an int"),
        ({"runs": 0}, ValueError, "runs must be >= 1"),
        ({"beta": -1.0}, ValueError, "beta must be finite"),
        ({"beta": math.inf}, ValueError, "beta must be finite"),
        ({"saliency": torch.tensor([0.5, -0.5])}, ValueError, "must not be negative"),
        ({"saliency": torch.tensor([0.5, math.nan])}, ValueError, "NaN or infinity in saliency"),
        ({"saliency": torch.ones(3)}, ValueError, "one value for each of the 2 tokens"),
        ({"visual": torch.tensor([[math.inf, 0], [1, 1]])}, ValueError, "NaN or infinity in visual"),
    ],
)
def test_bad_inputs(change, error, message):
    given = {"visual": torch.ones(2, 2), "saliency": torch.ones(2), "budget": 1} | change
    with pytest.raises(error, match=message):
        attention_in_runs(**given)
