"""Pruning inside the LLM: the pure functions against loops in float64 that follow the equations to the letter."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.functional import (
    attention_of_queries,
    density_peaks,
    keep_and_recycle,
    stage_budgets,
    text_raters,
)


def peaks_by_loops(points: Tensor, clusters: int) -> tuple[list[int], list[int]]:
    """Density peaks, with the logarithm of the density only where it is compared."""
    count, width = points.shape
    if clusters == count:
        return list(range(count)), list(range(count))
    distance = [[float((a - b).square().sum().sqrt()) / math.sqrt(width) for b in points] for a in points]
    density = []
    for n in range(count):
        nearest = sorted(distance[n][m] for m in range(count) if m != n)[:clusters]
        density.append(-sum(d * d for d in nearest) / len(nearest))
    peak = []
    for n in range(count):
        denser = [m for m in range(count) if density[m] > density[n] or (density[m] == density[n] and m < n)]
        delta = min((distance[n][m] for m in denser), default=max(map(max, distance)))
        peak.append(density[n] + (math.log(delta) if delta > 0 else -math.inf))
    centres = sorted(sorted(range(count), key=lambda n: (-peak[n], n))[:clusters])
    member = []
    for n in range(count):
        near = min(range(clusters), key=lambda c: (distance[n][centres[c]], c))
        member.append(centres.index(n) if n in centres else near)
    return centres, member


def recycle_by_loops(
    score: Tensor, hidden: Tensor, budget: int, recycled: float, clusters: float
) -> tuple[list[int], list[list[float]]]:
    """Kept tokens and, for each, how much of every token it is made of."""
    tokens = len(score)
    merged = min(math.ceil(clusters * recycled * (tokens - budget) - 1e-9), budget // 2)
    order = sorted(range(tokens), key=lambda n: (-float(score[n]), n))
    whole, rest = order[: budget - merged], order[budget - merged :]
    made = {n: [float(m == n) for m in range(tokens)] for n in whole}
    if merged:
        pool = sorted(rest[: max(merged, math.ceil(recycled * len(rest) - 1e-9))])
        centres, member = peaks_by_loops(hidden[pool], merged)
        for number, centre in enumerate(centres):
            group = [pool[n] for n in range(len(pool)) if member[n] == number]
            made[pool[centre]] = [1 / len(group) if n in group else 0.0 for n in range(tokens)]
    return sorted(made), [made[n] for n in sorted(made)]


def raters_by_loops(text: Tensor, visual: Tensor) -> list[bool]:
    """The mean over visual tokens of the softmax over text; not below its own mean."""
    relevance = [0.0] * len(text)
    for v in visual.tolist():
        products = [math.fsum(a * b for a, b in zip(v, t, strict=True)) for t in text.tolist()]
        top = max(products)
        parts = [math.exp(product - top) for product in products]
        for n, part in enumerate(parts):
            relevance[n] += part / math.fsum(parts) / len(visual)
    mean = math.fsum(relevance) / len(relevance)
    return [one >= mean for one in relevance]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_of_attention(heads: int, groups: int, dtype: torch.dtype) -> None:
    """Heads, queries and keys one by one."""
    query, key = random(0, heads, 3, 8).to(dtype), random(1, groups, 11, 8).to(dtype)
    allowed = torch.rand(3, 11, generator=torch.Generator().manual_seed(2)) < 0.6
    allowed[:, 4] = True
    rows = attention_of_queries(query, key, 0.3, allowed)
    expected = torch.zeros(3, 11, dtype=torch.float64)
    for head in range(heads):
        for r in range(3):
            places = allowed[r].nonzero()[:, 0].tolist()
            logits = [0.3 * float(query[head, r].double() @ key[head * groups // heads, n].double()) for n in places]
            parts = [math.exp(logit - max(logits)) for logit in logits]
            for n, part in zip(places, parts, strict=True):
                expected[r, n] += part / sum(parts) / heads
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(rows.double(), expected, atol=1e-12 if dtype == torch.float64 else 1e-6, rtol=0)
    assert not rows[~allowed].any()


def test_rows_of_attention_that_do_not_fit() -> None:
    query, key = torch.randn(4, 1, 8), torch.randn(3, 5, 8)
    with pytest.raises(ValueError, match="must fit"):
        attention_of_queries(query, key, 1.0, torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"allowed must be \(R, S\), \(1, 5\)"):
        attention_of_queries(query, key[:2], 1.0, torch.ones(5, dtype=torch.bool))


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 10_000))
def test_raters(words: int, patches: int, seed: int) -> None:
    text, visual = random(seed, words, 5), random(seed + 1, patches, 5)
    assert text_raters(text, visual).tolist() == raters_by_loops(text, visual)


def test_somebody_always_rates() -> None:
    """Rounding puts the mean of equal numbers above each of them, for some of these."""
    for words in range(1, 200):
        assert text_raters(torch.zeros(words, 6), random(words, 13, 6, dtype=torch.float32)).any()


def test_raters_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="must share D"):
        text_raters(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match="must share D"):
        text_raters(torch.randn(0, 3), torch.randn(2, 3))
    with pytest.raises(TypeError, match="floating"):
        text_raters(torch.ones(2, 3, dtype=torch.long), torch.randn(2, 3))
    with pytest.raises(ValueError, match="NaN or infinity in the relevance"):
        text_raters(torch.full((2, 3), math.nan), torch.randn(2, 3))


@given(st.integers(1, 14), st.data())
def test_density_peaks(count: int, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, count))
    points = random(data.draw(st.integers(0, 10_000)), count, 3) * data.draw(st.sampled_from([0.1, 1.0, 1000.0]))
    centres, member = density_peaks(points, clusters)
    assert (centres.tolist(), member.tolist()) == peaks_by_loops(points, clusters)


@pytest.mark.parametrize("block", [1, 30, 1000])
def test_density_peaks_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """One row of distances at a time, several, and all of them; with points that equal others."""
    monkeypatch.setattr("foveate.functional.in_llm._BLOCK", block)
    for seed in range(5):
        points = random(seed, 13, 3)
        points[7], points[9:11] = points[2], points[3]
        for clusters in (1, 4, 12):
            centres, member = density_peaks(points, clusters)
            assert (centres.tolist(), member.tolist()) == peaks_by_loops(points, clusters)


def test_density_peaks_find_the_groups_there_are() -> None:
    groups = torch.cat([random(n, 6, 4, dtype=torch.float32) * 0.1 + 10 * n for n in range(3)])
    shuffled = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    centres, member = density_peaks(groups[shuffled], 3)
    assert sorted((shuffled[centres] // 6).tolist()) == [0, 1, 2]
    assert torch.equal((shuffled[centres] // 6)[member], shuffled // 6)


def test_points_that_are_all_alike() -> None:
    centres, member = density_peaks(torch.ones(5, 3), 2)
    assert centres.tolist() == [0, 1] and member.tolist() == [0, 1, 0, 0, 0]


def test_clusters_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="3 points cannot form 4 clusters"):
        density_peaks(torch.randn(3, 2), 4)
    with pytest.raises(ValueError, match="keeps no token"):
        density_peaks(torch.randn(3, 2), 0)


PARTS = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])


@given(st.integers(1, 20), st.data(), PARTS, PARTS)
def test_recycling(tokens: int, data: st.DataObject, recycled: float, clusters: float) -> None:
    budget = data.draw(st.integers(1, tokens))
    seed = data.draw(st.integers(0, 10_000))
    score, hidden = random(seed, tokens).abs(), random(seed + 1, tokens, 4)
    if data.draw(st.booleans()):
        score = (score * 2).round()  # ties
    kept, merge, merged = keep_and_recycle(score, hidden, budget, recycled, clusters)
    weights = merge.dense()
    expected, parts = recycle_by_loops(score, hidden, budget, recycled, clusters)
    assert kept.tolist() == expected and len(kept) == budget and 0 <= merged <= budget // 2
    torch.testing.assert_close(weights, torch.tensor(parts), atol=1e-7, rtol=0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(budget))
    # no token is in two, and what is not merged is whole
    assert bool(((weights > 0).sum(dim=0) <= 1).all())
    assert int((weights == 1).any(dim=1).sum()) >= budget - merged


def test_recycling_in_numbers() -> None:
    """SparseVLM's first stage on LLaVA-1.5 at 64 tokens: 66 of 576, 153 of the dropped in 16 clusters."""
    _, weights, merged = keep_and_recycle(random(0, 576), random(1, 576, 8), 66)
    assert merged == 16
    assert int((weights.dense() > 0).sum()) == len(weights.tokens) == (66 - 16) + math.ceil(0.3 * (576 - 50))


