"""EADP against its formulas, written out with loops in float64: the score, the smoothing and the cover."""

import math

import pytest
import torch

from foveate.functional import facility, focused_relevance, shifted_cosine_cover, smooth_on_grid
from foveate.pruners import EADP
from foveate.tokens import Geometry, TextTokens, VisualTokens

every = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def cosine(one, other):
    length = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


def softmax(values):
    most = max(values)
    powers = [math.exp(value - most) for value in values]
    return [power / sum(powers) for power in powers]


def score(text, visual, share, sign):
    """Half the mean cosine, half that weighted by the entropies of the words that stay; min-max scaled."""
    words, tokens = text.double().tolist(), visual.double().tolist()
    cosines = [[sign * cosine(word, token) for token in tokens] for word in words]
    entropy = []
    for row in cosines:
        spread = softmax([100 * value for value in row])
        entropy.append(-sum(p * math.log(p) for p in spread if p > 0))
    number = max(1, math.floor(share * len(words) + 1e-9))
    stay = sorted(range(len(words)), key=lambda j: (entropy[j], j))[:number]
    weight = dict(zip(stay, softmax([-entropy[j] / 0.01 for j in stay]), strict=True))
    raw = []
    for i in range(len(tokens)):
        whole = sum(row[i] for row in cosines) / len(words)
        raw.append(0.5 * whole + 0.5 * sum(weight[j] * cosines[j][i] for j in stay))
    low, high = min(raw), max(raw)
    return [(value - low) / (high - low) if high > low else 1.0 for value in raw]


def smooth(values, cells, sigma=1.0):
    """Each cell's mean with its neighbours that exist, by the Gaussian."""
    found = []
    for view, row, column in cells:
        above = below = 0.0
        for value, (other, r, c) in zip(values, cells, strict=True):
            if other == view and abs(r - row) <= 1 and abs(c - column) <= 1:
                weight = math.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * sigma * sigma))
                above, below = above + weight * value, below + weight
        found.append(above / below)
    return found


def cover(visual, weight, budget):
    """Greedy facility location with (1 + cos) / 2."""
    tokens = visual.double().tolist()
    like = [[(1 + cosine(one, other)) / 2 for other in tokens] for one in tokens]
    chosen, best = [], [0.0] * len(tokens)
    while len(chosen) < budget:
        taken = None
        for j in range(len(tokens)):
            if j not in chosen:
                gain = sum(w * max(0.0, like[i][j] - best[i]) for i, w in enumerate(weight))
                if taken is None or gain > taken[0] * (1 + 1e-12):
                    taken = gain, j
        chosen.append(taken[1])
        best = [max(value, like[i][taken[1]]) for i, value in enumerate(best)]
    return chosen


def places(*grids, without=()):
    """The cells of grids one after the other, but for some."""
    cells = [(v, r, c) for v, (rows, columns) in enumerate(grids) for r in range(rows) for c in range(columns)]
    cells = [cell for number, cell in enumerate(cells) if number not in without]
    return cells, [torch.tensor(part) for part in zip(*cells, strict=True)]


