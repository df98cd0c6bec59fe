"""Methods that look for differing tokens, against their papers' equations written out with loops, in float64."""

import math

import pytest
import torch

from foveate.functional import (
    conditional_dpp,
    holistic_context,
    important_and_diverse,
    least_duplicated,
    max_min_diversity,
    relevance_to_text,
    saliency_coverage,
    spatial_crops,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BUDGETS = [1, 2, 3, 7, 16, 29]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- inputs -------------------------------------------------------------------------------------------------


def gaussian(tokens, seed, dtype):
    """Tokens of all lengths, some nearly alike; saliency without ties."""
    features = torch.randn(tokens, 16, generator=seeded(seed))
    features[tokens // 2 :] = features[: tokens - tokens // 2] + 0.2 * features[tokens // 2 :]
    features *= torch.rand(tokens, 1, generator=seeded(seed + 1)) + 0.5
    return features.to(dtype), torch.softmax(2 * torch.randn(tokens, generator=seeded(seed + 2)), 0).to(dtype)


def signs(tokens, seed, dtype):
    """Vectors of +-1 in sixteen dimensions: cosines are eighths, exact in any dtype, full of ties and duplicates."""
    features = torch.randint(0, 2, (tokens, 16), generator=seeded(seed)) * 2 - 1
    features = features[torch.randint(0, 1 + tokens // 2, (tokens,), generator=seeded(seed + 1))]
    length = 2.0 ** torch.randint(-2, 3, (tokens, 1), generator=seeded(seed + 2))
    return (features * length).to(dtype), torch.randint(0, 9, (tokens,), generator=seeded(seed + 3)).to(dtype) / 8


def flat(tokens, seed, dtype):
    """An empty picture: one token, again and again, with a zero among them."""
    features = torch.ones(tokens, 16, dtype=dtype)
    features[tokens // 3] = 0
    return features, torch.full((tokens,), 0.125, dtype=dtype)


INPUTS = [gaussian, signs, flat]


@pytest.fixture(params=INPUTS)
def inputs(request):
    return request.param


every = pytest.mark.parametrize("dtype", DTYPES)
budgets = pytest.mark.parametrize("budget", BUDGETS)


def same(kept, expected, tokens, budget):
    assert kept.dtype == torch.int64
    assert kept.tolist() == sorted(expected)
    assert len(set(expected)) == min(tokens, budget)


# --- the equations ------------------------------------------------------------------------------------------


def norm(vector):
    return math.sqrt(sum(value * value for value in vector))


def cosine(one, other):
    length = norm(one) * norm(other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


def cosines(features):
    rows = features.double().tolist()
    return [[cosine(one, other) for other in rows] for one in rows]


def first_best(candidates, value):
    """The candidate of the largest value; of equal ones the first."""
    best = None
    for candidate in candidates:
        if best is None or value(candidate) > value(best):
            best = candidate
    return best


def ranking(values, candidates):
    return sorted(candidates, key=lambda token: (-values[token], token))


def divprune(features, budget):
    """Algorithm 1: start where the nearest other token is farthest, then farthest-point sampling."""
    sim, everything = cosines(features), range(len(features))
    chosen = [first_best(everything, lambda i: min(1 - sim[i][j] for j in everything if j != i))]
    while len(chosen) < budget:
        rest = [i for i in everything if i not in chosen]
        chosen.append(first_best(rest, lambda i: min(1 - sim[i][j] for j in chosen)))
    return chosen


def relevance(text, features):
    """Mean cosine to the text tokens, min-max scaled."""
    rows = features.double().tolist()
    raw = [sum(cosine(row, word) for word in text.double().tolist()) / len(text) for row in rows]
    low, high = min(raw), max(raw)
    return [(value - low) / (high - low) if high > low else 1.0 for value in raw]


def determinant(matrix):
    """By elimination with pivoting."""
    rows, product = [list(row) for row in matrix], 1.0
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda k: abs(rows[k][i]))
        if rows[pivot][i] == 0.0:
            return 0.0
        if pivot != i:
            rows[i], rows[pivot], product = rows[pivot], rows[i], -product
        product *= rows[i][i]
        for k in range(i + 1, len(rows)):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return product


def cdpruner(features, weight, budget):
    """Greedy MAP: the token whose determinant with the chosen is largest; those in their span last, by relevance."""
    sim, everything = cosines(features), range(len(features))
    kernel = [[weight[i] * sim[i][j] * weight[j] for j in everything] for i in everything]
    chosen, now = [], 1.0
    while len(chosen) < budget:
        gain = {}
        for i in everything:
            if i in chosen:
                continue
            subset = [*chosen, i]
            gain[i] = determinant([[kernel[a][b] for b in subset] for a in subset]) / now
        new = [i for i in gain if gain[i] > 1e-4 * kernel[i][i]]
        if not new:
            return chosen + ranking(weight, gain)[: budget - len(chosen)]
        best = first_best(new, gain.__getitem__)
        now *= gain[best]
        chosen.append(best)
    return chosen


def vispruner(features, saliency, budget, share, step):
    sim, everything = cosines(features), range(len(features))
    order = ranking(saliency, everything)
    count = math.floor(share * budget + 1e-9)
    important, rest = order[:count], order[count:]
    wanted = budget - len(important)
    if wanted == 0:
        return important
    while len(rest) > wanted:
        first, second = rest[0::2], rest[1::2]
        closest = {i: max(sim[i][j] for j in second) for i in first}
        most = sorted(first, key=lambda i: closest[i])  # of equal ones the later goes
        stay = most[: len(most) - min(step, len(rest) - wanted, len(first))]
        rest = stay[::-1] + second
    return important + rest


def dart(features, budget, pivots):
    sim, everything = cosines(features), range(len(features))
    lengths = [norm(row) for row in features.double().tolist()]
    pivot_tokens = ranking(lengths, everything)[: min(pivots, budget)]
    chosen = list(pivot_tokens)
    spare = budget - len(pivot_tokens)
    for number, pivot in enumerate(pivot_tokens):
        wanted = spare // len(pivot_tokens) + (1 if number < spare % len(pivot_tokens) else 0)
        rest = [i for i in everything if i not in chosen]
        chosen += sorted(rest, key=lambda i: (sim[pivot][i], i))[:wanted]
    return chosen


def scope(features, saliency, budget, alpha):
    sim, everything = cosines(features), range(len(features))

    def coverage(subset):
        return sum(max([0.0, *(sim[i][j] for j in subset)]) for i in everything)

    chosen = []
    while len(chosen) < budget:
        rest = [i for i in everything if i not in chosen]
        now = coverage(chosen)
        value = {i: (coverage([*chosen, i]) - now) * saliency[i] ** alpha for i in rest}
        chosen.append(first_best(rest, value.__getitem__))
    return chosen


def holov(features, saliency, crop, budget, beta):
    """Webster's apportionment one seat at a time, crops never beyond their tokens."""
    sim, crops = cosines(features), sorted(set(crop))
    score = [0.0] * len(features)
    members = {c: [i for i in range(len(crop)) if crop[i] == c] for c in crops}
    worth = {}
    for c, tokens in members.items():
        variance = {}
        for i in tokens:
            others = [sim[i][j] for j in tokens if j != i]
            mean = sum(others) / len(others) if others else 0.0
            variance[i] = sum((s - mean) ** 2 for s in others) / len(others) if others else 0.0
        spread = sum(variance.values())
        scale = sum(saliency[i] for i in tokens) / spread if spread > 1e-12 * len(tokens) else 0.0
        for i in tokens:
            score[i] = saliency[i] + beta * scale * variance[i]
        worth[c] = sum(score[i] for i in tokens) / len(tokens)
    best = {c: ranking(score, tokens) for c, tokens in members.items()}
    seats = dict.fromkeys(crops, 0)
    for _ in range(budget):
        open_crops = [c for c in crops if seats[c] < len(members[c])]
        # Of equal quotients, the crop whose next token stands first.
        open_crops.sort(key=lambda c: best[c][seats[c]])
        seats[first_best(open_crops, lambda c: worth[c] / (2 * seats[c] + 1))] += 1
    return [i for c in crops for i in best[c][: seats[c]]], score


# --- equality -----------------------------------------------------------------------------------------------


@every
@budgets
@pytest.mark.parametrize("seed", range(3))
def test_max_min_diversity(inputs, budget, dtype, seed):
    features, _ = inputs(30, seed, dtype)
    kept, distance = max_min_diversity(features, budget)
    same(kept, divprune(features, budget), 30, budget)
    sim = cosines(features)
    expected = [1 - max(sim[i][j] for j in range(30) if j != i) for i in range(30)]
    torch.testing.assert_close(distance, torch.tensor(expected), atol=1e-5, rtol=0)


def test_max_min_diversity_by_hand():
    """At 0, 5, 90, 100 and 180 degrees: 180 is loneliest, then 0 is the farthest from it, then 90."""
    angle = torch.tensor([0.0, 5.0, 90.0, 100.0, 180.0]).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1) * torch.tensor([[1.0], [2.0], [3.0], [1.0], [9.0]])
    assert [max_min_diversity(features, k)[0].tolist() for k in (1, 2, 3)] == [[4], [0, 4], [0, 2, 4]]
    kept, distance = max_min_diversity(torch.ones(1, 2), 1)
    assert kept.tolist() == [0] and distance.tolist() == [2.0]


def test_blocks_of_rows_change_nothing(monkeypatch):
    features, saliency = gaussian(57, 0, torch.float32)
    whole = [*max_min_diversity(features, 11), *saliency_coverage(features, saliency, 11)]
    monkeypatch.setattr("foveate.functional.diversity._BLOCK", 400)  # seven rows at a time
    monkeypatch.setattr("foveate.functional.coverage._CACHED", 400)
    pieces = [*max_min_diversity(features, 11), *saliency_coverage(features, saliency, 11)]
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@every
@pytest.mark.parametrize("seed", range(3))
def test_relevance(dtype, seed):
    features, text = gaussian(30, seed, dtype)[0], torch.randn(5, 16, generator=seeded(seed + 9)).to(dtype)
    expected = torch.tensor(relevance(text, features))
    found = relevance_to_text(text, features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    mask = torch.tensor([True, False, True, True, False])
    text[1] = math.nan  # what the mask leaves out is not read
    torch.testing.assert_close(
        relevance_to_text(text, features, text_mask=mask),
        torch.tensor(relevance(text[mask], features)),
        atol=1e-5,
        rtol=0,
    )


def test_relevance_by_hand():
    visual = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    found = relevance_to_text(torch.tensor([[5.0, 0.0]]), visual)  # cosines 1, 0, -1, 0.707
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.0, (1 + math.sqrt(0.5)) / 2]))
    assert relevance_to_text(torch.ones(1, 2), torch.ones(3, 2)).tolist() == [1.0, 1.0, 1.0]


@every
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 15, 21, 29])
@pytest.mark.parametrize("seed", range(3))
def test_conditional_dpp(budget, dtype, seed):
    """Budgets beyond sixteen exceed the kernel's rank."""
    features, _ = gaussian(30, seed, dtype)
    weight = relevance_to_text(torch.randn(5, 16, generator=seeded(seed + 9)), features.float())
    same(conditional_dpp(features, weight, budget), cdpruner(features, weight.tolist(), budget), 30, budget)


