"""MMTok against its paper's formula, written out with loops in float64."""

import math

import pytest
import torch

from foveate.functional import multimodal_cover


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def cosine(one, other):
    length = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


def softmax(values):
    most = max(values)
    powers = [math.exp(value - most) for value in values]
    return [power / sum(powers) for power in powers]


def mmtok(text, visual, encoded, budget, temperature, visual_temperature, visual_weight):
    """Greedy facility location over the rows of [P / m ; a Q / n].

    What is taken for what it adds; what follows when nothing adds anything, as it covers most alone; what each covers.
    """
    words, tokens, own = text.double().tolist(), visual.double().tolist(), encoded.double().tolist()
    m, n = len(words), len(tokens)
    rows = []
    for word in words:
        rows.append([value / m for value in softmax([cosine(word, token) / temperature for token in tokens])])
    for one in own:
        spread = softmax([cosine(one, other) / visual_temperature for other in own])
        rows.append([visual_weight * value / n for value in spread])

    def covered(chosen):
        return sum(max((row[j] for j in chosen), default=0.0) for row in rows)

    alone, chosen = [covered([j]) for j in range(n)], []
    while len(chosen) < budget:
        now, rest = covered(chosen), [j for j in range(n) if j not in chosen]
        gain = {j: covered([*chosen, j]) - now for j in rest}
        best = rest[0]
        for j in rest:
            if gain[j] > gain[best] * (1 + 1e-9):
                best = j
        if gain[best] < 1e-9:
            break  # nothing adds anything
        chosen.append(best)
    left = sorted((j for j in range(n) if j not in chosen), key=lambda j: (-alone[j], j))
    return chosen, left[: budget - len(chosen)], torch.tensor(alone, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [(0.02, 0.2, 0.5), (0.01, 0.2, 0.5), (0.5, 0.05, 3.0), (0.1, 1.0, 0.0)])
@pytest.mark.parametrize("words, tokens, budget", [(1, 2, 1), (5, 30, 1), (5, 30, 2), (12, 30, 9), (5, 30, 29)])
def test_multimodal_cover(dtype, options, words, tokens, budget):
    for seed in range(3):
        text = torch.randn(words, 16, generator=seeded(seed)).to(dtype)
        visual = torch.randn(tokens, 16, generator=seeded(seed + 9)).to(dtype)
        encoded = torch.randn(tokens, 12, generator=seeded(seed + 18)).to(dtype)
        kept, alone = multimodal_cover(text, visual, encoded, budget, *options)
        gained, followed, coverage = mmtok(text, visual, encoded, budget, *options)
        assert kept.dtype == torch.int64 and kept.tolist() == sorted(gained + followed)
        torch.testing.assert_close(alone, coverage, atol=1e-6, rtol=1e-4)


def axes(count, tokens, seed):
    """Axes, again and again, of lengths that are powers of two: cosines are exact, full of ties and duplicates."""
    rows = torch.eye(16)[torch.randint(0, count, (tokens,), generator=seeded(seed))]
    return rows * 2.0 ** torch.randint(-2, 3, (tokens, 1), generator=seeded(seed + 1))


@pytest.mark.parametrize("budget", [1, 2, 4, 7, 19])
@pytest.mark.parametrize("seed", range(4))
def test_ties_go_to_the_earlier_token(budget, seed):
    text, visual = axes(4, 3, seed), axes(6, 20, seed + 5)
    visual[4] = 0  # a token without a direction
    kept = multimodal_cover(text, visual, visual, budget, 0.5, 0.5)[0].tolist()
    gained, _, _ = mmtok(text, visual, visual, budget, 0.5, 0.5, 0.5)
    assert len(set(kept)) == budget and set(gained) <= set(kept)  # of equal tokens none adds what rounding can show
    assert len(gained) >= min(budget, 4)


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_an_empty_picture(budget):
    one = torch.randn(1, 16, generator=seeded(0)).expand(8, 16).contiguous()
    kept, alone = multimodal_cover(torch.randn(3, 16, generator=seeded(1)), one, one, budget)
    assert kept[0] == 0 and len(set(kept.tolist())) == budget
    torch.testing.assert_close(alone, torch.full((8,), 1.5 / 8))


def test_by_hand():
    """One word, on token 3, the twin of token 2: each twin covers half of two rows, as much as 0 and 1 of their own."""
    visual, encoded = torch.eye(4), torch.eye(4)[[0, 1, 2, 2]]
    text = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    for budget, expected in [(1, [3]), (2, [0, 3]), (3, [0, 1, 3])]:
        assert multimodal_cover(text, visual, encoded, budget, 0.02, 0.02)[0].tolist() == expected
    covered = multimodal_cover(text, visual, encoded, 4, 0.02, 0.02)[1]
    torch.testing.assert_close(covered, torch.tensor([0.125, 0.125, 0.125, 1.125]))
    # A token of a crowd covers more than one that stands alone.
    assert multimodal_cover(text[:, [3, 1, 2, 0]], visual, torch.eye(4)[[0, 1, 1, 1]], 2, 0.02, 0.5)[0].tolist() == [
        0,
        1,
    ]


def test_what_the_mask_leaves_out_is_not_read():
    text, visual = torch.randn(5, 16, generator=seeded(0)), torch.randn(30, 16, generator=seeded(1))
    mask = torch.tensor([True, False, True, True, False])
    expected = multimodal_cover(text[mask], visual, visual, 9)
    text[1] = math.nan
    found = multimodal_cover(text, visual, visual, 9, text_mask=mask)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_autocast_changes_nothing():
    text, visual = torch.randn(5, 16, generator=seeded(0)), torch.randn(30, 16, generator=seeded(1))
    expected = multimodal_cover(text, visual, visual, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = multimodal_cover(text, visual, visual, 9)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert multimodal_cover(text, visual, visual, 30)[0].tolist() == list(range(30))
    assert multimodal_cover(text, visual, visual, 99)[0].tolist() == list(range(30))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"budget": 0}, ValueError, "budget=0 keeps no token"),
        ({"budget": 2.0}, TypeError, "budget must be an int"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"visual_temperature": math.nan}, ValueError, "visual_temperature must be positive"),
        ({"visual_weight": -1.0}, ValueError, "visual_weight must be finite and >= 0"),
        ({"encoded": torch.ones(4, 3)}, ValueError, "must have as many tokens"),
        ({"encoded": torch.full((6, 3), math.nan)}, ValueError, "NaN or infinity in encoded"),
        ({"visual": torch.full((6, 16), math.inf)}, ValueError, "NaN or infinity in visual"),
        ({"text": torch.full((2, 16), math.inf)}, ValueError, "NaN or infinity in text"),
        ({"text": torch.ones(2, 5)}, ValueError, "must share D"),
        ({"text": torch.ones(2, 16, dtype=torch.int64)}, TypeError, "text must be of a floating dtype"),
        ({"text_mask": torch.zeros(2, dtype=torch.bool)}, ValueError, "leaves no text token"),
        ({"text_mask": torch.zeros(2)}, TypeError, "text_mask must be bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    given = {"text": torch.ones(2, 16), "visual": torch.ones(6, 16), "encoded": torch.ones(6, 3), "budget": 2}
    with pytest.raises(error, match=message):
        multimodal_cover(**{**given, **change})
