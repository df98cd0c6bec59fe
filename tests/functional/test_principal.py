"""PruneSID, against its released rules written out with loops, in float64."""

import math

import pytest
import torch

from foveate.functional import different_in_groups, principal_groups
from tests.functional.test_diversity import cosines, flat, gaussian, ranking, seeded, signs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def eigenvectors(matrix):
    """Of a symmetric matrix, by Jacobi rotations: (value, vector) by descending value."""
    n, a = len(matrix), [list(row) for row in matrix]
    v = [[float(i == j) for j in range(n)] for i in range(n)]
    for _ in range(30):
        for p in range(n):
            for q in range(p):
                if abs(a[p][q]) < 1e-300:
                    continue
                angle = 0.5 * math.atan2(2 * a[p][q], a[p][p] - a[q][q])
                c, s = math.cos(angle), math.sin(angle)
                for k in range(n):
                    a[k][p], a[k][q] = c * a[k][p] + s * a[k][q], c * a[k][q] - s * a[k][p]
                for k in range(n):
                    a[p][k], a[q][k] = c * a[p][k] + s * a[q][k], c * a[q][k] - s * a[p][k]
                for k in range(n):
                    v[k][p], v[k][q] = c * v[k][p] + s * v[k][q], c * v[k][q] - s * v[k][p]
    pairs = [(a[j][j], [v[i][j] for i in range(n)]) for j in range(n)]
    return sorted(pairs, key=lambda pair: -pair[0])


def grouping(features, groups):
    rows = [[1 / (1 + math.exp(-value)) for value in row] for row in features.double().tolist()]
    rows = [[value - sum(row) / len(row) for value in row] for row in rows]
    gram = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]
    components = eigenvectors(gram)[:groups]
    entries = [[abs(vector[i]) for _, vector in components] for i in range(len(rows))]
    return [max(range(len(row)), key=lambda c: (row[c], -c)) for row in entries], [max(row) for row in entries]


def prunesid(features, saliency, group, groups, budget, slack):
    sim, n = cosines(features), len(features)
    pairs = [sim[i][j] for i in range(n) for j in range(i + 1, n)]
    threshold = max(slack * budget / n, 1.0) * (sum(pairs) / len(pairs))
    members = [[i for i in range(n) if group[i] == g] for g in range(groups)]
    ranked, survivors = [], []
    for tokens in members:
        left, survived = ranking(saliency, tokens), []
        while left and len(survived) < budget:
            best = left.pop(0)
            survived.append(best)
            left = [i for i in left if not sim[best][i] > threshold]
        survivors.append(len(survived))
        ranked.append(survived + ranking(saliency, [i for i in tokens if i not in survived]))
    least = [min(1, len(tokens)) for tokens in members]
    most = [min(5 * math.ceil(budget / 64), len(tokens), c) for tokens, c in zip(members, survivors, strict=True)]
    while sum(most) < budget:
        most = [min(bound + 1, len(tokens)) for bound, tokens in zip(most, members, strict=True)]
    rest, part, before, share = budget - sum(least), 0.0, 0, []
    for g in range(groups):
        part += survivors[g] / sum(survivors)
        share.append(min(round(part * rest) - before + least[g], most[g]))
        before = round(part * rest)
    for g in ranking(survivors, range(groups)):
        share[g] += min(most[g] - share[g], budget - sum(share))
    return [i for g in range(groups) for i in ranked[g][: share[g]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 5, 11, 40])
@pytest.mark.parametrize("seed", range(3))
def test_principal_groups(dtype, groups, seed):
    features = (torch.randn(12, 16, generator=seeded(seed)) * 2).to(dtype)
    group, entry = principal_groups(features, groups)
    expected, entries = grouping(features, groups)
    assert group.dtype == torch.int64 and group.tolist() == expected
    torch.testing.assert_close(entry, torch.tensor(entries), atol=1e-4, rtol=0)


def test_principal_groups_by_hand():
    """Tokens of two directions, four of one and two of the other: two components, each with its own."""
    a, b = torch.tensor([3.0, -3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0, -3.0])
    group, entry = principal_groups(torch.stack([a, b, a, -a, a, b]), 5)
    assert group.tolist() == [0, 1, 0, 0, 0, 1]
    torch.testing.assert_close(entry, torch.tensor([0.5, 0.5**0.5, 0.5, 0.5, 0.5, 0.5**0.5]))