@every
@budgets
@pytest.mark.parametrize("seed", range(5))
def test_conditional_dpp_on_ties(budget, dtype, seed):
    """Axes, again and again, of relevances that are eighths: every gain is exact, most are equal or nothing."""
    axes = torch.eye(16)[torch.randint(0, 9, (30,), generator=seeded(seed))]
    axes *= 2.0 ** torch.randint(-2, 3, (30, 1), generator=seeded(seed + 1))
    axes[4] = 0
    weight = torch.randint(0, 9, (30,), generator=seeded(seed + 2)) / 8
    same(conditional_dpp(axes.to(dtype), weight, budget), cdpruner(axes, weight.tolist(), budget), 30, budget)


def test_conditional_dpp_by_hand():
    """The most relevant, then not its twin but the token across, then the twin."""
    visual = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    weight = torch.tensor([1.0, 0.9, 0.5, 0.6])
    # beside token 0, token 2 adds 0.5 ** 2 * 1 = 0.25 and token 3 adds 0.6 ** 2 * 0.64 = 0.2304
    assert [conditional_dpp(visual, weight, k).tolist() for k in (1, 2, 3)] == [[0], [0, 2], [0, 1, 2]]
    weight[3] = 0.7  # 0.49 * 0.64 = 0.3136
    assert conditional_dpp(visual, weight, 2).tolist() == [0, 3]


