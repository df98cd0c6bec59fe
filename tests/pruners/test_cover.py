"""Cover against its formula written out in float64."""

import dataclasses

import pytest
import torch

from foveate import Cover
from tests.pruners.test_pruners import picture, question


def literal(visual, text, budget, power=8.0, share=1.0):
    """Weights and the greedy, word by word and token by token."""

    def cosine(one, two):
        one, two = one.double(), two.double()
        return float(one @ two / (one.norm() * two.norm()))

    tokens = list(visual.features)
    words = [word for word, counts in zip(text.embeddings, text.turn, strict=True) if counts]
    relevance = [max(cosine(word, token) for word in words) for token in tokens]
    low, high = min(relevance), max(relevance)
    relevance = [(one - low) / (high - low) for one in relevance]
    squares = [one**2 for one in relevance]
    saliency = visual.saliency.double().tolist()
    weight = [r / sum(squares) + share * s / sum(saliency) for r, s in zip(squares, saliency, strict=True)]
    like = [[max(0.0, cosine(one, two)) ** power for two in tokens] for one in tokens]
    chosen, values = [], []
    for _ in range(budget):
        found = {}
        for j in range(len(tokens)):
            if j not in chosen:
                found[j] = sum(w * max(row[k] for k in [*chosen, j]) for w, row in zip(weight, like, strict=True))
        best = max(found, key=lambda j: (found[j], -j))
        chosen.append(best)
        values.append(found[best] / sum(weight))  # every token covers itself wholly
    return chosen, values, weight


@pytest.mark.parametrize("options", [{}, {"saliency": 0.0}, {"power": 4.0}, {"power": 2.5, "saliency": 0.3}])
@pytest.mark.parametrize("seed", [0, 5])
def test_cover_is_its_formula(options, seed):
    visual, text = picture((4, 5), (3, 4), seed=seed), question(seed=seed + 1)
    pruner = Cover(keep=9, **options)
    chosen, values, weight = literal(visual, text, 9, options.get("power", 8.0), options.get("saliency", 1.0))
    selection = pruner.select(visual, text)
    assert selection.indices.tolist() == sorted(chosen)
    torch.testing.assert_close(selection.scores["weight"].double(), torch.tensor(weight, dtype=torch.float64))
    assert ("saliency" in selection.scores) == (options.get("saliency", 1.0) > 0)
    choice, covered = pruner.ranked(visual, text, 9)
    assert choice.indices.tolist() == chosen
    torch.testing.assert_close(covered.double(), torch.tensor(values, dtype=torch.float64), atol=1e-6, rtol=1e-5)


def test_without_its_weight_saliency_is_not_read():
    assert Cover.reads_saliency and Cover().reads_saliency and not Cover(saliency=0).reads_saliency
    blind = dataclasses.replace(picture(), saliency=None)
    assert len(Cover(keep=5, saliency=0).select(blind, question())) == 5
    with pytest.raises(ValueError, match="reads visual saliency"):
        Cover(keep=5).select(blind, question())


@pytest.mark.parametrize("saliency", [0.0, 1.0])
def test_a_picture_without_salience_or_relevance(saliency):
    visual, text = picture(), question()
    flat = dataclasses.replace(visual, saliency=torch.zeros(len(visual)))
    same = dataclasses.replace(flat, features=torch.ones_like(visual.features))
    for tokens in (flat, same):
        assert len(Cover(keep=7, saliency=saliency).select(tokens, text)) == 7
    alone = Cover(keep=7, saliency=saliency).select(flat, text).indices
    assert torch.equal(alone, Cover(keep=7, saliency=0).select(flat, text).indices)


def test_what_centring_hands_it_is_used():
    visual, text = picture(), question()
    plain = Cover(keep=10).select(visual, text).indices
    others = torch.randn(len(visual), 5, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(Cover(keep=10).select(dataclasses.replace(visual, compared=others), text).indices, plain)
    weight = torch.zeros(len(visual)).index_fill_(0, torch.tensor([3]), 1.0)
    assert 3 in Cover(keep=1).select(dataclasses.replace(visual, weight=weight), text).indices


@pytest.mark.parametrize(
    "options", [{"power": 0}, {"power": -1}, {"power": float("nan")}, {"saliency": -0.1}, {"saliency": float("inf")}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Cover(**options)
