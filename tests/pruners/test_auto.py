"""As many tokens as needed: between floor and ceiling the fewest that hold the share, counted by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from PIL import Image

import foveate
from foveate import Auto, Cover, Saliency, TextSimilarity, bundled, get_pruner
from foveate.functional import require_finite
from tests.pruners.test_pruners import picture, question


def coverage(visual, weight, kept, power):
    """F of some tokens, straight from its definition."""
    rows = torch.nn.functional.normalize(visual.features.double(), dim=-1)
    total = 0.0
    for i in range(len(rows)):
        total += float(weight[i]) * max(max(0.0, float(rows[i] @ rows[j])) ** power for j in kept)
    return total


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_cover_keeps_the_fewest_that_reach_the_share(share, seed):
    visual, text = picture((5, 5), (4, 6), seed=seed), question()
    auto = Auto(Cover(power=2.0), keep=1.0, floor=1, share=share)
    chosen = auto.select(visual, text)
    choice, _ = Cover(power=2.0).ranked(visual, text, len(visual))
    order, weight = choice.indices.tolist(), choice.scores["weight"].double()
    whole = coverage(visual, weight, range(len(visual)), 2.0)
    reached = [coverage(visual, weight, order[:k], 2.0) / whole for k in range(1, len(order) + 1)]
    expected = next(k for k, one in enumerate(reached, 1) if one >= share - 1e-6)
    assert len(chosen) == expected and 1 < expected < len(visual)
    assert chosen.indices.tolist() == sorted(order[:expected])
    assert torch.equal(chosen.indices, Cover(power=2.0, keep=expected).select(visual, text).indices)
    assert set(chosen.scores) == {"relevance", "saliency", "weight"}


@pytest.mark.parametrize("method, name", [(Saliency, "saliency"), (TextSimilarity, "text_to_image")])
def test_a_scorer_keeps_a_share_of_the_tokens_that_its_score_speaks_of(method, name):
    visual, text = picture((6, 6)), question()
    for share in (0.2, 0.5, 0.8):
        chosen = Auto(method(), keep=1.0, floor=1, share=share).select(visual, text)
        score = chosen.scores[name].double().tolist()
        total = math.fsum(score)
        entropy = -math.fsum(one / total * math.log(one / total) for one in score if one > 0)
        count = math.ceil(share * math.exp(entropy))
        best = sorted(range(len(score)), key=lambda place: (-score[place], place))
        assert chosen.indices.tolist() == sorted(best[:count])


def test_floor_and_ceiling():
    visual, text = picture((10, 10)), question()
    for floor, ceiling in ((0.1, 0.3), (10, 30), (0.1, 30)):
        few = Auto("cover", keep=ceiling, floor=floor, share=1e-6).select(visual, text)
        many = Auto("cover", keep=ceiling, floor=floor, share=1.0).select(visual, text)
        assert (len(few), len(many)) == (10, 30)
    assert len(Auto("cover", keep=5, floor=0.5, share=0.9).select(visual, text)) == 5  # the ceiling is the last word
    sizes = [len(Auto("cover", keep=1.0, share=share).select(visual, text)) for share in (0.3, 0.6, 0.9, 0.99, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    even = dataclasses.replace(visual, saliency=torch.ones(len(visual)))
    assert len(Auto("saliency", keep=1.0, share=1.0).select(even)) == len(visual)


def test_degenerate_pictures():
    visual, text = picture((4, 4)), question()
    same = dataclasses.replace(visual, features=torch.ones_like(visual.features), saliency=torch.zeros(16))
    assert len(Auto("cover", floor=1, keep=1.0).select(same, text)) == 1  # one stands for all
    assert len(Auto("saliency", floor=2, keep=1.0, share=0.5).select(same)) == 8  # none tells more than another
    one = dataclasses.replace(
        visual, features=visual.features[:1], saliency=visual.saliency[:1], geometry=picture((1, 1)).geometry
    )
    assert len(Auto("cover").select(one, text)) == 1


def test_half_precision():
    visual, text = picture((8, 8), dtype=torch.bfloat16), question(dtype=torch.bfloat16)
    chosen = Auto("cover", keep=0.5).select(visual, text)
    same = Auto("cover", keep=0.5).select(
        dataclasses.replace(visual, features=visual.features.float()),
        dataclasses.replace(text, embeddings=text.embeddings.float()),
    )
    assert torch.equal(chosen.indices, same.indices)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: Auto("cdpruner"), ValueError, "auto cannot hold cdpruner: it neither scores"),
        (lambda: Auto("adafv"), ValueError, "neither scores"),
        (lambda: Auto("uniform"), ValueError, "neither scores"),
        (lambda: Auto(Auto("cover")), ValueError, "its own number of tokens already"),
        (lambda: Auto("fastv"), TypeError, "such as 'cover': fastv prunes inside"),
        (lambda: Auto("cover", share=0), ValueError, "share must be in"),
        (lambda: Auto("cover", share=1.5), ValueError, "share must be in"),
        (lambda: Auto("cover", share="all"), TypeError, "share must be a number"),
        (lambda: Auto("cover", floor=0), ValueError, "keeps no token"),
        (lambda: Auto("cover", floor=0.5), ValueError, "floor=0.5 is above the ceiling, keep=0.25"),
        (lambda: Auto("cover", floor=9, keep=8), ValueError, "above the ceiling"),
        (lambda: get_pruner("auto"), ValueError, "auto:cover"),
        (lambda: get_pruner("fastv", keep="auto"), ValueError, "prunes inside the LLM"),
        (lambda: get_pruner("scope", keep="auto"), ValueError, "neither scores"),
        (lambda: Cover(keep="auto"), TypeError, "keep must be"),
    ],
)
def test_bad_options(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_names():
    assert get_pruner("cover:power=4", keep="auto") == Auto(Cover(power=4.0)) == get_pruner("auto:cover:power=4")
    assert get_pruner("auto:share=0.9:floor=8:text", keep=0.5) == Auto(TextSimilarity(), keep=0.5, floor=8, share=0.9)
    assert Auto("cover").keep == 0.25 and Auto(Cover(keep=0.5)).keep == 0.25  # the ceiling is its own
    assert Auto("text").reads_text and not Auto("text").reads_saliency and Auto("cover").adaptive
    assert not Cover().adaptive
    centered = get_pruner("centered:auto:share=0.9:cover", keep=0.5)
    assert centered.adaptive and centered.method == Auto("cover", share=0.9, keep=0.5)
    visual, text = picture((8, 8)), question()
    assert 1 < len(centered.select(visual, text)) <= 32


def test_what_it_drops_can_be_merged():
    visual, text = picture((8, 8)), question()
    for ceiling in (0.5, 1.0):
        auto = Auto("cover", keep=ceiling, share=0.6)
        merged = foveate.Merged(auto).select(visual, text)
        assert torch.equal(merged.indices, auto.select(visual, text).indices) and len(merged) < 32
        assert merged.weights is not None and foveate.Merged(auto).adaptive
    with pytest.raises(ValueError, match="auto cannot hold merged"):
        Auto(foveate.Merged("cover"))


def test_a_server_refuses_it():
    for wrong in ({"method": "auto:cover"}, {"method": "cover", "methods": ["auto:cover"]}):
        with pytest.raises(ValueError, match="lays the prompt out before"):
            foveate.serving.options(**wrong)


def test_on_a_model_every_question_has_its_own_number():
    model, processor = bundled.load()
    grey = Image.effect_noise((320, 240), 80).convert("RGB")
    session = foveate.look(model, processor, grey)
    auto = Auto("cover", share=0.6)
    questions = ["Is there a dog?", "What color is the card of the cat?", "How many apples are there?"]
    together = session.ask_many(questions, auto, max_new_tokens=3, do_sample=False)
    for question_, answer in zip(questions, together, strict=True):
        alone = session.ask(question_, auto, max_new_tokens=3, do_sample=False)
        fixed = session.ask(question_, Cover(keep=len(alone.selections[0])), max_new_tokens=3, do_sample=False)
        assert answer.text == alone.text == fixed.text
        assert torch.equal(alone.selections[0].indices, fixed.selections[0].indices)
        assert torch.equal(alone.selections[0].indices, answer.selections[0].indices)
        assert 0.02 <= alone.selections[0].ratio <= 0.25
    require_finite(**together[0].selections[0].scores)


def test_auto_where_it_is_auto_already_and_where_it_is_not():
    assert get_pruner("auto:share=0.5:cover", keep="auto") == foveate.Auto("cover", share=0.5)
    with pytest.raises(ValueError, match="keep='auto': auto cannot hold random"):
        get_pruner("random", keep="auto")
    with pytest.raises(TypeError, match="foveate.Auto"):
        foveate.AdaFV(keep="auto")


def test_a_floor_above_the_usual_ceiling_goes_with_a_larger_one():
    from foveate.cli.evaluate import parse_methods
    from foveate.evaluation.dials import dials_of

    name = "auto:floor=0.3:cover"
    assert parse_methods(name, varying=True) == [name]
    (dial,) = dials_of(name)
    for method, keep in (dial.probe, *dial.runs):
        assert get_pruner(method, keep=keep).keep == 1.0
    (usual,) = dials_of("auto:cover")
    assert usual.probe[1] == 0.25