@every
@budgets
@pytest.mark.parametrize("share, step", [(0.5, 8), (0.5, 1), (0.0, 3), (1.0, 2), (0.3, 100)])
def test_important_and_diverse(inputs, budget, dtype, share, step):
    for seed in range(2):
        features, saliency = inputs(30, seed, dtype)
        kept, closest = important_and_diverse(features, saliency, budget, share, step)
        same(kept, vispruner(features, saliency.double().tolist(), budget, share, step), 30, budget)
        sim = cosines(features)
        expected = [max(sim[i][j] for j in range(30) if j != i) for i in range(30)]
        torch.testing.assert_close(closest, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("listed, block", [((1,), 1), ((1, 2), 70), ((2, 3, 5), 10_000), ((30, 60), 1)])
@pytest.mark.parametrize("step", [1, 3])
def test_short_lists_change_nothing(inputs, listed, block, step, monkeypatch):
    """Lists so short that most tokens find none of theirs left, and rows read in blocks of one and of two."""
    monkeypatch.setattr("foveate.functional.duplicates._FEW", 0)
    monkeypatch.setattr("foveate.functional.duplicates._LISTED", listed)
    monkeypatch.setattr("foveate.functional.duplicates._BLOCK", block)
    for seed in range(4):
        features, saliency = inputs(34, seed, torch.float32)
        for budget in (3, 12):
            kept, _ = important_and_diverse(features, saliency, budget, 0.25, step)
            same(kept, vispruner(features, saliency.double().tolist(), budget, 0.25, step), 34, budget)


def test_important_and_diverse_by_hand():
    """Token 5 is salient; of 0 1 2 3 4 the even are compared with 1 and 3, and 2, the twin of 3, goes first."""
    angle = torch.tensor([0.0, 30.0, 80.0, 81.0, 150.0, 0.0]).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    saliency = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 9.0])
    assert important_and_diverse(features, saliency, 5, 0.2, 1)[0].tolist() == [0, 1, 3, 4, 5]
    # What stayed of the even, the most similar first, then the others: 0 4 1 3. Of 0 (81 degrees from 3) and 1 (51 from
    # 3), 1 goes; 0 4 3: 3 goes (69 from 4), not 0 (150).
    assert important_and_diverse(features, saliency, 4, 0.25, 1)[0].tolist() == [0, 3, 4, 5]
    assert important_and_diverse(features, saliency, 3, 0.34, 1)[0].tolist() == [0, 4, 5]
    # Rounded down, none is taken for its saliency: of 5 0 1 2 3 4, token 5 goes, the twin of 0.
    assert important_and_diverse(features, saliency, 5, 0.19, 1)[0].tolist() == [0, 1, 2, 3, 4]