def test_components_without_variance_have_no_members():
    """Where equal tokens leave components of nothing, whose entries could be anything."""
    one = torch.randn(1, 8, generator=seeded(0)).expand(20, 8)
    group, entry = principal_groups(one, 9)
    assert group.tolist() == [0] * 20
    torch.testing.assert_close(entry, torch.full((20,), 20**-0.5))
    group, entry = principal_groups(flat(30, 0, torch.float32)[0], 9)  # whose values are all the same
    assert group.tolist() == [0] * 30 and entry.tolist() == [0.0] * 30


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 16, 29])
@pytest.mark.parametrize("groups, slack", [(1, 18.0), (3, 18.0), (3, 1.0), (7, 40.0), (12, 5.0)])
def test_different_in_groups(inputs, dtype, budget, groups, slack):
    for seed in range(3):
        features, saliency = inputs(30, seed, dtype)
        group = torch.randint(0, min(groups, budget), (30,), generator=seeded(seed + 20))
        kept = different_in_groups(features, saliency, group, groups, budget, slack)
        expected = prunesid(features, saliency.double().tolist(), group.tolist(), groups, budget, slack)
        assert kept.dtype == torch.int64 and kept.tolist() == sorted(expected) and len(set(expected)) == budget


@pytest.mark.parametrize("budget", [65, 70, 130])
def test_bounds_that_grow_with_the_budget(budget):
    features, saliency = gaussian(150, 0, torch.float32)
    group = torch.randint(0, 9, (150,), generator=seeded(5)) // 2
    kept = different_in_groups(features, saliency, group, 16, budget)
    expected = prunesid(features, saliency.double().tolist(), group.tolist(), 16, budget, 18.0)
    assert kept.tolist() == sorted(expected)


def test_different_in_groups_by_hand():
    """Group 0: 0 and 10 degrees, alike, and 90; group 1: 180. Mean cosine below 0: whoever is not opposite is alike."""
    angle = torch.tensor([0.0, 10.0, 90.0, 180.0]).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    saliency = torch.tensor([4.0, 3.0, 2.0, 1.0])
    group = torch.tensor([0, 0, 0, 1])
    # Mean of 0.985, 0, -1, 0.174, -0.985, 0 is -0.138: tokens 1 and 2 go. One token each.
    assert different_in_groups(features, saliency, group, 2, 2, 1.0).tolist() == [0, 3]
    # For a third the bounds rise: group 0 takes the most salient of those that went.
    assert different_in_groups(features, saliency, group, 2, 3, 1.0).tolist() == [0, 1, 3]
    assert different_in_groups(features, saliency, torch.zeros(4).long(), 1, 2, 1.0).tolist() == [0, 3]


def test_as_alike_as_the_threshold_survives():
    """All cosines are 1, and so is the threshold: groups of five and of two share by what they have."""
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [1.0, 0.0], [1.0, 0.0], [8.0, 0.0], [1.0, 0.0]])
    saliency, group = torch.arange(7.0), torch.tensor([0, 0, 0, 0, 0, 1, 1])
    # One each; of the one that is left group 0 has round(5/7), and its best are the last of its five.
    assert different_in_groups(features, saliency, group, 2, 3, 0.0).tolist() == [3, 4, 6]


def test_everything_is_kept():
    features, saliency = gaussian(9, 0, torch.float32)
    assert different_in_groups(features, saliency, torch.zeros(9).long(), 1, 9).tolist() == list(range(9))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"budget": 0}, ValueError, "budget=0"),
        ({"budget": 1.0}, TypeError, "budget must be an int"),
        ({"slack": -1.0}, ValueError, "slack must be finite"),
        ({"slack": math.inf}, ValueError, "slack must be finite"),
        ({"groups": 0}, ValueError, "groups must be >= 1"),
        ({"group": torch.zeros(2).long()}, ValueError, "group must have one value for each of the 3 tokens"),
        ({"group": torch.zeros(3)}, TypeError, "group must be int64"),
        ({"group": torch.tensor([0, 1, 1])}, ValueError, "2 groups have members: too many for a budget of 1"),
        ({"saliency": torch.tensor([0.5, math.nan, 1])}, ValueError, "NaN or infinity in saliency"),
        ({"saliency": torch.ones(2)}, ValueError, "one value for each of the 3 tokens"),
        ({"visual": torch.tensor([[math.inf, 0], [1, 1], [1, 0]])}, ValueError, "NaN or infinity in visual"),
    ],
)
def test_bad_inputs(change, error, message):
    given = {"visual": torch.ones(3, 2), "saliency": torch.ones(3), "group": torch.zeros(3).long()}
    with pytest.raises(error, match=message):
        different_in_groups(**(given | {"groups": 2, "budget": 1} | change))


def test_bad_inputs_of_principal_groups():
    with pytest.raises(ValueError, match="groups must be >= 1"):
        principal_groups(torch.ones(3, 2), 0)
    with pytest.raises(TypeError, match="floating dtype"):
        principal_groups(torch.ones(3, 2).long(), 1)
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        principal_groups(torch.full((2, 2), math.inf), 1)