# --- the score ----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("share", [0.5, 0.2, 1.0, 0.01])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("words, tokens", [(1, 2), (2, 30), (7, 30), (20, 50)])
def test_focused_relevance(dtype, share, sign, words, tokens):
    for seed in range(3):
        text = torch.randn(words, 24, generator=seeded(seed)).to(dtype)
        visual = torch.randn(tokens, 24, generator=seeded(seed + 9)).to(dtype)
        visual[tokens // 2] = 0
        found = focused_relevance(text, visual, share=share, sign=sign)
        assert found.dtype == torch.float32
        # 1e-7 of a cosine is 1e-5 of a logit, and of an entropy, and 1e-3 of a word's weight.
        torch.testing.assert_close(found, torch.tensor(score(text, visual, share, sign)), atol=5e-4, rtol=0)


def test_words_of_equal_entropy():
    """Words again and again: which of equal ones stays makes no difference; a whole number of them is not missed."""
    visual = torch.randn(30, 24, generator=seeded(0))
    one = torch.randn(4, 24, generator=seeded(1))
    for text in (one[[0, 0, 0, 0]], one[[0, 1, 0, 1, 0, 1]], one.repeat(25, 1)):
        for share in (0.5, 0.29):  # 0.29 * 100 is 28.999999999999996
            found = focused_relevance(text, visual, share=share)
            torch.testing.assert_close(found, torch.tensor(score(text, visual, share, 1)), atol=5e-4, rtol=0)


def test_relevance_by_hand():
    """Of two words one points at token 0 alone, the other nowhere: that one does not stay."""
    visual = torch.eye(4)
    text = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    third = 1 / math.sqrt(3)
    # token 0: 1/4 + 1/2; the others: third / 4
    raw = torch.tensor([0.75, third / 4, third / 4, third / 4])
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    torch.testing.assert_close(focused_relevance(text, visual), expected)
    assert focused_relevance(text, torch.ones(3, 4)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("block", [1, 3, 7])
def test_a_long_text_goes_through_in_blocks(block, monkeypatch):
    text, visual = torch.randn(20, 24, generator=seeded(0)), torch.randn(30, 24, generator=seeded(1))
    mask = torch.rand(20, generator=seeded(2)) < 0.5
    whole = [focused_relevance(text, visual), focused_relevance(text, visual, text_mask=mask)]
    monkeypatch.setattr("foveate.functional.entropy._TEXT_BLOCK", block)
    torch.testing.assert_close(focused_relevance(text, visual), whole[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(focused_relevance(text, visual, text_mask=mask), whole[1], atol=1e-4, rtol=0)


def test_what_the_mask_leaves_out_is_not_read():
    text, visual = torch.randn(9, 24, generator=seeded(0)), torch.randn(30, 24, generator=seeded(1))
    mask = torch.tensor([True, False, True, True, False, True, False, True, True])
    for instead in (math.nan, 0.0, 1e6):
        text[1] = instead
        found = focused_relevance(text, visual, text_mask=mask)
        torch.testing.assert_close(found, torch.tensor(score(text[mask], visual, 0.5, 1)), atol=5e-4, rtol=0)


# --- the smoothing ------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("sigma", [1.0, 0.4])
@pytest.mark.parametrize(
    "grids, without",
    [
        ([(1, 1)], ()),
        ([(1, 5)], ()),
        ([(4, 6)], ()),
        ([(4, 6), (5, 3), (1, 2)], ()),
        ([(6, 6)] * 3, (0, 7, 8, 40, 107)),
    ],
)
def test_smooth_on_grid(dtype, sigma, grids, without):
    """Views of unequal size, one of them incomplete, in any order."""
    cells, where = places(*grids, without=without)
    values = torch.rand(len(cells), generator=seeded(3)).to(dtype)
    expected = torch.tensor(smooth(values.double().tolist(), cells, sigma), dtype=torch.float32)
    found = smooth_on_grid(values, *where, grids, sigma)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    order = torch.randperm(len(cells), generator=seeded(4))
    shuffled = smooth_on_grid(values[order], *(part[order] for part in where), grids, sigma)
    assert torch.equal(shuffled, found[order])


def test_smoothing_by_hand():
    """A single 1 in the corner of 2 x 2, beside a view of its own; what is equal stays equal."""
    grids, e = [(2, 2), (1, 1)], math.exp(-0.5)
    _, where = places(*grids)
    found = smooth_on_grid(torch.tensor([1.0, 0, 0, 0, 7.0]), *where, grids)
    torch.testing.assert_close(found, torch.tensor([1, e, e, e * e, 7 * (1 + e) ** 2]) / (1 + e) ** 2)
    torch.testing.assert_close(smooth_on_grid(torch.full((5,), 0.3), *where, grids), torch.full((5,), 0.3))


# --- the whole ----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("side", [1024, 7])
@pytest.mark.parametrize("budget", [1, 2, 9, 32])
def test_shifted_cosine_cover(dtype, side, budget, monkeypatch):
    monkeypatch.setattr(facility, "_SIDE", side)
    for seed in range(3):
        visual = torch.randn(33, 10, generator=seeded(seed)).to(dtype)
        visual[5] = 0
        weight = torch.rand(33, generator=seeded(seed + 1)) + 0.1
        order, covered = shifted_cosine_cover(visual, weight, budget)
        assert order.tolist() == cover(visual, weight.double().tolist(), budget)
        assert 0.5 < float(covered[0]) <= 1.0


def test_a_table_in_two_bytes_a_cell(monkeypatch):
    visual, weight = torch.randn(33, 10, generator=seeded(0)), torch.rand(33, generator=seeded(1)) + 0.1
    whole = shifted_cosine_cover(visual, weight, 9)[0]
    monkeypatch.setattr(facility, "_WHOLE", 1)
    assert torch.equal(shifted_cosine_cover(visual, weight, 9)[0], whole)


@pytest.mark.parametrize("options", [{}, {"share": 0.2, "power": 1.0, "sign": -1}, {"power": 2.0}])
@pytest.mark.parametrize("budget", [1, 5, 20, 37])
def test_eadp(options, budget):
    """From tokens and text to the choice."""
    grids = [(4, 5), (3, 6)]
    cells, where = places(*grids)
    boxes = torch.zeros(len(cells), 4)
    for seed in range(3):
        visual = torch.randn(len(cells), 24, generator=seeded(seed))
        text = torch.randn(6, 24, generator=seeded(seed + 9))
        shown = VisualTokens(visual, Geometry(*where, boxes, (70, 70), tuple(grids)))
        asked = TextTokens(text, torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool))
        selection = EADP(keep=budget, **options).select(shown, asked)
        relevance = score(text, visual, options.get("share", 0.5), options.get("sign", 1))
        weight = [value ** options.get("power", 10.0) for value in smooth(relevance, cells)]
        assert selection.indices.tolist() == sorted(cover(visual, weight, budget))
        torch.testing.assert_close(selection.scores["relevance"], torch.tensor(relevance), atol=5e-4, rtol=0)
        torch.testing.assert_close(selection.scores["weight"], torch.tensor(weight), atol=5e-4, rtol=0)


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_an_empty_picture(budget):
    """All tokens equal: relevance is 1 everywhere, and one token covers all."""
    _, where = places((2, 4))
    one = torch.randn(1, 24, generator=seeded(0)).expand(8, 24).contiguous()
    shown = VisualTokens(one, Geometry(*where, torch.zeros(8, 4), (70, 70), ((2, 4),)))
    text = TextTokens(torch.randn(3, 24, generator=seeded(1)), torch.ones(3) > 0, torch.zeros(3) > 0)
    selection = EADP(keep=budget).select(shown, text)
    assert len(set(selection.indices.tolist())) == budget


def test_autocast_changes_nothing():
    text, visual = torch.randn(5, 24, generator=seeded(0)), torch.randn(30, 24, generator=seeded(1))
    weight = focused_relevance(text, visual)
    expected = shifted_cosine_cover(visual, weight, 9)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(focused_relevance(text, visual), weight)
        assert torch.equal(shifted_cosine_cover(visual, weight, 9)[0], expected)


def given(**change):
    _, (view, row, column) = places((2, 3))
    whole = {"score": torch.rand(6), "view": view, "row": row, "column": column, "grids": [(2, 3)]}
    return {**whole, **change}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda v: focused_relevance(v, v, share=0.0), ValueError, r"share must be in \(0, 1\], got 0.0"),
        (lambda v: focused_relevance(v, v, share=1.1), ValueError, "share must be in"),
        (lambda v: focused_relevance(v, v, share=math.nan), ValueError, "share must be in"),
        (lambda v: focused_relevance(v, v, sign=0), ValueError, "sign must be 1 or -1"),
        (lambda v: focused_relevance(v[:, :2], v), ValueError, "share D"),
        (lambda v: focused_relevance(v.long(), v), TypeError, "text must be of a floating dtype"),
        (lambda v: focused_relevance(v * math.nan, v), ValueError, "NaN or infinity in text"),
        (lambda v: focused_relevance(v, v * math.nan), ValueError, "NaN or infinity in visual"),
        (lambda v: focused_relevance(v, v, text_mask=torch.zeros(6) > 0), ValueError, "leaves no text token"),
        (lambda v: focused_relevance(v, v, text_mask=torch.zeros(6)), TypeError, "text_mask must be bool"),
        (lambda v: smooth_on_grid(**given(sigma=0.0)), ValueError, "sigma must be positive"),
        (lambda v: smooth_on_grid(**given(grids=[])), ValueError, "grids not empty"),
        (lambda v: smooth_on_grid(**given(score=torch.rand(5))), ValueError, "one value for each of the 6 tokens"),
        (lambda v: smooth_on_grid(**given(score=torch.full((6,), math.nan))), ValueError, "NaN or infinity in score"),
        (lambda v: smooth_on_grid(**given(row=torch.zeros(6))), TypeError, "row must be int64"),
        (lambda v: shifted_cosine_cover(v, torch.ones(5), 2), ValueError, "one value for each of the 6 tokens"),
        (lambda v: shifted_cosine_cover(v, -torch.ones(6), 2), ValueError, "weight must not be negative"),
        (lambda v: shifted_cosine_cover(v, torch.ones(6), 0), ValueError, "budget=0 keeps no token"),
        (lambda v: shifted_cosine_cover(v * math.nan, torch.ones(6), 2), ValueError, "NaN or infinity in visual"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.rand(6, 4) + 1)