@every
@budgets
@pytest.mark.parametrize("pivots", [1, 3, 8])
def test_least_duplicated(inputs, budget, dtype, pivots):
    for seed in range(3):
        features, _ = inputs(30, seed, dtype)
        kept, lengths = least_duplicated(features, budget, pivots)
        same(kept, dart(features, budget, pivots), 30, budget)
        torch.testing.assert_close(lengths, torch.tensor([norm(row) for row in features.double().tolist()]))


def test_rounding_chooses_no_pivots():
    """Tokens that are all as long, but for rounding: the first are pivots, whatever the last bits say."""
    features = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    bits = 1 + 3e-7 * torch.randn(5, 40, 1, generator=torch.Generator().manual_seed(1))
    chosen = [least_duplicated(some * features, 6, 6)[0].tolist() for some in bits]
    assert chosen == [[0, 1, 2, 3, 4, 5]] * 5


def test_least_duplicated_by_hand():
    """Pivots 1 and 4, at 0 and 90 degrees; 0 degrees takes 170 and 120, 90 degrees then the 20 that is left."""
    angle = torch.tensor([20.0, 0.0, 170.0, 80.0, 90.0, 120.0]).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1) * torch.tensor([1.0, 9, 1, 1, 8, 1]).unsqueeze(1)
    assert least_duplicated(features, 5, 2)[0].tolist() == [0, 1, 2, 4, 5]
    assert least_duplicated(features, 1, 2)[0].tolist() == [1]


