"""The analyses measure what they say: one row of one layer, exact curves, and objects found where they are."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate.evaluation import analysis
from foveate.evaluation.analysis import LLM, SCORES, Scored, analyse, area_under_roc, recall_at, summarise
from foveate.evaluation.llm_attention import reading_row, row_attention
from foveate.evaluation.scenes import SCENES, Item
from foveate.pruners.base import SALIENCY, TEXT_TO_IMAGE
from tests import checkpoint

QUESTIONS = ["Is there a cat?", "What color is the card of the dog?"]


@pytest.fixture(scope="module")
def loaded():
    return checkpoint.model(), checkpoint.processor()


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8))


def attentions(model, processor, picture, question, layer):
    """(S,) of the last token, by the model's own eager attention, and the prompt's ids."""
    prompt = foveate.look(model, processor, picture).prompt(question)
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = model(**inputs, output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")
    return output.attentions[layer][0].mean(0), inputs["input_ids"][0]


@pytest.mark.parametrize("layer,back", [(0, 0), (1, 2), (-1, 1)])
def test_the_row_is_the_layer_s_own(loaded, picture, layer, back):
    model, processor = loaded
    config = model.get_decoder().layers[layer].self_attn.config
    session = foveate.look(model, processor, picture)
    with reading_row(model, layer, back) as rows:
        answers = session.ask_many(QUESTIONS, None, max_new_tokens=3, do_sample=False)
    assert model.get_decoder().layers[layer].self_attn.config is config
    assert len(rows) == 1  # steps of decoding are not read
    for row, answer, question in zip(rows[0], answers, QUESTIONS, strict=True):
        expected, ids = attentions(model, processor, picture, question, layer)
        padding = len(row) - len(ids)  # the shorter question is padded on the left
        assert torch.equal(answer.sequence[padding : len(row)], ids)
        torch.testing.assert_close(row[padding:], expected[len(ids) - 1 - back], rtol=1e-4, atol=1e-6)
        assert not row[:padding].any()
    with reading_row(model, 0, 0):
        pass
    again = session.ask_many(QUESTIONS, None, max_new_tokens=3, do_sample=False)
    assert [one.text for one in again] == [one.text for one in answers]


def test_a_layer_that_is_not_there_is_refused(loaded):
    with pytest.raises(ValueError, match="layer 2 is not one of the 2 layers"), reading_row(loaded[0], 2, 0):
        pass


def test_the_row_takes_masks_of_every_form():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 6, 4, generator=generator) for heads in (4, 2))
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    allowed = (torch.ones(6, 6).tril().bool() & padding[:, None, None].bool()).expand(2, 1, 6, 6)
    additive = torch.zeros(2, 1, 6, 6).masked_fill(~allowed, torch.finfo(torch.float32).min)
    rows = [row_attention(query, key, 0.5, mask, 1) for mask in (padding, allowed, additive)]
    repeated = key.repeat_interleave(2, dim=1)
    full = (query @ repeated.transpose(-1, -2) * 0.5).masked_fill(~allowed, -1e30).softmax(-1).mean(1)
    for row in rows:
        torch.testing.assert_close(row, full[:, 4])
    torch.testing.assert_close(row_attention(query, key, 0.5, None, 1)[1], full[1, 4])
    torch.testing.assert_close(rows[0].sum(-1), torch.ones(2))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12))
def test_area_under_roc_counts_pairs(tokens):
    score = np.array([float(value) for value, _ in tokens])
    inside = np.array([flag for _, flag in tokens])
    if inside.all() or not inside.any():
        with pytest.raises(ValueError, match="inside and outside"):
            area_under_roc(score, inside)
        return
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(score[inside], score[~inside])]
    assert area_under_roc(score, inside) == pytest.approx(np.mean(pairs))


def test_recall_is_the_part_of_the_object_that_is_found():
    score = np.array([0.1, 0.9, 0.5, 0.5, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0])
    inside = np.array([False, True, False, True, True, *[False] * 5])
    assert recall_at(score, inside, 0.1) == pytest.approx(1 / 3)
    assert recall_at(score, inside, 0.2) == pytest.approx(1 / 3)  # of equal scores the earlier is kept
    assert recall_at(score, inside, 0.3) == pytest.approx(2 / 3) and recall_at(score, inside, 1.0) == 1


def test_what_is_smaller_than_a_token_is_of_those_that_hold_it():
    """A base view of one token, and 2 x 2 tokens of a crop over its left half."""
    boxes = np.array([[0, 0, 40, 20], [0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [10, 10, 20, 20]], float)
    asked = Item("a.png", "q", ["yes"], "presence", "small", False, [])
    cases = (
        ([[4, 4, 6, 6]], [1]),  # a token's centre lies in it
        ([[11, 1, 14, 4]], [0, 2]),  # none does
        ([[11, 1, 14, 4], [4, 4, 6, 6]], [0, 1, 2]),
        ([[0, 0, 40, 20]], [0, 1, 2, 3, 4]),
        ([], []),
    )
    for placed, expected in cases:
        found = analysis.tokens_of(replace(asked, boxes=placed), boxes)
        assert np.flatnonzero(found).tolist() == expected


def made(number: int, kind: str = "presence", clutter: bool = True) -> Item:
    return Item(f"{number // 2}.png", "Is there a cat?", ["yes"], kind, "small", clutter, [[0, 0, 5, 5]])


def test_summaries_of_scores_that_are_known():
    """The LLM's rises along the prompt, the text's is the object itself, saliency is even."""
    scored = []
    for number in range(8):
        inside = np.zeros(64, dtype=bool)
        inside[[number, 40 + number]] = True
        rising = np.arange(64.0)
        scores = {LLM: rising * 64 / rising.sum(), TEXT_TO_IMAGE: inside * 32.0, SALIENCY: np.ones(64)}
        scored.append(Scored(made(number, clutter=number > 3), scores, inside, np.arange(64) < 16))
    scored.append(Scored(made(9, kind="counting"), scored[0].scores, scored[0].inside, scored[0].base))
    told = summarise(scored, 1)
    bias = {one.score: one for one in told.bias}
    assert bias[LLM].slope.value == pytest.approx(1) and bias[SALIENCY].slope.value == 0
    assert bias[LLM].first.value == pytest.approx(rising[:16].mean() / rising.mean())
    assert bias[LLM].last.value == pytest.approx(rising[48:].mean() / rising.mean())
    assert bias[LLM].base.value == bias[LLM].first.value  # these are its tokens here
    assert len(bias[LLM].curve) == analysis.BINS and list(bias[LLM].curve) == sorted(bias[LLM].curve)
    assert set(bias[SALIENCY].curve) == {1.0}
    found = {(one.score, one.group): one for one in told.alignment}
    assert found[TEXT_TO_IMAGE, "all"].auc.value == 1 and found[SALIENCY, "all"].auc.value == 0.5
    assert found[TEXT_TO_IMAGE, "all"].recall[0.05].value == 1  # two of the four that are kept
    assert found[LLM, "all"].auc.count == 8 and found[LLM, "small in clutter"].auc.count == 4
    assert (LLM, "counting") not in found  # asks about no single thing
    assert found[LLM, "all"].share == pytest.approx(2 / 64)
    difference = told.pairs[TEXT_TO_IMAGE, LLM, "all"]
    assert difference.value == pytest.approx(1 - found[LLM, "all"].auc.value)
    with pytest.raises(ValueError, match="none of the questions"):
        summarise(scored[-1:], 1)


def test_scores_are_those_that_the_pruner_reads(loaded, tmp_path):
    """On drawn scenes with the tiny model, from files to figures."""
    model, processor = loaded
    path = SCENES.write(tmp_path, 2, 0)
    items = SCENES.read(path)
    seen = []
    told = analyse(model, processor, items, tmp_path, layer=1, progress=lambda *step: seen.append(step))
    assert told.questions == len(items) and told.pictures == 2 and seen[-1] == (len(items), len(items))
    first = [item for item in items if item.image == items[0].image]
    picture = Image.open(tmp_path / first[0].image).convert("RGB")
    session = foveate.look(model, processor, picture)
    scored = list(analysis._score(session, first, picture.size, 1))
    pruner = foveate.AdaFV(keep=5)
    (answer,) = session.ask_many([first[1].question], pruner, max_new_tokens=1)
    for name in (SALIENCY, TEXT_TO_IMAGE):
        expected = answer.selections[0].scores[name].double().numpy()
        np.testing.assert_allclose(scored[1].scores[name], expected * len(expected) / expected.sum(), rtol=1e-4)
    row, ids = attentions(model, processor, picture, first[1].question, 1)
    tail = processor.tokenizer(" ASSISTANT:", add_special_tokens=False)["input_ids"]
    assert ids[-len(tail) :].tolist() == tail  # the question ends before the template's own words
    visual = row[len(ids) - 1 - len(tail)][ids == checkpoint.IMAGE].double().numpy()
    visual = visual[session.images[0].slots.numpy() >= 0]  # row ends are no patches
    np.testing.assert_allclose(scored[1].scores[LLM], visual * len(visual) / visual.sum(), rtol=1e-3)
    boxes = answer.selections[0].geometry.boxes_in(picture.height, picture.width).numpy()
    for one in scored:
        for centre, inside in zip((boxes[:, :2] + boxes[:, 2:]) / 2, one.inside, strict=True):
            x, y = centre
            assert inside == any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in one.item.boxes)  # none is tiny
    files = analysis.save(told, tmp_path / "out")
    read = json.loads(files[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {one["score"] for one in read["bias"]} == set(SCORES) and "layer 1" in read["note"]
    assert Image.open(files[1]).size[0] > 1000
    salience = analysis.read_salience(tmp_path / "out")
    asked = [one for one in items if (one.image, one.question) in salience]
    assert asked and all(one.kind in SCENES.located for one in asked)
    assert np.mean([salience[one.image, one.question] for one in asked]) == pytest.approx(
        next(one.auc.value for one in told.alignment if (one.score, one.group) == (SALIENCY, "all")), abs=1e-4
    )
    files[0].write_text("{}")
    with pytest.raises(ValueError, match="not what foveate analyze writes"):
        analysis.read_salience(tmp_path / "out")
    with pytest.raises(ValueError, match="no question"):
        analyse(model, processor, [], tmp_path)
