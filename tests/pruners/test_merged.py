"""``Merged``: the held method's choice, and what becomes of what it drops."""

import contextlib
import dataclasses
import math

import pytest
import torch

from foveate.functional import merge_into_nearest
from foveate.pruners import METHODS, CDPruner, Choice, Merged, Pruner, Saliency, get_pruner
from foveate.tokens import VisualTokens
from tests.pruners.test_pruners import asked, picture, placed, question, same_selection

HELD = [name for name, method in METHODS.items() if not method.merges]
MERGING = [name for name, method in METHODS.items() if method.merges]


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("keep", [0.2, 1, 107])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_held_choice_stays(name, keep, dtype):
    visual, text = picture(dtype=dtype), question(dtype=dtype)
    held, merged = (get_pruner(one, keep=keep).select(visual, text) for one in (name, f"merged:{name}"))
    assert torch.equal(held.indices, merged.indices) and held.weights is None
    assert set(held.scores) == set(merged.scores) and set(held.shares) == set(merged.shares)
    for score in held.scores:
        assert torch.equal(held.scores[score], merged.scores[score])
    expected = merge_into_nearest(visual.features, held.indices)
    assert torch.equal(merged.weights.dense(), expected.dense())
    assert int((merged.weights.dense() > 0).sum()) == 108  # every token is in one kept token
    assert merged.gather(visual.features).dtype == dtype


def test_threshold():
    visual, text = picture(), question()
    some = get_pruner("merged:threshold=0.3:cdpruner", keep=20).select(visual, text)
    assert torch.equal(some.weights.dense(), merge_into_nearest(visual.features, some.indices, 0.3).dense())
    assert 20 < int((some.weights.dense() > 0).sum()) < 108
    none = Merged(CDPruner(20), threshold=1.0).select(visual, text)
    assert torch.equal(none.gather(visual.features), visual.features[none.indices])
    for threshold in (-1.5, 1.5, math.nan):
        with pytest.raises(ValueError, match="threshold must be in"):
            Merged("cdpruner", threshold=threshold)


def test_flags():
    assert Merged.merges is True and Merged("saliency").merges is True
    assert Merged("cdpruner").reads_text and not Merged("cdpruner").reads_saliency
    assert Merged("saliency").reads_saliency and Merged("dart").reads_text is False
    assert Merged(Saliency(0.3)).keep == 0.3 and Merged(Saliency(0.3), keep=5).method.keep == 5
    assert Merged("saliency") == Merged(Saliency()) != Merged("saliency", threshold=0.5)


@pytest.mark.parametrize("name", [*MERGING, "merged:saliency"])
def test_who_merges_is_refused(name):
    with pytest.raises(ValueError, match=f"merged cannot hold {name.split(':')[0]}: .* merges what it drops by itself"):
        get_pruner(f"merged:{name}")


def test_who_merges_in_secret_is_refused():
    @dataclasses.dataclass
    class Secret(Pruner):
        name = "secret"

        def choose(self, visual, text, budget):
            return Choice(torch.arange(budget), weights=torch.ones(budget, len(visual)))

    with pytest.raises(ValueError, match="secret merges without saying so"):
        Merged(Secret(3)).select(picture())


def test_who_prunes_inside_is_refused():
    with pytest.raises(TypeError, match="prunes inside the LLM"):
        Merged("fastv")


def test_all_tokens_go_as_they_are():
    selection = Merged("saliency", keep=1.0).select(picture())
    assert selection.weights is None and len(selection) == 108


def test_released_tokens_may_stand_twice():
    visual, text = picture(), question()
    selection = get_pruner("merged:adafv:variant=released", keep=25).select(visual, text)
    torch.testing.assert_close(selection.weights.dense().sum(dim=1), torch.ones(len(selection)))


@pytest.mark.parametrize("name", HELD)
def test_nothing_asks_for_a_value(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta is unknown to it
    selection = get_pruner(f"merged:{name}", keep=0.2).select(placed(picture(), "meta"), asked(question(), "meta"))
    assert selection.indices.is_meta and selection.weights.weights.is_meta and selection.weights.shape == (22, 108)


def test_autocast_and_gradients_change_nothing():
    visual, text, pruner = picture(), question(), Merged("cdpruner", keep=0.2)
    expected = pruner.select(visual, text)
    grown = VisualTokens(visual.features.clone().requires_grad_(), visual.geometry, visual.saliency)
    with torch.autocast("cpu", torch.bfloat16):
        found = pruner.select(grown, text)
    same_selection(found, expected)
    found.gather(grown.features).sum().backward()
    assert grown.features.grad is not None and not found.weights.weights.requires_grad


def test_broken_features_are_seen():
    visual = picture()
    visual.features[3, 2] = math.inf
    with pytest.raises(ValueError, match="NaN or infinity in visual"):
        Merged("saliency").select(visual)