@every
@budgets
@pytest.mark.parametrize("alpha", [1.0, 0.0, 2.0])
def test_saliency_coverage(inputs, budget, dtype, alpha):
    if alpha == 0.0 and inputs is gaussian:
        alpha = 0.25  # with none, two tokens that cover each other alone are equal, and only rounding tells them apart
    for seed in range(2):
        features, saliency = inputs(30, seed, dtype)
        kept, alone = saliency_coverage(features, saliency, budget, alpha)
        same(kept, scope(features, saliency.double().tolist(), budget, alpha), 30, budget)
        expected = [sum(max(0.0, value) for value in row) / 30 for row in cosines(features)]
        torch.testing.assert_close(alone, torch.tensor(expected), atol=1e-5, rtol=0)


def test_what_is_covered_adds_nothing():
    """Twenty directions: after a token of each all gains are nothing, and not what rounding left of them."""
    axes = torch.eye(20) + 1e-7 * torch.randn(20, 20, generator=seeded(0))  # cosines of many magnitudes
    features = axes[torch.randint(0, 20, (500,), generator=seeded(1))]
    saliency = torch.rand(500, generator=seeded(2)) + 0.5
    first = saliency_coverage(features, saliency, 20)[0].tolist()
    assert len({tuple(features[token].tolist()) for token in first}) == 20
    rest = [token for token in range(500) if token not in first]
    for budget in (21, 30, 200):
        assert saliency_coverage(features, saliency, budget)[0].tolist() == sorted(first + rest[: budget - 20])


def test_saliency_coverage_by_hand():
    """Three alike and one apart: one of the three covers 3, then the one apart 1, unless it is of no salience."""
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert saliency_coverage(features, torch.tensor([0.5, 0.5, 1.0, 0.5]), 2)[0].tolist() == [0, 2]
    assert saliency_coverage(features, torch.tensor([8.0, 0.5, 1.0, 0.5]), 1)[0].tolist() == [0]
    assert saliency_coverage(features, torch.tensor([8.0, 0.5, 1.0, 0.5]), 1, 0.0)[0].tolist() == [1]


def grid(*grids):
    cells = [(v, r, c) for v, (rows, columns) in enumerate(grids) for r in range(rows) for c in range(columns)]
    return [torch.tensor(part) for part in zip(*cells, strict=True)]


@every
@pytest.mark.parametrize("budget", [1, 2, 7, 20, 33, 46])
@pytest.mark.parametrize("seed", range(3))
def test_holistic_context(budget, dtype, seed):
    """Views of unequal size, one of them with blocks of a single token and of none."""
    grids = [(4, 6), (5, 3), (2, 4)]
    features, saliency = gaussian(47, seed, dtype)
    crop, crops, largest = spatial_crops(*grid(*grids), grids, 3)
    kept, score = holistic_context(features, saliency, crop, crops, largest, budget)
    expected, scores = holov(features, saliency.double().tolist(), crop.tolist(), budget, 0.09)
    same(kept, expected, 47, budget)
    torch.testing.assert_close(score, torch.tensor(scores), atol=1e-7, rtol=1e-4)
    kept, _ = holistic_context(features, saliency, crop, crops, largest, budget, 5.0)
    same(kept, holov(features, saliency.double().tolist(), crop.tolist(), budget, 5.0)[0], 47, budget)


