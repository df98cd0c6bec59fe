"""What runs behind the explorer's page: answers as they come, measured, for one visitor at a time."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.app.engine import ALL, Explorer, Side
from foveate.webpage import figure
from tests import checkpoint
from tests.models import test_siglip_sessions
from tests.models.test_qwen_vl import whole_processor as whole_processor
from tests.tiny import ROWS

QUESTION = "What color is the card of the cat?"


@pytest.fixture(scope="module")
def pair():
    return checkpoint.model(), checkpoint.processor()


@pytest.fixture
def explorer(pair):
    return Explorer(*pair, max_new_tokens=12)


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def forwards(model):
    """Counts how often a model runs; the hook's handle beside."""
    runs = []
    return runs, model.register_forward_hook(lambda *_: runs.append(1))


@pytest.mark.parametrize("side", [Side(), Side("adafv", 20), Side("fastv:layer=1", 60)])
def test_an_answer_comes_word_by_word_and_is_the_sessions(explorer, pair, side):
    looked = explorer.look([picture()])
    slow = pair[0].register_forward_hook(lambda *_: time.sleep(0.03))
    told = list(explorer.ask(looked, QUESTION, side))
    slow.remove()
    expected = looked.session.ask(QUESTION, side.pruner(), max_new_tokens=12, do_sample=False)
    texts = [one.text for one in told]
    assert len(set(texts)) > 2 and all(after.startswith(before) for before, after in pairwise(texts[:-1]))
    last = told[-1]
    assert [one.done for one in told] == [False] * (len(told) - 1) + [True]
    assert (last.text, last.visual_tokens, last.prompt_tokens) == (
        expected.text,
        expected.visual_tokens,
        expected.prompt_tokens,
    )
    assert last.tokens == expected.new_tokens and 0 < last.prefill_ms <= last.total_ms
    assert [one.indices.tolist() for one in last.chosen.selections] == [
        one.indices.tolist() for one in expected.selections
    ]
    assert not pair[0]._forward_hooks


def test_the_cache_is_that_of_the_prompt_that_was_sent(explorer, pair):
    looked = explorer.look([picture()])
    *_, last = explorer.ask(looked, QUESTION, Side("saliency", 25))
    config = pair[0].config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width * last.prompt_tokens
    assert last.cache_mib == numbers * 4 / 2**20


def test_who_leaves_stops_the_model(pair):
    explorer = Explorer(*pair, max_new_tokens=200)
    looked = explorer.look([picture()])
    runs, hook = forwards(pair[0])
    coming = explorer.ask(looked, QUESTION, Side())
    next(coming)
    coming.close()
    with explorer.lock:  # held until the model has stopped
        hook.remove()
    assert 0 < len(runs) < 150
    *_, last = Explorer(*pair, max_new_tokens=2).ask(looked, QUESTION, Side())
    assert last.done


def test_who_is_slower_than_the_model_does_not_fall_behind(explorer):
    looked = explorer.look([picture()])
    coming = explorer.ask(looked, QUESTION, Side())
    next(coming)
    with explorer.lock:  # the model is done
        assert [one.done for one in coming] == [True]


def test_visitors_wait_for_each_other_and_get_their_own(explorer):
    sides = [Side(), Side("adafv", 20), Side("saliency", 10), Side("uniform", 5)]
    looked = [explorer.look([picture(seed)]) for seed in range(4)]
    found, running, most = {}, [0], [0]
    ask = foveate.Session.ask

    def counted(*args, **options):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        try:
            return ask(*args, **options)
        finally:
            running[0] -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foveate.Session, "ask", counted)
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: [*explorer.ask(looked[n], QUESTION, sides[n])][-1]}))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1]
    for n, side in enumerate(sides):
        expected = looked[n].session.ask(QUESTION, side.pruner(), max_new_tokens=12, do_sample=False)
        assert found[n].text == expected.text
        assert found[n].chosen.selections[0].indices.tolist() == expected.selections[0].indices.tolist()


def test_what_cannot_be_asked_is_said_and_the_next_question_is_answered(explorer, pair):
    looked = explorer.look([picture()])
    with pytest.raises(ValueError, match="the question is empty"):
        next(explorer.ask(looked, " \n", Side()))
    with pytest.raises(ValueError, match="at most 50,000 are read"):
        explorer.choose(looked, "cat " * 20_000, Side())
    limit = pair[0].config.get_text_config().max_position_embeddings
    with pytest.raises(ValueError, match=f"of {limit:,} that it reads"):
        next(explorer.ask(looked, "cat " * limit, Side("adafv", 1)))
    with pytest.raises(ValueError, match="unknown method 'adavf'"):
        next(explorer.ask(looked, QUESTION, Side("adavf", 1)))
    with pytest.raises(ValueError, match="must not contain '<image>'"):
        next(explorer.ask(looked, "<image> What is this?", Side()))
    *_, last = explorer.ask(looked, QUESTION, Side())
    assert last.done


def test_what_breaks_while_the_model_runs_reaches_who_asked(explorer, pair, monkeypatch):
    looked = explorer.look([picture()])

    def broken(*args, **options):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pair[0].model.language_model, "forward", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(explorer.ask(looked, QUESTION, Side()))
    assert not explorer.lock.locked() and not pair[0]._forward_hooks


def test_a_sides_budget():
    assert Side(ALL, 10).keep == 1.0 and Side(ALL, 10).pruner() is None
    assert Side("adafv", 7).pruner() == foveate.AdaFV(keep=0.07)
    assert Side("fastv:layer=1", 100).pruner().keep == 1.0
    assert (Side().title, Side("adafv", 7.0).title) == ("all tokens", "adafv, 7 %")


FAMILIES = {**test_siglip_sessions.PROCESSORS, "llava-clip": checkpoint.llava_processor, "qwen2_5_vl": None}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name, whole_processor):
    """Tiles, pan and scan, centre squares, places in three dimensions: what is chosen is kept, and can be drawn."""
    model, made = ROWS[name].make("sdpa"), FAMILIES[name]
    explorer = Explorer(model, made() if made else whole_processor, max_new_tokens=4)
    looked = explorer.look([picture(1), picture(2)])
    side = Side("adafv", 30)
    chosen = explorer.choose(looked, "is there a cat", side)
    *_, last = explorer.ask(looked, "is there a cat", side)
    (expected,) = looked.session.ask_many(["is there a cat"], side.pruner(), max_new_tokens=4, do_sample=False)
    assert last.text == expected.text and last.cache_mib > 0
    for before, after, one in zip(chosen.selections, last.chosen.selections, expected.selections, strict=True):
        assert before.indices.tolist() == after.indices.tolist() == one.indices.tolist()
    for image, selection, pointing in zip(looked.pictures, chosen.selections, chosen.pointings, strict=True):
        assert {"is", "there", "a", "cat"} <= set(pointing.words)
        assert f"{len(selection)} of {selection.total} patch tokens kept" in figure(image, selection, pointing)
