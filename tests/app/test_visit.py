"""What one visitor has before them, as text, HTML and code."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate import bundled
from foveate.app import engine, shown
from foveate.app.engine import Explorer, Side
from foveate.app.snippets import Source, as_curl, as_python
from foveate.app.visit import Visit
from foveate.evaluation.worlds import get_world
from foveate.serving.policy import Policy

AWKWARD = "What's on \"the\" sign?\n$HOME `id` \\n $(id) é 'x'\nREQUEST"


@pytest.fixture(scope="module")
def explorer():
    return Explorer(*bundled.load(), max_new_tokens=8)


@pytest.fixture
def visit(explorer):
    made = Visit()
    made.take_drawn(explorer, "scenes", 1)
    return made


ASKED = "Is there a sign?"


def test_nothing_is_encoded_or_chosen_again_but_what_changed(explorer, visit, monkeypatch):
    visit.set(explorer, ASKED, [Side(), Side("adafv", 10)])
    left, right = (one.chosen for one in visit.sides)
    looks, chosen = [], []
    monkeypatch.setattr(engine, "look", lambda *args, **options: looks.append(1))
    choose = explorer.choose
    monkeypatch.setattr(explorer, "choose", lambda *args: (chosen.append(args[1:]), choose(*args))[1])
    assert not visit.set(explorer, ASKED, [Side(), Side("adafv", 10)])  # the page need not draw anything anew
    assert not chosen
    assert visit.set(explorer, ASKED, [Side(), Side("adafv", 20)])
    assert chosen == [(ASKED, Side("adafv", 20))] and visit.sides[0].chosen is left
    assert visit.set(explorer, "Is there a robot?", [Side(), Side("adafv", 20)])
    assert len(chosen) == 3 and not looks
    assert visit.sides[1].chosen is not right


def test_answers_go_with_what_they_were_answers_to(explorer, visit):
    visit.set(explorer, ASKED, [Side(), Side("adafv", 10)])
    assert len(list(visit.ask(explorer))) >= 2
    assert [shown.answer_text(one) for one in visit.sides] == ["yes", "yes"]
    visit.set(explorer, ASKED, [Side(), Side("cdpruner", 10)])
    assert [shown.answer_text(one) for one in visit.sides] == ["yes", ""]
    visit.set(explorer, "Is there a robot?", [Side(), Side("cdpruner", 10)])
    assert [shown.answer_text(one) for one in visit.sides] == ["", ""]
    list(visit.ask(explorer))
    visit.take_drawn(explorer, "scenes", 2)
    assert [one.told for one in visit.sides] == [None, None]


def test_a_side_that_fails_says_so_and_the_other_answers(explorer, visit):
    visit.set(explorer, ASKED, [Side("no-such-method", 10), Side("adafv", 10)])
    list(visit.ask(explorer))
    assert "unknown method 'no-such-method'" in visit.sides[0].note and visit.sides[0].told is None
    assert visit.sides[1].told.text == "yes" and not visit.sides[1].note
    assert "unknown method" in shown.figures_html(visit, visit.sides[0])


def test_methods_inside_the_language_model_show_what_they_kept_once_they_have(explorer, visit):
    visit.set(explorer, ASKED, [Side("fastv:layer=1", 60), Side("adafv", 10)])
    assert "ask, and see what it kept" in shown.figures_html(visit, visit.sides[0])
    list(visit.ask(explorer))
    pruner = foveate.get_pruner("fastv:layer=1", keep=0.6)
    (expected,) = visit.looked.session.ask(ASKED, pruner, max_new_tokens=8).selections
    assert visit.sides[0].chosen.selections[0].indices.tolist() == expected.indices.tolist()
    assert "fv-figure" in shown.figures_html(visit, visit.sides[0]) and not visit.sides[0].note


def test_bad_files_are_named_and_what_stood_there_stays(explorer, visit, tmp_path):
    visit.set(explorer, ASKED, [Side(), Side("adafv", 10)])
    before = visit.looked
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "good.png")
    with pytest.raises(ValueError, match=r"^bad\.png is not an image"):
        visit.take_files(explorer, [tmp_path / "good.png", tmp_path / "bad.png"])
    with pytest.raises(FileNotFoundError, match=r"no such image file: none\.png$"):
        visit.take_files(explorer, [tmp_path / "none.png"])
    assert visit.looked is before and visit.sides[1].chosen is not None
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert visit.take_files(explorer, [tmp_path / "two.gif"]) == "two.gif has 2 frames: only the first is used"
    assert shown.pictures_html(visit) == '<p class="fv-about">Asking about two.gif (40 × 30).</p>'
    visit.take_files(explorer, [])
    assert visit.looked is None
    with pytest.raises(ValueError, match="no picture yet"):
        list(visit.ask(explorer))
    with pytest.raises(ValueError, match="numbers from 0 to 9999"):
        visit.take_drawn(explorer, "scenes", -1)


def test_counters_are_those_of_the_answer(explorer, visit):
    visit.set(explorer, ASKED, [Side(), Side("adafv", 10)])
    before = shown.counters(visit, visit.sides[1])
    assert list(before) == ["patch tokens kept", "encoder, ms (once)"]
    list(visit.ask(explorer))
    told = shown.counters(visit, visit.sides[1])
    answer = visit.looked.session.ask(ASKED, foveate.AdaFV(keep=0.1), max_new_tokens=8)
    (selection,) = answer.selections
    assert told["patch tokens kept"] == f"{len(selection)} of {selection.total}"
    assert (told["visual tokens sent"], told["prompt, tokens"]) == (str(len(selection)), str(answer.prompt_tokens))
    assert told["answer, tokens"] == str(answer.new_tokens)
    assert {"prefill, ms", "KV cache, MiB", "ms per next token"} <= set(told)


def test_words_that_the_model_does_not_know_are_named(explorer, visit):
    visit.set(explorer, "Is there a quasar?", [Side(), Side()])
    said = "The model's vocabulary lacks quasar: the model does not know what that means and answers all the same."
    assert shown.warnings_of(explorer, visit) == said
    visit.set(explorer, "quasar qua qub quc qud que quf qug quh", [Side(), Side()])
    assert "lacks quasar, qua, qub, quc, qud, que, quf, qug, ...: the" in shown.warnings_of(explorer, visit)
    visit.set(explorer, ASKED, [Side(), Side()])
    assert shown.warnings_of(explorer, visit) == ""


@pytest.mark.parametrize("side", [Side(), Side("adafv:min_share=0.3", 12)])
def test_the_python_gives_the_same_answer(explorer, tmp_path, side, capsys, monkeypatch):
    get_world("scenes").draw(0, index=3).picture.save(tmp_path / "it's.png")
    monkeypatch.chdir(tmp_path)
    visit = Visit()
    visit.take_files(explorer, ["it's.png"])
    visit.set(explorer, AWKWARD, [side, Side()])
    list(visit.ask(explorer))
    exec(as_python(explorer, visit.sources, AWKWARD, side), {})
    assert capsys.readouterr().out == visit.sides[0].told.text + "\n"
    drawn = as_python(explorer, [Source.drawn("scenes", 3)], AWKWARD, side)
    exec(drawn, {})
    assert capsys.readouterr().out == visit.sides[0].told.text + "\n"


@pytest.mark.parametrize("side", [Side(), Side("adafv:min_share=0.3", 12)])
def test_the_curl_sends_what_a_server_takes(explorer, tmp_path, side):
    """Run by a shell, with a curl that writes down what it would have sent."""
    names = ["it's a.png", "-b.jpg"]
    for name in names:
        Image.fromarray(np.full((8, 8, 3), 90, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "curl").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments; cat > body\n')
    (tmp_path / "bin" / "curl").chmod(0o755)
    script = as_curl(explorer, [*map(Source, names), Source.drawn("scenes", 2)], AWKWARD, side)
    path = os.pathsep.join([str(tmp_path / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, env={**os.environ, "PATH": path})
    assert "http://localhost:8000/v1/chat/completions" in (tmp_path / "arguments").read_text()
    body = json.loads((tmp_path / "body").read_text(encoding="utf-8"))
    *images, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": AWKWARD}
    for name, image in zip([*names, "scenes-2.png"], images, strict=True):
        kind, _, data = image["image_url"]["url"].partition(";base64,")
        assert kind == f"data:image/{'jpeg' if name.endswith('jpg') else 'png'}"
        assert base64.b64decode(data) == (tmp_path / name).read_bytes()
    asked = body["mm_processor_kwargs"]["foveate"]
    served = re.search(r"^# foveate serve (\S+) --method (\S+) --keep (\S+)$", script, re.MULTILINE)
    assert served[1] == body["model"] == "bundled"
    wish = Policy(method=served[2], keep=float(served[3])).wish(asked)
    assert (wish.method, wish.keep.value) == (asked["method"], side.keep)


def test_the_export_holds_the_state(explorer, visit):
    with pytest.raises(ValueError, match="nothing to export yet"):
        shown.exported(explorer, Visit())
    visit.set(explorer, ASKED, [Side("fastv:layer=1", 60), Side("adafv", 10)])
    page = shown.exported(explorer, visit)
    assert page.count('class="fv-figure"') == 1 and "ask, and see what it kept" in page
    list(visit.ask(explorer))
    page = shown.exported(explorer, visit)
    assert page.count('class="fv-figure"') == 2 and page.count('<div class="answer">yes</div>') == 2
    assert "get_pruner(&#x27;fastv:layer=1&#x27;, keep=0.6)" in page and ASKED in page
