"""The pure functions against literal references; what they promise on ties, dtypes, batches and bad input."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.functional import (
    adafv,
    adafv_released,
    adafv_split,
    fixed_mix,
    require_finite,
    text_to_image_attention,
    top_k,
    uniform_grid,
)

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *HALVES]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def check_kept(kept, tokens, budget):
    assert kept.dtype == torch.int64 and kept.shape[-1] == min(tokens, budget)
    assert bool((kept.diff(dim=-1) > 0).all()), "ascending and distinct"
    assert int(kept.min()) >= 0 and int(kept.max()) < tokens


# --- adafv against brute force ----------------------------------------------------------------------------


def ranking(scores):
    return sorted(range(len(scores)), key=lambda token: (-scores[token], token))


def best_split(saliency, text, budget, min_share):
    """METHOD as a search over every (k_s, k_t), with sets and exact fractions."""
    if len(saliency) <= budget:
        return set(range(len(saliency))), (len(saliency), len(saliency))
    by_saliency, by_text = ranking(saliency), ranking(text)
    floor = math.floor(min_share * budget)
    best = None
    for k_s in range(floor, len(saliency) + 1):
        for k_t in range(len(text), floor - 1, -1):
            kept = set(by_saliency[:k_s]) | set(by_text[:k_t])
            if len(kept) != budget:
                continue
            product = sum(Fraction(saliency[i]) for i in by_saliency[:k_s]) * sum(
                Fraction(text[i]) for i in by_text[:k_t]
            )
            if best is None or product > best[0]:
                best = product, kept, (k_s, k_t)
    assert best is not None, "every budget has a split"
    return best[1], best[2]


# Integers over 8 are exact in every dtype: ties are ties, and neither sums nor products are rounded.
eighths = st.integers(0, 24).map(lambda number: number / 8)
few_values = st.sampled_from([0.0, 0.125, 1.0])


@st.composite
def problems(draw):
    tokens = draw(st.integers(1, 12))
    values = draw(st.sampled_from([eighths, few_values]))
    saliency = draw(st.lists(values, min_size=tokens, max_size=tokens))
    kind = draw(st.sampled_from(["free", "same", "reversed"]))
    text = {
        "free": lambda: draw(st.lists(values, min_size=tokens, max_size=tokens)),
        "same": lambda: list(saliency),
        "reversed": lambda: [3.0 - value for value in saliency],
    }[kind]()
    budget = draw(st.integers(1, tokens + 1))
    min_share = draw(st.sampled_from([0.25, 0.25, 0.0, 0.5, 0.1]))
    return saliency, text, budget, min_share


@settings(max_examples=3000, deadline=None, derandomize=True, database=None)
@given(problems(), st.sampled_from(DTYPES))
def test_adafv_is_the_brute_force_optimum(problem, dtype):
    saliency, text, budget, min_share = problem
    kept, k_s, k_t = adafv_split(
        torch.tensor(saliency, dtype=dtype), torch.tensor(text, dtype=dtype), budget, min_share
    )
    check_kept(kept, len(saliency), budget)
    expected, shares = best_split(saliency, text, budget, min_share)
    assert set(kept.tolist()) == expected
    assert (int(k_s), int(k_t)) == shares


def test_adafv_is_the_brute_force_optimum_on_every_small_problem():
    """Not a sample: all pairs of orders of four tokens of distinct weight, all budgets."""
    weights = [4.0, 2.0, 1.5, 0.25]
    for order, budget in itertools.product(itertools.permutations(range(4)), range(1, 5)):
        text = [weights[rank] for rank in order]
        kept, k_s, k_t = adafv_split(torch.tensor(weights), torch.tensor(text), budget)
        assert (set(kept.tolist()), (int(k_s), int(k_t))) == best_split(weights, text, budget, 0.25)


@pytest.mark.parametrize("budget", [1, 7, 29, 60, 119])
def test_adafv_is_the_optimum_on_realistic_scores(budget):
    for seed in range(4):
        saliency = torch.softmax(torch.randn(120, generator=seeded(seed)), 0)
        text = torch.softmax(8 * torch.randn(120, generator=seeded(seed + 100)), 0)
        kept, k_s, k_t = adafv_split(saliency, text, budget)
        # Only k_t = the largest with that union can win, so the reference needs not try all of N x N.
        by_saliency, by_text = ranking(saliency.tolist()), ranking(text.tolist())
        floor, best = budget // 4, (-1.0, 0, 0)
        for s in range(floor, budget + 1):
            union, t = set(by_saliency[:s]), 0
            while t < 120 and len(union | {by_text[t]}) <= budget:
                union.add(by_text[t])
                t += 1
            mass = math.fsum(saliency[by_saliency[:s]].tolist()) * math.fsum(text[by_text[:t]].tolist())
            if t >= floor and mass > best[0] * (1 + 1e-12):
                best = mass, s, t
        assert (int(k_s), int(k_t)) == best[1:]
        assert set(kept.tolist()) == set(by_saliency[: best[1]]) | set(by_text[: best[2]])


def test_blocks_of_rows_change_nothing(monkeypatch):
    saliency, text = torch.rand(300, generator=seeded(0)), torch.rand(300, generator=seeded(1))
    whole = adafv_split(saliency, text, 90)
    monkeypatch.setattr("foveate.functional.mixture._BLOCK", 400)  # four rows at a time
    for one, other in zip(whole, adafv_split(saliency, text, 90), strict=True):
        assert torch.equal(one, other)


def test_adafv_shares_follow_the_masses():
    """A text that points at a few tokens needs few; two sides alike share evenly."""
    saliency = torch.linspace(2, 1, 400)
    pointed = torch.linspace(1e-6, 2e-6, 400)
    pointed[-20:] = 1.0
    _, k_s, k_t = adafv_split(saliency, pointed, 100)
    assert (int(k_s), int(k_t)) == (75, 25)  # the 20 and the floor
    _, k_s, k_t = adafv_split(saliency, torch.linspace(1, 2, 400), 100)
    assert (int(k_s), int(k_t)) == (50, 50)


def test_floors_hold_against_any_mass():
    saliency, text = torch.full((64,), 1e-8), torch.ones(64)
    saliency[0] = 1e4
    for min_share, floor in [(0.25, 5), (0.5, 10), (0.1, 2), (0.49, 9)]:
        kept, k_s, k_t = adafv_split(saliency, text, 20, min_share)
        check_kept(kept, 64, 20)
        assert int(k_s) >= floor and int(k_t) >= floor


def test_overlapping_tops_still_fill_the_budget():
    score = torch.rand(50, generator=seeded(3))
    kept, k_s, k_t = adafv_split(score, score, 10)
    assert torch.equal(kept, top_k(score, 10)) and (int(k_s), int(k_t)) == (10, 10)


@pytest.mark.parametrize("tokens, budget", [(1, 1), (5, 5), (5, 9)])
def test_a_budget_that_covers_all_keeps_all(tokens, budget):
    saliency, text = torch.rand(2, tokens), torch.rand(2, tokens)
    for kept in (adafv(saliency, text, budget), fixed_mix(saliency, text, budget), top_k(saliency, budget)):
        assert torch.equal(kept, torch.arange(tokens).expand(2, -1))
    _, k_s, k_t = adafv_split(saliency, text, budget)
    assert k_s.tolist() == k_t.tolist() == [tokens, tokens]


def test_budget_of_one_goes_to_the_text():
    saliency, text = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([0.1, 0.2, 0.7])
    assert adafv(saliency, text, 1).tolist() == [2]
    assert adafv(torch.tensor([0.9, 0.1]), torch.tensor([0.9, 0.1]), 1).tolist() == [0]


def test_no_mass_at_all_is_no_failure():
    nothing = torch.zeros(30)
    check_kept(adafv(nothing, nothing, 7), 30, 7)
    check_kept(adafv(nothing, torch.rand(30), 7), 30, 7)


@pytest.mark.parametrize("choose", [adafv, fixed_mix])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_chooses_as_its_upcast(choose, dtype):
    for seed in range(20):
        saliency = torch.rand(200, generator=seeded(seed)).to(dtype)
        text = torch.rand(200, generator=seeded(seed + 50)).pow(8).to(dtype)
        expected = choose(saliency.float(), text.float(), 37)
        assert torch.equal(choose(saliency, text, 37), expected)
        assert torch.equal(choose(saliency.double(), text.double(), 37), expected)


@pytest.mark.parametrize("choose", [adafv, fixed_mix])
@pytest.mark.parametrize("budget", [1, 2, 13, 63])
def test_batched_equals_single(choose, budget):
    saliency = torch.rand(2, 3, 64, generator=seeded(0))
    text = torch.rand(2, 3, 64, generator=seeded(1)).pow(6)
    text[0, 0] = text[0, 0].round(decimals=1)
    kept = choose(saliency, text, budget)
    assert kept.shape == (2, 3, budget)
    for image in itertools.product(range(2), range(3)):
        assert torch.equal(kept[image], choose(saliency[image], text[image], budget))
    split = adafv_split(saliency, text, budget)
    assert split[1].shape == split[2].shape == (2, 3)


def test_inputs_are_left_alone():
    saliency, text = torch.rand(40), torch.rand(40)
    before = saliency.clone(), text.clone()
    adafv(saliency, text, 9), fixed_mix(saliency, text, 9), top_k(saliency, 9)
    assert torch.equal(saliency, before[0]) and torch.equal(text, before[1])


# --- text-to-image attention ------------------------------------------------------------------------------


def test_text_to_image_is_its_formula():
    text, visual = torch.randn(7, 16, generator=seeded(0)), torch.randn(50, 16, generator=seeded(1))
    cosine = torch.nn.functional.cosine_similarity(text.double()[:, None], visual.double()[None], dim=-1)
    expected = torch.softmax(100 * cosine, dim=-1).amax(0)
    score = text_to_image_attention(text, visual)
    assert score.dtype == torch.float32 and score.shape == (50,)
    torch.testing.assert_close(score.double(), expected, rtol=1e-4, atol=0)
    warm = torch.softmax(2 * cosine, dim=-1).amax(0)
    torch.testing.assert_close(text_to_image_attention(text, visual, 2.0).double(), warm, rtol=1e-5, atol=0)


def test_a_long_text_is_scored_in_blocks():
    text, visual = torch.randn(2100, 8, generator=seeded(3)), torch.randn(30, 8, generator=seeded(4))
    for mask in (None, torch.arange(2100) % 3 > 0):
        found = text_to_image_attention(text, visual, text_mask=mask)
        rows = text if mask is None else text[mask]
        cosine = torch.nn.functional.normalize(rows, dim=-1) @ torch.nn.functional.normalize(visual, dim=-1).T
        torch.testing.assert_close(found, (100 * cosine).softmax(-1).amax(0))


@pytest.mark.parametrize("dtype", HALVES)
def test_text_to_image_is_computed_in_float32(dtype):
    text = torch.randn(7, 16, generator=seeded(0)).to(dtype)
    visual = (50 * torch.randn(30, 16, generator=seeded(1))).to(dtype)
    expected = text_to_image_attention(text.float(), visual.float())
    assert torch.equal(text_to_image_attention(text, visual), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(text_to_image_attention(text, visual), expected)


def test_order_of_the_text_does_not_matter():
    text, visual = torch.randn(12, 32, generator=seeded(0)), torch.randn(200, 32, generator=seeded(1))
    saliency = torch.rand(200, generator=seeded(2))
    score = text_to_image_attention(text, visual)
    for seed in range(10):
        shuffled = text_to_image_attention(text[torch.randperm(12, generator=seeded(seed))], visual)
        torch.testing.assert_close(shuffled, score, rtol=1e-4, atol=0)
        assert torch.equal(adafv(saliency, shuffled, 20), adafv(saliency, score, 20))


def test_text_batches_and_padding():
    text, visual = torch.randn(3, 6, 8, generator=seeded(0)), torch.randn(3, 40, 8, generator=seeded(1))
    lengths = torch.tensor([6, 4, 1])
    mask = torch.arange(6) < lengths[:, None]
    padded = text.masked_fill(~mask[..., None], math.nan)  # whatever stands in the padding is not read
    score = text_to_image_attention(padded, visual, text_mask=mask)
    for image, length in enumerate(lengths.tolist()):
        alone = text_to_image_attention(text[image, :length], visual[image])
        torch.testing.assert_close(score[image], alone, rtol=1e-4, atol=0)
    everything = text_to_image_attention(text, visual, text_mask=torch.ones(3, 6, dtype=torch.bool))
    assert torch.equal(everything, text_to_image_attention(text, visual))
    # Many questions on one image, one question on many.
    assert text_to_image_attention(text, visual[0]).shape == (3, 40)
    assert text_to_image_attention(text[0], visual, text_mask=mask[1]).shape == (3, 40)


def test_zero_vectors_point_nowhere():
    score = text_to_image_attention(torch.zeros(2, 4), torch.randn(10, 4))
    torch.testing.assert_close(score, torch.full((10,), 0.1))


@pytest.mark.parametrize("side", ["text", "visual"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_text_to_image_refuses_what_is_not_finite(side, value):
    tensors = {"text": torch.randn(3, 4), "visual": torch.randn(9, 4)}
    tensors[side][1, 2] = value
    with pytest.raises(ValueError, match=f"NaN or infinity in {side}"):
        text_to_image_attention(**tensors)


@pytest.mark.parametrize(
    "text, visual, options, error, message",
    [
        ((3, 4), (9, 5), {}, ValueError, r"share D, got \(3, 4\) and \(9, 5\)"),
        ((4,), (9, 4), {}, ValueError, "share D"),
        ((0, 4), (9, 4), {}, ValueError, "need text and visual tokens"),
        ((3, 4), (0, 4), {}, ValueError, "need text and visual tokens"),
        ((2, 3, 4), (3, 9, 4), {}, ValueError, "batch dimensions"),
        ((3, 4), (9, 4), {"scale": 0.0}, ValueError, "scale"),
        ((3, 4), (9, 4), {"scale": math.nan}, ValueError, "scale"),
        ((3, 4), (9, 4), {"text_mask": torch.ones(3)}, TypeError, "bool"),
        ((3, 4), (9, 4), {"text_mask": torch.ones(4, dtype=torch.bool)}, ValueError, "does not fit"),
        ((3, 4), (9, 4), {"text_mask": torch.zeros(3, dtype=torch.bool)}, ValueError, "leaves no text"),
    ],
)
def test_text_to_image_refuses(text, visual, options, error, message):
    with pytest.raises(error, match=message):
        text_to_image_attention(torch.ones(text), torch.ones(visual), **options)


def test_text_to_image_refuses_integers():
    with pytest.raises(TypeError, match=r"visual must be of a floating dtype, got torch\.int64"):
        text_to_image_attention(torch.ones(3, 4), torch.ones(9, 4, dtype=torch.int64))


# --- bad scores and budgets -------------------------------------------------------------------------------

CHOICES = {
    "adafv": adafv,
    "adafv_split": adafv_split,
    "fixed_mix": fixed_mix,
    "top_k": lambda saliency, text, budget: top_k(saliency, budget),
}
both = pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)


@both
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(choose, value):
    broken = torch.rand(10)
    broken[4] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        choose(broken, torch.rand(10), 3)
    if choose is not CHOICES["top_k"]:
        with pytest.raises(ValueError, match="NaN or infinity in text_to_image"):
            choose(torch.rand(10), broken, 3)


BAD_BUDGETS = [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), (math.nan, TypeError)]


@both
@pytest.mark.parametrize("budget, error", BAD_BUDGETS)
def test_bad_budgets_are_refused(choose, budget, error):
    with pytest.raises(error, match="budget"):
        choose(torch.rand(10), torch.rand(10), budget)


@both
def test_scores_that_are_no_scores_are_refused(choose):
    with pytest.raises(TypeError, match="floating"):
        choose(torch.arange(10), torch.arange(10), 3)
    with pytest.raises(ValueError, match="N >= 1"):
        choose(torch.empty(0), torch.empty(0), 3)
    with pytest.raises(ValueError, match="N >= 1"):
        choose(torch.tensor(1.0), torch.tensor(1.0), 3)


@pytest.mark.parametrize("choose", [adafv, adafv_split, fixed_mix])
def test_scores_of_two_shapes_are_refused(choose):
    with pytest.raises(ValueError, match=r"one shape, got \(10,\) and \(11,\)"):
        choose(torch.rand(10), torch.rand(11), 3)


@pytest.mark.parametrize("min_share", [-0.1, 0.51, 1, math.nan])
def test_bad_shares_are_refused(min_share):
    with pytest.raises(ValueError, match="min_share"):
        adafv(torch.rand(10), torch.rand(10), 3, min_share)


def test_negative_scores_have_no_mass():
    with pytest.raises(ValueError, match="saliency must not be negative"):
        adafv(torch.randn(50), torch.rand(50), 3)


def test_released_refuses_as_the_others_do():
    visual, text = torch.randn(16, 4), torch.randn(3, 4)
    with pytest.raises(ValueError, match="NaN or infinity in cls_attention"):
        adafv_released(torch.full((2, 8), math.nan), visual, text, 8)
    with pytest.raises(TypeError, match="budget"):
        adafv_released(torch.rand(2, 8), visual, text, 0.5)


def test_require_finite_names_the_broken():
    require_finite()
    require_finite(one=torch.ones(2), two=torch.ones(3, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"NaN or infinity in two, three:"):
        require_finite(one=torch.ones(1), two=torch.tensor([math.nan]), three=torch.tensor([1.0, -math.inf]))


# --- the controls -----------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(eighths, min_size=1, max_size=20), st.integers(1, 22))
def test_top_k_is_the_head_of_the_ranking(scores, budget):
    kept = top_k(torch.tensor(scores), budget)
    assert kept.tolist() == sorted(ranking(scores)[:budget])


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(problems())
def test_fixed_mix_takes_half_and_half(problem):
    saliency, text, budget, _ = problem
    kept = fixed_mix(torch.tensor(saliency), torch.tensor(text), budget)
    expected = ranking(saliency)[: math.ceil(budget / 2)]
    expected += [token for token in ranking(text) if token not in expected][: budget // 2]
    assert kept.tolist() == (sorted(expected) if budget < len(saliency) else list(range(len(saliency))))


def grid(*sizes):
    """view, row, column of full grids, view after view."""
    cells = [
        (view, row, column)
        for view, (rows, columns) in enumerate(sizes)
        for row, column in itertools.product(range(rows), range(columns))
    ]
    return tuple(torch.tensor(part) for part in zip(*cells, strict=True))


def holes(kept, row, column):
    """Mean distance of all cells to the nearest kept one."""
    return torch.hypot((row[:, None] - row[kept]).double(), (column[:, None] - column[kept]).double()).amin(1).mean()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(1, 120),
    st.integers(0, 99),
)
def test_uniform_grid_keeps_the_budget_in_proportion(sizes, budget, seed):
    view, row, column = grid(*sizes)
    kept = uniform_grid(view, row, column, budget)
    check_kept(kept, len(view), budget)
    if budget < len(view):
        for number, (rows, columns) in enumerate(sizes):
            part = int((view[kept] == number).sum())
            assert abs(part - budget * rows * columns / len(view)) <= max(1, len(sizes) / 2)
    # Tokens need not stand in the order of the grid.
    order = torch.randperm(len(view), generator=seeded(seed))
    shuffled = uniform_grid(view[order], row[order], column[order], budget)
    check_kept(shuffled, len(view), budget)


@pytest.mark.parametrize("size", [(24, 24), (18, 24), (24, 13)])
def test_uniform_grid_leaves_smaller_holes_than_a_stride(size):
    view, row, column = grid(size)
    tokens, lattice, stride = len(view), [], []
    for budget in range(2, tokens // 2, 5):
        kept = uniform_grid(view, row, column, budget)
        steps = (torch.arange(budget) * tokens + tokens // 2) // budget
        lattice.append(holes(kept, row, column))
        stride.append(holes(steps, row, column))
        assert lattice[-1] <= 1.15 * stride[-1]
    assert sum(lattice) < 0.95 * sum(stride)


def test_uniform_grid_on_odd_grids():
    view, row, column = grid((5, 7))
    assert uniform_grid(view, row, column, 1).tolist() == [2 * 7 + 3]  # the centre
    inside = (row > 0) & (column > 1)  # an unpadded view: its grid starts elsewhere
    moved = uniform_grid(view[inside], row[inside], column[inside], 6)
    assert torch.equal(moved, uniform_grid(view[inside], row[inside] - 1, column[inside] - 2, 6))
    batch = uniform_grid(view.expand(2, -1), row.expand(2, -1), column.expand(2, -1), 6)
    assert torch.equal(batch, uniform_grid(view, row, column, 6).expand(2, -1))


def test_uniform_grid_refuses():
    view, row, column = grid((3, 3))
    with pytest.raises(TypeError, match="row must be int64"):
        uniform_grid(view, row.float(), column, 2)
    with pytest.raises(ValueError, match="one shape"):
        uniform_grid(view, row[1:], column, 2)
    with pytest.raises(ValueError, match="budget"):
        uniform_grid(view, row, column, 0)


# --- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_chooses_as_the_cpu_and_without_a_sync():
    visual, text = torch.randn(2880, 64, generator=seeded(0)), torch.randn(12, 64, generator=seeded(1))
    cls_attention = torch.softmax(torch.randn(5, 576, generator=seeded(2)), -1)
    mask, places = torch.arange(12) < 9, grid(*[(24, 24)] * 5)
    score = text_to_image_attention(text, visual, text_mask=mask)

    def choices(cls_attention, score, visual, text, mask, places):
        saliency = cls_attention.flatten()
        text_to_image_attention(text, visual, text_mask=mask)
        return [
            *adafv_split(saliency, score, 288),
            *adafv_split(saliency.expand(3, -1), score.expand(3, -1), 288),
            adafv(saliency, score, 5000),
            adafv_released(cls_attention, visual, text, 288),
            fixed_mix(saliency, score, 288),
            top_k(saliency, 288),
            uniform_grid(*places, 288),
        ]

    here = (cls_attention, score, visual, text, mask, places)
    there = (*(tensor.cuda() for tensor in here[:-1]), tuple(place.cuda() for place in places))
    expected = choices(*here)
    choices(*there)  # libraries are loaded on the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = choices(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(expected, result, strict=True):
        assert torch.equal(one, other.cpu())