@every
@pytest.mark.parametrize("budget", [1, 2, 7, 20, 33, 63])
@pytest.mark.parametrize("seed", range(5))
def test_holistic_context_on_ties(budget, dtype, seed):
    """Saliency in eighths over blocks of sixteen: mean scores and quotients are exact, and many are equal or zero."""
    crop, crops, largest = spatial_crops(*grid((8, 8)), [(8, 8)], 2)
    features, saliency = signs(64, seed, dtype)
    saliency[crop == 2] = 0
    kept, _ = holistic_context(features, saliency, crop, crops, largest, budget, 0.0)
    same(kept, holov(features, saliency.double().tolist(), crop.tolist(), budget, 0.0)[0], 64, budget)
    features, saliency = flat(64, seed, dtype)
    features[:] = 1
    kept, score = holistic_context(features, saliency, crop, crops, largest, budget, 0.5)
    assert torch.equal(score, saliency.float())  # no variance is no noise
    same(kept, holov(features, saliency.double().tolist(), crop.tolist(), budget, 0.5)[0], 64, budget)


def test_rounding_is_no_variety():
    """One direction in many lengths: cosines differ in the last place, and that must rank nothing."""
    features = torch.randn(1, 96, generator=seeded(0)) * torch.rand(64, 1, generator=seeded(1)).add(0.1)
    crop, crops, largest = spatial_crops(*grid((8, 8)), [(8, 8)], 2)
    saliency = torch.rand(64, generator=seeded(2))
    _, score = holistic_context(features, saliency, crop, crops, largest, 10, 5.0)
    assert torch.equal(score, saliency)


def test_holistic_context_by_hand():
    """Two crops of three; mean scores 5 and 1: quotients 5, 5/3, 1 and 1, 1/3, 1/5; the earlier of equal ones first."""
    crop, saliency = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([4.0, 5.0, 6.0, 0.0, 3.0, 0.0])
    kept = [holistic_context(torch.ones(6, 2), saliency, crop, 2, 3, k)[0].tolist() for k in range(1, 7)]
    assert kept == [[2], [1, 2], [0, 1, 2], [0, 1, 2, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    # A crop of one token, worth 8, cannot take more than it.
    crop, saliency = torch.tensor([0, 1, 1, 1]), torch.tensor([8.0, 0.1, 0.2, 0.3])
    assert holistic_context(torch.ones(4, 2), saliency, crop, 2, 3, 3)[0].tolist() == [0, 2, 3]


def test_holistic_context_variance_by_hand():
    """Axes x, x, y: cosines to the others (1, 0), (1, 0), (0, 0); variances 1/4, 1/4, 0, scaled by 3 / (1/2)."""
    features, saliency = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]), torch.ones(3)
    _, score = holistic_context(features, saliency, torch.zeros(3, dtype=torch.int64), 1, 3, 2, 0.5)
    torch.testing.assert_close(score, torch.tensor([1.75, 1.75, 1.0]))


# --- what all promise ---------------------------------------------------------------------------------------