def test_parts_that_are_none() -> None:
    for parts in ({"recycled": 1.1}, {"clusters": -0.1}, {"recycled": math.nan}):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            keep_and_recycle(torch.rand(4), torch.rand(4, 2), 2, **parts)
    with pytest.raises(ValueError, match="one value for each of the 4 tokens"):
        keep_and_recycle(torch.rand(3), torch.rand(4, 2), 2)


@given(st.integers(1, 600), st.lists(st.integers(1, 12), min_size=1, max_size=5), st.data())
def test_budgets_of_stages(tokens: int, widths: list[int], data: st.DataObject) -> None:
    """The mean is met as nearly as one share for all stages allows, and never exceeded."""
    budget = data.draw(st.integers(1, tokens))
    depth = sum(widths)
    last = stage_budgets(tokens, budget, widths, mean=False)
    assert last[0] == tokens and (last[-1] == budget or len(widths) == 1)
    assert all(a >= b >= 1 for a, b in pairwise(last))
    least = widths[0] * tokens + depth - widths[0]
    if budget < tokens and least > budget * depth:
        with pytest.raises(ValueError, match=f"a mean of {budget} tokens per layer cannot be had"):
            stage_budgets(tokens, budget, widths, mean=True)
        return
    counts = stage_budgets(tokens, budget, widths, mean=True)
    assert counts[0] == tokens and all(a >= b >= 1 for a, b in pairwise(counts))
    total = sum(width * count for width, count in zip(widths, counts, strict=True))
    assert total <= budget * depth
    if len(widths) == 2:  # FastV: one number to find, and one more would be too many
        assert total + widths[1] > budget * depth or counts[1] == tokens


@pytest.mark.parametrize("keep", [0.2, 0.3, 0.5, 0.8])
def test_one_share_for_all_stages(keep: float) -> None:
    """Against the root of sum(w_i lambda^i) = keep * depth, found by brute force."""
    tokens, widths = 100_000, [2, 4, 9, 17]
    counts = stage_budgets(tokens, round(keep * tokens), widths, mean=True)
    grid = [n / 100_000 for n in range(100_001)]
    share = min(grid, key=lambda s: abs(sum(w * s**n for n, w in enumerate(widths)) - keep * 32))
    assert [count / tokens for count in counts] == pytest.approx([share**n for n in range(4)], abs=1e-4)


def test_budgets_that_are_none() -> None:
    for tokens, budget, widths in ((0, 1, [2]), (4, 0, [2]), (4, 1, []), (4, 1, [2, 0])):
        with pytest.raises(ValueError, match="need tokens, a budget and layers"):
            stage_budgets(tokens, budget, widths, mean=True)
