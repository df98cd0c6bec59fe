"""Methods that merge tokens, against their equations written out with loops, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.functional import (
    Merge,
    dominant_and_contextual,
    outliers_with_neighbours,
    salient_and_spread,
    spatial_crops,
    spatial_pooling,
    top_k,
    uniform_grid,
)
from tests.functional.test_diversity import cosines, flat, gaussian, grid, ranking, seeded, signs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[gaussian, signs, flat])
def inputs(request):
    return request.param


every = pytest.mark.parametrize("dtype", DTYPES)
budgets = pytest.mark.parametrize("budget", [1, 2, 3, 7, 13, 29])


def close(merge, expected):
    assert isinstance(merge, Merge) and merge.dtype == torch.float32
    weights = merge.dense()
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.as_tensor(expected), atol=1e-6, rtol=1e-5)


# --- VisionZip ----------------------------------------------------------------------------------------------


def visionzip(saliency, keys, budget, contextual):
    """kept, and for each the list of tokens it is the mean of."""
    sim, tokens = cosines(keys), range(len(saliency))
    merged = math.floor(contextual * budget)
    dominant = ranking(saliency, tokens)[: budget - merged]
    rest = [i for i in tokens if i not in dominant]
    targets = [rest[(2 * m + 1) * len(rest) // (2 * merged)] for m in range(merged)]
    members = {i: [i] for i in dominant + targets}
    for i in rest:
        if targets and i not in targets:
            best = max(targets, key=lambda target: (sim[i][target], -target))
            members[best].append(i)
    kept = sorted(members)
    rows = [[1 / len(members[k]) if i in members[k] else 0.0 for i in tokens] for k in kept]
    return kept, rows


@every
@budgets
@pytest.mark.parametrize("contextual", [10 / 64, 0.0, 0.5, 0.99])
def test_dominant_and_contextual(inputs, budget, dtype, contextual):
    for seed in range(3):
        keys, saliency = inputs(30, seed, dtype)
        kept, weights = dominant_and_contextual(saliency, keys, budget, contextual)
        expected, rows = visionzip(saliency.double().tolist(), keys, budget, contextual)
        assert kept.dtype == torch.int64 and kept.tolist() == expected
        close(weights, rows)


def test_dominant_and_contextual_by_hand():
    """3 is dominant; of 0 1 2 4, tokens 1 and 4 are the targets; 0 has the key of 4, 2 that of 1."""
    keys = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.2, 5.0], [1.0, 1.0], [3.0, 0.0]])
    kept, weights = dominant_and_contextual(torch.tensor([0.1, 0.2, 0.3, 0.9, 0.4]), keys, 3, 0.7)
    assert kept.tolist() == [1, 3, 4]
    close(weights, [[0.0, 0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0, 0.5]])
    kept, weights = dominant_and_contextual(torch.rand(5), keys, 6)
    assert kept.tolist() == [0, 1, 2, 3, 4] and torch.equal(weights.dense(), torch.eye(5))


@pytest.mark.parametrize("budget, merged", [(64, 10), (128, 20), (192, 30), (6, 0), (7, 1)])
def test_the_paper_s_numbers(budget, merged):
    """54 + 10, 108 + 20, 162 + 30: what is dominant goes as it is."""
    keys, saliency = torch.randn(576, 8, generator=seeded(0)), torch.rand(576, generator=seeded(1))
    _, weights = dominant_and_contextual(saliency, keys, budget)
    assert int((weights.dense() < 1).all(dim=1).sum()) == merged


# --- PruMerge -----------------------------------------------------------------------------------------------


def prumerge(saliency, keys, kept, neighbours):
    sim, tokens = cosines(keys), range(len(saliency))
    rows = []
    for k in kept:
        others = [i for i in tokens if i != k]
        cluster = [k, *sorted(others, key=lambda i: (-sim[k][i], i))[:neighbours]]
        counts = {i: 1.0 if i == k else saliency[i] for i in cluster}
        rows.append([counts.get(i, 0.0) / sum(counts.values()) for i in tokens])
    return rows


@every
@pytest.mark.parametrize("neighbours", [0, 1, 5, 29, 99])
def test_outliers_with_neighbours(inputs, dtype, neighbours):
    for seed in range(3):
        keys, saliency = inputs(30, seed, dtype)
        kept = top_k(saliency, 7)
        weights = outliers_with_neighbours(saliency, keys, kept, neighbours)
        close(weights, prumerge(saliency.double().tolist(), keys, kept.tolist(), neighbours))
        nothing = outliers_with_neighbours(torch.zeros_like(saliency), keys, kept, neighbours)
        close(nothing, torch.eye(30)[kept])


def test_outliers_with_neighbours_by_hand():
    """Token 0 is like 2, token 3 like 1; these count their saliency, the kept ones 1."""
    keys = torch.tensor([[1.0, 0.0], [0.1, 1.0], [2.0, 0.1], [0.0, 1.0]])
    weights = outliers_with_neighbours(torch.tensor([0.6, 0.6, 0.25, 0.4]), keys, torch.tensor([0, 3]), 1)
    close(weights, [[0.8, 0.0, 0.2, 0.0], [0.0, 0.375, 0.0, 0.625]])


@pytest.mark.parametrize("budget", [1, 2, 5, 11, 40, 46])
@pytest.mark.parametrize("salient", [0.25, 0.0, 1.0, 0.6])
def test_salient_and_spread(budget, salient):
    view, row, column = grid((4, 6), (5, 3), (2, 4))
    saliency = torch.randint(0, 9, (47,), generator=seeded(budget)) / 8
    kept = salient_and_spread(saliency, view, row, column, budget, salient)
    first = ranking(saliency.tolist(), range(47))[: math.ceil(salient * budget)]
    rest = torch.tensor([i for i in range(47) if i not in first])
    if len(first) < budget:
        spread = uniform_grid(view[rest], row[rest], column[rest], budget - len(first))
        first += rest[spread].tolist()
    assert kept.tolist() == sorted(first) and len(set(first)) == budget
    assert salient_and_spread(saliency, view, row, column, 47).tolist() == list(range(47))


# --- pooling ------------------------------------------------------------------------------------------------


def pooling(view, row, column, budget):
    """The walk, one token after the other."""
    tokens = range(len(view))
    cells, given = [], 0
    for v in sorted(set(view)):
        members = [i for i in tokens if view[i] == v]
        before = sum(1 for i in tokens if view[i] < v)
        seats = math.ceil(budget * (before + len(members)) / len(view)) - math.ceil(budget * before / len(view))
        given += seats
        top, left = min(row[i] for i in members), min(column[i] for i in members)
        rows, columns = max(row[i] for i in members) - top + 1, max(column[i] for i in members) - left + 1
        bands = min(rows, max(1, round(math.sqrt(seats * rows / columns))))
        walk = []
        for band in range(bands):
            inside = [i for i in members if (row[i] - top) * bands // rows == band]
            inside.sort(key=lambda i: row[i])
            inside.sort(key=lambda i: column[i], reverse=band % 2 == 1)
            walk += inside
        cells += [[walk[n] for n in range(len(walk)) if n * seats // len(walk) == seat] for seat in range(seats)]
    assert given == len(cells) == budget
    result = {}
    for cell in cells:
        down, right = sum(row[i] for i in cell), sum(column[i] for i in cell)
        away = {i: (len(cell) * row[i] - down) ** 2 + (len(cell) * column[i] - right) ** 2 for i in cell}
        result[min(away, key=lambda i, away=away: (away[i], i))] = cell
    return result


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.floats(0.01, 0.999),
    st.integers(0, 99),
    st.booleans(),
)
def test_spatial_pooling(sizes, keep, seed, holes):
    """Grids of any size, in any order, starting anywhere, with tokens missing."""
    view, row, column = grid(*sizes)
    order = torch.randperm(len(view), generator=seeded(seed))
    if holes:
        order = order[: max(1, len(order) * 2 // 3)]
    view, row, column = view[order].clamp(max=len(order) - 1), row[order] + seed, column[order] + 3
    budget = max(1, math.ceil(keep * len(view)))
    kept, weights = spatial_pooling(view, row, column, budget)
    if budget >= len(view):
        assert torch.equal(kept, torch.arange(len(view))) and torch.equal(weights.dense(), torch.eye(len(view)))
        return
    expected = pooling(view.tolist(), row.tolist(), column.tolist(), budget)
    assert kept.tolist() == sorted(expected) and len(kept) == budget
    close(
        weights, [[1 / len(expected[k]) if i in expected[k] else 0.0 for i in range(len(view))] for k in kept.tolist()]
    )


@pytest.mark.parametrize("side, cell", [(24, 2), (24, 3), (24, 1), (12, 4), (16, 16)])
def test_whole_cells_are_average_pooling(side, cell):
    """Three views at once, against torch's own pooling."""
    places = grid(*[(side, side)] * 3)
    visual = torch.randn(3 * side * side, 5, generator=seeded(0))
    kept, weights = spatial_pooling(*places, 3 * (side // cell) ** 2)
    maps = visual.view(3, side, side, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.avg_pool2d(maps, cell).permute(0, 2, 3, 1).reshape(-1, 5)
    # Kept tokens stand in the order of the prompt; a cell's first token is its place when no token is in the middle.
    if cell % 2 == 0:
        torch.testing.assert_close(weights @ visual, expected)
    rows = torch.argsort(kept)
    pooled = {tuple(value.round(decimals=4).tolist()) for value in (weights @ visual)[rows]}
    assert pooled == {tuple(value.round(decimals=4).tolist()) for value in expected}


def test_spatial_pooling_by_hand():
    """3 x 3 to two: two bands would be rows 0 1 and 2; sqrt(2) rounds to one, so columns: 0 1 1 1 | 1 2 2 2 ..."""
    kept, weights = spatial_pooling(*grid((3, 3)), 2)
    # column by column: 0 3 6 1 4 | 7 2 5 8
    close(weights, [[0.2, 0.2, 0, 0.2, 0.2, 0, 0.2, 0, 0], [0, 0, 0.25, 0, 0, 0.25, 0, 0.25, 0.25]])
    assert kept.tolist() == [3, 5]  # centres (row 0.8, column 0.4) and (row 5/4, column 7/4)
    kept, weights = spatial_pooling(*grid((2, 2), (2, 2), (2, 2)), 2)  # fewer tokens than views
    assert kept.tolist() == [0, 4]
    close(weights, [[0.25] * 4 + [0] * 8, [0] * 4 + [0.25] * 4 + [0] * 4])


def test_cells_are_compact():
    """Every token once, sizes within one of each other, and no cell much wider than its size asks for."""
    places = grid((24, 24))
    for budget in range(2, 300, 7):
        _, weights = spatial_pooling(*places, budget)
        members = weights.dense() > 0
        sizes = members.sum(dim=1)
        assert torch.equal(members.sum(dim=0), torch.ones(576, dtype=torch.int64))
        assert int(sizes.max()) - int(sizes.min()) <= 1
        for cell in members:
            for place in places[1:]:
                extent = int(place[cell].max() - place[cell].min()) + 1
                assert extent <= 2 * math.sqrt(576 / budget) + 2


# --- crops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("grids", [[(4, 6)], [(5, 3), (8, 8), (1, 2)], [(24, 24)] * 5])
def test_spatial_crops(grids, side):
    places = grid(*grids)
    crop, crops, largest = spatial_crops(*places, grids, side)
    assert crops == len(grids) * side**2
    for token, (view, row, column) in enumerate(zip(*(place.tolist() for place in places), strict=True)):
        rows, columns = grids[view]
        down, right = math.floor(row * side / rows), math.floor(column * side / columns)
        assert crop[token] == view * side**2 + down * side + right
    sizes = torch.bincount(crop, minlength=crops)
    assert int(sizes.max()) <= largest
    if all(rows % side == columns % side == 0 for rows, columns in grids):
        assert int(sizes.max()) == largest


def test_spatial_crops_refuses():
    view, row, column = grid((3, 3))
    with pytest.raises(ValueError, match="side must be >= 1"):
        spatial_crops(view, row, column, [(3, 3)], 0)
    with pytest.raises(TypeError, match="row must be int64"):
        spatial_crops(view, row.float(), column, [(3, 3)], 2)


# --- what all promise ---------------------------------------------------------------------------------------

PLACES = grid((3, 4))
KEPT = torch.tensor([2, 5, 7])


def test_weights_sum_to_one_and_hold_the_kept_token():
    keys, saliency = gaussian(12, 0, torch.float32)
    for kept, weights in (
        dominant_and_contextual(saliency, keys, 7, 0.5),
        (KEPT, outliers_with_neighbours(saliency, keys, KEPT)),
        spatial_pooling(*PLACES, 5),
    ):
        weights = weights.dense()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(kept)))
        assert bool((weights >= 0).all()) and bool((weights.gather(1, kept.unsqueeze(1)) > 0).all())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s, k: dominant_and_contextual(s, k, 0), "budget"),
        (lambda s, k: dominant_and_contextual(s, k, 3, 1.0), "contextual must be in"),
        (lambda s, k: dominant_and_contextual(s, k, 3, math.nan), "contextual must be in"),
        (lambda s, k: dominant_and_contextual(s[1:], k, 3), "one value for each of the 12"),
        (lambda s, k: dominant_and_contextual(s * math.nan, k, 3), "NaN or infinity in saliency"),
        (lambda s, k: dominant_and_contextual(s, k / 0, 3), "NaN or infinity in keys"),
        (lambda s, k: dominant_and_contextual(s, k[0], 3), r"keys must be \(N, D\)"),
        (lambda s, k: outliers_with_neighbours(s, k, KEPT, -1), "neighbours must be >= 0"),
        (lambda s, k: outliers_with_neighbours(-s, k, KEPT), "saliency must not be negative"),
        (lambda s, k: outliers_with_neighbours(s / 0, k, KEPT), "NaN or infinity in saliency"),
        (lambda s, k: outliers_with_neighbours(s, k * math.inf, KEPT), "NaN or infinity in keys"),
        (lambda s, k: salient_and_spread(s, *PLACES, 3, 1.1), "salient must be in"),
        (lambda s, k: salient_and_spread(s, *PLACES, 0), "budget"),
        (lambda s, k: salient_and_spread(s[1:], *PLACES, 3), "one value for each of the 12"),
        (lambda s, k: salient_and_spread(s / 0, *PLACES, 3), "NaN or infinity in saliency"),
        (lambda s, k: spatial_pooling(*PLACES, 0), "budget"),
        (lambda s, k: spatial_pooling(*(place.expand(2, -1) for place in PLACES), 3), "one image's"),
        (lambda s, k: spatial_pooling(PLACES[0][1:], *PLACES[1:], 3), "one shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    keys, saliency = gaussian(12, 0, torch.float32)
    with pytest.raises(ValueError, match=message):
        call(saliency, keys)


def test_what_is_of_the_wrong_type_is_refused():
    keys, saliency = gaussian(12, 0, torch.float32)
    with pytest.raises(TypeError, match="keys must be of a floating dtype"):
        dominant_and_contextual(saliency, keys.long(), 3)
    with pytest.raises(TypeError, match="column must be int64"):
        spatial_pooling(PLACES[0], PLACES[1], PLACES[2].int(), 3)
    with pytest.raises(TypeError, match="budget"):
        spatial_pooling(*PLACES, 2.0)


def test_autocast_changes_nothing():
    keys, saliency = gaussian(12, 0, torch.float32)

    def merges():
        return [dominant_and_contextual(saliency, keys, 7, 0.5)[1], outliers_with_neighbours(saliency, keys, KEPT, 3)]

    expected = merges()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = merges()
    assert all(torch.equal(one.dense(), other.dense()) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("block", [1, 7, 40])
def test_blocks_change_nothing(monkeypatch, block):
    """Tables of one row, and of rows that do not divide what there is."""
    monkeypatch.setattr("foveate.functional.merging._BLOCK", block * 16)
    for make in (gaussian, signs, flat):
        keys, saliency = make(40, 0, torch.float32)
        expected, rows = visionzip(saliency.double().tolist(), keys, 20, 0.5)
        kept, weights = dominant_and_contextual(saliency, keys, 20, 0.5)
        assert kept.tolist() == expected
        close(weights, rows)
        centres = top_k(saliency, 11)
        merge = outliers_with_neighbours(saliency, keys, centres, 6)
        close(merge, prumerge(saliency.double().tolist(), keys, centres.tolist(), 6))


# --- on a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_merges_as_the_cpu_and_without_a_sync():
    keys, saliency = torch.randn(2880, 64, generator=seeded(0)), torch.rand(2880, generator=seeded(1))
    places = grid(*[(24, 24)] * 5)

    def merged(saliency, keys, places):
        dominant, contextual = dominant_and_contextual(saliency, keys, 288)
        cells, means = spatial_pooling(*places, 288)
        neighbours = outliers_with_neighbours(saliency, keys, top_k(saliency, 288))
        spread = salient_and_spread(saliency, *places, 288)
        return [dominant, spread, cells], [contextual, neighbours, means]

    expected = merged(saliency, keys, places)
    there = saliency.cuda(), keys.cuda(), [place.cuda() for place in places]
    merged(*there)  # libraries are loaded on the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = merged(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other.cpu()) for one, other in zip(expected[0], result[0], strict=True))
    for one, other in zip(expected[1], result[1], strict=True):
        torch.testing.assert_close(one.dense(), other.dense().cpu(), atol=1e-6, rtol=1e-5)
