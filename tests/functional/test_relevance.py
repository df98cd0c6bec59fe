"""Relevance to the text against its equation, written out with loops in float64."""

import math

import pytest
import torch

from foveate.functional import relevance_to_text

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every = pytest.mark.parametrize("dtype", DTYPES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def cosine(one, other):
    length = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


def relevance(text, features, words, sign):
    """Of every token the mean or the largest of its (negated) cosines to the words, min-max scaled."""
    raw = []
    for row in features.double().tolist():
        cosines = [sign * cosine(row, word) for word in text.double().tolist()]
        raw.append(max(cosines) if words == "max" else sum(cosines) / len(cosines))
    low, high = min(raw), max(raw)
    return torch.tensor([(value - low) / (high - low) if high > low else 1.0 for value in raw])


@every
@pytest.mark.parametrize("words", ["mean", "max"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("tokens, text_tokens", [(2, 1), (30, 5), (57, 40)])
def test_relevance(dtype, words, sign, tokens, text_tokens):
    for seed in range(3):
        features = torch.randn(tokens, 16, generator=seeded(seed)).to(dtype)
        features[tokens // 2] = 0  # a token without a direction
        text = torch.randn(text_tokens, 16, generator=seeded(seed + 9)).to(dtype)
        found = relevance_to_text(text, features, words=words, sign=sign)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, relevance(text, features, words, sign), atol=2e-5, rtol=0)


@pytest.mark.parametrize("words", ["mean", "max"])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_the_mask_leaves_out_is_not_read(words, sign):
    features, text = torch.randn(30, 16, generator=seeded(0)), torch.randn(5, 16, generator=seeded(1))
    mask = torch.tensor([True, False, True, True, False])
    expected = relevance(text[mask], features, words, sign)
    for instead in (math.nan, 1e6, 0.0):
        text[1] = instead
        found = relevance_to_text(text, features, text_mask=mask, words=words, sign=sign)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_long_text_goes_through_in_blocks(monkeypatch):
    features, text = torch.randn(30, 16, generator=seeded(0)), torch.randn(50, 16, generator=seeded(1))
    mask = torch.rand(50, generator=seeded(2)) < 0.5
    mask[7:14] = False  # a block of which nothing counts
    for given in (None, mask):
        whole = relevance_to_text(text, features, text_mask=given, words="max")
        with monkeypatch.context() as patched:
            patched.setattr("foveate.functional.text._TEXT_BLOCK", 7)
            torch.testing.assert_close(relevance_to_text(text, features, text_mask=given, words="max"), whole)


def test_by_hand():
    """Words along x and y; the tokens' cosines to them are (1, 0), (0, 1), (0.6, 0.8), (-0.6, -0.8)."""
    text = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    visual = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.6, 0.8], [-6.0, -8.0]])
    found = relevance_to_text(text, visual, words="max")  # 1, 1, 0.8, -0.6
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 1.4 / 1.6, 0.0]))
    found = relevance_to_text(text, visual, words="max", sign=-1)  # 0, 0, -0.6, 0.8
    torch.testing.assert_close(found, torch.tensor([0.6 / 1.4, 0.6 / 1.4, 0.0, 1.0]))
    found = relevance_to_text(text, visual, sign=-1)  # -0.5, -0.5, -0.7, 0.7
    torch.testing.assert_close(found, torch.tensor([1 / 7, 1 / 7, 0.0, 1.0]))


@pytest.mark.parametrize("words", ["mean", "max"])
@pytest.mark.parametrize("sign", [1, -1])
def test_where_all_are_equal_it_is_one(words, sign):
    assert relevance_to_text(torch.ones(2, 2), torch.ones(3, 2), words=words, sign=sign).tolist() == [1.0] * 3
    assert relevance_to_text(torch.ones(1, 2), torch.zeros(3, 2), words=words, sign=sign).tolist() == [1.0] * 3


@pytest.mark.parametrize("words", ["mean", "max"])
def test_autocast_changes_nothing(words):
    features, text = torch.randn(30, 16, generator=seeded(0)), torch.randn(5, 16, generator=seeded(1))
    expected = relevance_to_text(text, features, words=words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relevance_to_text(text, features, words=words), expected)


@pytest.mark.parametrize("words", ["mean", "max"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(words, value):
    features, text = torch.randn(30, 16), torch.randn(5, 16)
    text[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity in text"):
        relevance_to_text(text, features, words=words)
    features[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        relevance_to_text(text, features, words=words)


@pytest.mark.parametrize("words", ["mean", "max"])
def test_a_mask_that_leaves_nothing(words):
    features, text = torch.randn(30, 16), torch.randn(5, 16)
    with pytest.raises(ValueError, match="leaves no text token"):
        relevance_to_text(text, features, text_mask=torch.zeros(5, dtype=torch.bool), words=words)


def test_options_out_of_range_are_refused():
    features = torch.randn(30, 16)
    with pytest.raises(ValueError, match="unknown words 'sum'; known: mean, max"):
        relevance_to_text(features, features, words="sum")
    for sign in (0, 2, True, "1", None):
        with pytest.raises(ValueError, match="sign must be 1 or -1"):
            relevance_to_text(features, features, sign=sign)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("words", ["mean", "max"])
def test_a_mask_that_leaves_nothing_shows_on_cuda(words):
    features, text = torch.randn(30, 16).cuda(), torch.randn(5, 16).cuda()
    found = relevance_to_text(text, features, text_mask=torch.zeros(5, dtype=torch.bool).cuda(), words=words)
    assert bool(found.isnan().all())