CROP = torch.arange(12) // 4
METHODS = {
    "max_min_diversity": lambda visual, saliency, budget: max_min_diversity(visual, budget)[0],
    "conditional_dpp": conditional_dpp,
    "important_and_diverse": lambda *given: important_and_diverse(*given)[0],
    "least_duplicated": lambda visual, saliency, budget: least_duplicated(visual, budget)[0],
    "saliency_coverage": lambda *given: saliency_coverage(*given)[0],
    "holistic_context": lambda visual, saliency, budget: holistic_context(visual, saliency, CROP, 3, 4, budget)[0],
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
SALIENT = [METHODS[name] for name in METHODS if name not in ("max_min_diversity", "least_duplicated")]
salient = pytest.mark.parametrize("method", SALIENT)


@methods
def test_a_budget_that_covers_all_keeps_all(method):
    features, saliency = gaussian(12, 0, torch.float32)
    for budget in (12, 13, 99):
        assert method(features, saliency, budget).tolist() == list(range(12))


@methods
def test_autocast_and_gradients_change_nothing(method):
    features, saliency = gaussian(12, 0, torch.float32)
    before = features.clone(), saliency.clone()
    expected = method(features, saliency, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method(features, saliency, 5), expected)
    assert torch.equal(method(features.clone().requires_grad_().detach(), saliency, 5), expected)
    assert torch.equal(features, before[0]) and torch.equal(saliency, before[1])


@methods
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(method, value):
    features, saliency = gaussian(12, 0, torch.float32)
    features[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        method(features, saliency, 5)


@salient
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(method, value):
    features, saliency = gaussian(12, 0, torch.float32)
    saliency[3] = value
    with pytest.raises(ValueError, match="NaN or infinity in (saliency|relevance)"):
        method(features, saliency, 5)


@salient
def test_one_score_per_token(method):
    features, saliency = gaussian(12, 0, torch.float32)
    for wrong in (saliency[1:], saliency.unsqueeze(0)):
        with pytest.raises(ValueError, match="one value for each of the 12 tokens"):
            method(features, wrong, 5)


@methods
@pytest.mark.parametrize("budget, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_budgets_are_refused(method, budget, error):
    with pytest.raises(error, match="budget"):
        method(*gaussian(12, 0, torch.float32), budget)


@methods
def test_features_that_are_no_features_are_refused(method):
    saliency = torch.rand(12)
    with pytest.raises(TypeError, match="visual must be of a floating dtype"):
        method(torch.ones(12, 4, dtype=torch.int64), saliency, 3)
    for shape in ((12,), (0, 4), (2, 12, 4)):
        with pytest.raises(ValueError, match=r"visual must be \(N, D\)"):
            method(torch.ones(shape), saliency, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v, s: important_and_diverse(v, s, 3, 1.1), "important must be in"),
        (lambda v, s: important_and_diverse(v, s, 3, math.nan), "important must be in"),
        (lambda v, s: important_and_diverse(v, s, 3, 0.5, 0), "step must be >= 1"),
        (lambda v, s: least_duplicated(v, 3, 0), "pivots must be >= 1"),
        (lambda v, s: saliency_coverage(v, s, 3, -1.0), "alpha must be finite and >= 0"),
        (lambda v, s: saliency_coverage(v, -s, 3), "saliency must not be negative"),
        (lambda v, s: holistic_context(v, s, CROP, 3, 4, 3, -0.1), "beta must be finite and >= 0"),
        (lambda v, s: holistic_context(v, -s, CROP, 3, 4, 3), "saliency must not be negative"),
        (lambda v, s: holistic_context(v, s, CROP[1:], 3, 4, 3), "crop must have one value for each of the 12"),
        (lambda v, s: relevance_to_text(torch.ones(3, 5), v), r"share D, got \(3, 5\) and \(12, 16\)"),
        (lambda v, s: relevance_to_text(torch.ones(0, 16), v), "share D"),
        (lambda v, s: relevance_to_text(torch.full((2, 16), math.nan), v), "NaN or infinity in text"),
        (lambda v, s: relevance_to_text(v, v, text_mask=torch.zeros(12) > 0), "leaves no text"),
        (lambda v, s: relevance_to_text(v, v, text_mask=torch.ones(11) > 0), "does not fit"),
    ],
)
def test_options_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*gaussian(12, 0, torch.float32))


def test_dtypes_that_do_not_fit_are_refused():
    features, saliency = gaussian(12, 0, torch.float32)
    with pytest.raises(TypeError, match="text_mask must be bool"):
        relevance_to_text(features, features, text_mask=saliency)
    with pytest.raises(TypeError, match="crop must be int64"):
        holistic_context(features, saliency, CROP.int(), 3, 4, 3)


# --- on a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_chooses_as_the_cpu_and_without_a_sync():
    features, saliency = gaussian(2880, 0, torch.float32)
    features = torch.cat([features, torch.randn(2880, 240, generator=seeded(5))], dim=1)
    text, places = torch.randn(12, 256, generator=seeded(6)), grid(*[(24, 24)] * 5)

    def choices(features, saliency, text, places):
        crop, crops, largest = spatial_crops(*places, [(24, 24)] * 5, 4)
        return [
            max_min_diversity(features, 100)[0],
            conditional_dpp(features, relevance_to_text(text, features, text_mask=torch.arange(12) < 9), 100),
            important_and_diverse(features, saliency, 100)[0],
            least_duplicated(features, 100)[0],
            saliency_coverage(features, saliency, 100)[0],
            holistic_context(features, saliency, crop, crops, largest, 100)[0],
        ]

    expected = choices(features, saliency, text, places)
    there = features.cuda(), saliency.cuda(), text.cuda(), [place.cuda() for place in places]
    choices(*there)  # libraries are loaded on the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = choices(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(expected, result, strict=True):
        assert torch.equal(one, other.cpu())
