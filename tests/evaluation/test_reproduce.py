"""``foveate reproduce``: what is asked, what is not asked again, and what stands beside it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveate.cli import app
from foveate.evaluation.reproduce.asking import LmmsEval, OwnWorlds, Score, Settings, plan
from foveate.evaluation.reproduce.papers import ADAFV
from foveate.evaluation.reproduce.table import Done, Reproduced
from foveate.evaluation.runner import Transformers, evaluate
from foveate.evaluation.suites import drawn_suite
from foveate.evaluation.worlds import WORLDS
from tests import checkpoint

ROOT = Path(__file__).parents[2]
NAMES = [task.name for task in ADAFV.tasks]
LMMS = """\
import json, os, pathlib, sys

told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
options = dict(part.split("=", 1) for part in told["--model_args"].split(","))
with open(os.environ["ASKED"], "a") as file:
    file.write(json.dumps({"options": options, **told}) + "\\n")
if options["method"] == os.environ.get("FAILS"):
    raise SystemExit("out of memory, it says")
keep = float(options.get("keep", 1))
metrics = {"gqa": "exact_match", "mme": "mme_perception_score", "pope": "pope_f1_score"}
scale = {"mme": 1500}
results = {
    task: {f"{metrics.get(task, 'pooled')},none": scale.get(task, 1) * (0.5 + keep / 4)}
    for task in told["--tasks"].split(",")
}
out = pathlib.Path(told["--output_path"]) / "model"
out.mkdir(parents=True, exist_ok=True)
counts = {task: {"original": 99, "effective": 7} for task in results}
(out / "2026_results.json").write_text(json.dumps({"results": results, "n-samples": counts}))
print(f"INFO foveate: kept {int(1000 * keep)} of 1000 visual tokens ({100 * keep} %)")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(checkpoint.save(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def lmms(tmp_path, monkeypatch):
    """A package that is called as lmms-eval is, answers at once, and writes down how it was called."""
    package = tmp_path / "site" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(LMMS)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.jsonl"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return lambda: [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]


@pytest.fixture
def without_lmms(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setattr("foveate.evaluation.reproduce.asking.find_spec", lambda name: None)


def call(*arguments, status=0):
    result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def test_own_worlds_are_asked_without_lmms_eval_and_only_once(folder, tmp_path, without_lmms):
    out = tmp_path / "out"
    options = ["adafv", "--model", folder, "--tasks", "scenes", "--methods", "adafv", "--limit", 6, "--batch-size", 3]
    options += ["--out", out, "--json"]
    first = call(*options)
    told = json.loads(first.stdout)
    assert [(line["method"], line["keep"]) for line in told["lines"]] == [
        ("all", 1.0), ("adafv", 0.25), ("adafv", 0.1), ("adafv", 0.05),
    ]  # fmt: skip
    assert all(line["scores"]["scenes"]["count"] == 6 and line["published_average"] is None for line in told["lines"])
    shares = [line["scores"]["scenes"]["share"] for line in told["lines"]]
    assert shares[0] == 1.0 and all(
        abs(share - keep) < 0.02 for share, keep in zip(shares[1:], (0.25, 0.1, 0.05), strict=True)
    )
    again = call(*options)
    assert again.stdout == first.stdout and "asking" in first.stderr and "asking" not in again.stderr
    (out / "lines" / "adafv-0.1.json").unlink()
    assert re.findall(r"asking (.*)", call(*options).stderr) == ["AdaV, as the paper says at 0.1: scenes"]
    assert "limit: 6 then, 7 now" in call(*options[:8], 7, *options[9:], status=2).stderr
    table = (out / "table.md").read_text()
    assert "| AdaV, as the paper says | 0.05 |" in table and " / - |" in table and "left out" in table


def test_own_worlds_give_the_figures_of_an_evaluation(tmp_path):
    """The bundled model has figures that are neither 0 nor 100."""
    from foveate import bundled

    model, processor = bundled.load()
    asking = OwnWorlds([], Settings("bundled", limit=24, batch=24), tmp_path, lambda name, dtype: (model, processor))
    line = next(one for one in ADAFV.lines if (one.method, one.keep) == ("saliency", 0.05))
    (task,) = plan(["scenes"], ADAFV, asking.settings, tmp_path)[0].tasks
    found = asking.scores(line, [task])["scenes"]
    suite = drawn_suite(WORLDS["scenes"], tmp_path, 24, 0, "test")
    items = suite.items[:24]
    rows = evaluate(Transformers(model, processor), items, ["saliency"], [0.05], tmp_path / "e", folder=suite.folder)
    right = [
        suite.metric.score(row.answer, items[int(row.item)].answers)
        for row in rows
        if row.method == "saliency" and items[int(row.item)].kind in WORLDS["scenes"].core
    ]
    assert found.value == pytest.approx(100 * sum(right) / len(right)) and 0 < found.value < 100
    assert found.count == 24


def test_what_the_model_cannot_do_is_left_out_with_its_reason(folder, tmp_path, without_lmms):
    """The tiny model's LLM has two layers, and FastV leaves none of them to be pruned."""
    options = ["adafv", "--model", folder, "--tasks", "scenes", "--methods", "fastv", "--limit", 6, "--out", tmp_path]
    result = call(*options)
    assert "left out: FastV at 0.25: fastv with layer=2 leaves none" in result.stderr and "FastV" not in result.stdout
    assert "all tokens" in result.stdout


def test_the_table_through_lmms_eval(tmp_path, lmms):
    out = tmp_path / "out"
    options = ["adafv", "--model", "org/model", "--tasks", "gqa,mme", "--methods", "adafv-released,saliency"]
    options += ["--out", out]
    told = json.loads(call(*options, "--limit", 7, "--json").stdout)
    asked = lmms()
    assert [one["options"]["method"] for one in asked] == ["all", *["adafv"] * 3, *["saliency"] * 3]
    assert asked[0]["options"] == {"pretrained": "org/model", "dtype": "auto", "method": "all"}
    assert asked[3]["options"] | {"keep": "0.05", "variant": "released", "layout": "released"} == asked[3]["options"]
    assert {(one["--model"], one["--tasks"], one["--limit"]) for one in asked} == {("foveate", "gqa,mme", "7")}
    last = told["lines"][3]
    assert last["scores"]["gqa"] == {"value": pytest.approx(51.25), "count": 7, "share": 0.05}
    assert last["scores"]["mme"]["value"] == pytest.approx(768.75)
    assert last["published"] == {"gqa": 58.53, "mme": 1452.91} and last["published_average"] is None
    assert last["average"] == pytest.approx(100 * 0.5125 / 0.75)
    printed = call(*options, "--limit", 7).stdout
    assert len(lmms()) == len(asked)  # nothing was asked again
    assert "51.25 / 58.53" in printed and "75.00 / 62.93" in printed and "768.75 / 1452.91" in printed
    call(*options[:4], "gqa,mme,pope", *options[5:], "--limit", 7)
    assert {one["--tasks"] for one in lmms()[len(asked) :]} == {"pope"}


def test_a_line_that_fails_keeps_no_other_from_being_asked(tmp_path, lmms, monkeypatch):
    out = tmp_path / "out"
    options = ["adafv", "--model", "org/model", "--tasks", "gqa", "--methods", "adafv,saliency", "--out", out]
    monkeypatch.setenv("FAILS", "adafv")
    failed = call(*options, status=1)
    assert "log.txt" in failed.stderr and "out of memory, it says" in failed.stderr and "saliency" in failed.stdout
    monkeypatch.delenv("FAILS")
    before = len(lmms())
    assert "as the paper says" in call(*options).stdout and len(lmms()) == before + 3
    monkeypatch.setenv("FAILS", "all")
    assert "lmms-eval failed on all tokens" in call(*options[:-1], tmp_path / "other", status=2).stderr


def test_drawn_worlds_as_tasks_of_lmms_eval(tmp_path, lmms):
    settings = Settings("bundled", limit=2, processes=2)
    (asking,) = plan(["foveate_scenes"], ADAFV, settings, tmp_path)
    assert isinstance(asking, LmmsEval)
    command = asking.command(ADAFV.lines[0], asking.tasks, tmp_path / "x")
    assert command[:5] == [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    assert command[command.index("--include_path") + 1] == str(tmp_path / "tasks")
    told = json.loads(
        call("adafv", "--model", "bundled", "--tasks", "foveate_scenes", "--methods", "saliency", "--limit", 2,
             "--out", tmp_path, "--json").stdout
    )  # fmt: skip
    assert told["lines"][0]["scores"]["foveate_scenes"]["value"] == 75.0
    assert (tmp_path / "tasks" / "scenes" / "foveate_scenes.yaml").is_file()


def test_what_cannot_be_asked_is_refused_before_anything_is(tmp_path, lmms):
    asked = ["adafv", "--model", "org/model", "--out", tmp_path / "out"]
    assert "unknown paper 'fastv'; known: adafv" in call("fastv", *asked[1:], status=2).stderr
    assert "unknown task 'vqa'" in call(*asked, "--tasks", "vqa", status=2).stderr
    assert "unknown method 'cover'" in call(*asked, "--tasks", "gqa", "--methods", "cover", status=2).stderr
    assert (
        "two of the tasks are MMBench" in call(*asked, "--tasks", ",".join(["mmbench_en_dev", *NAMES]), status=2).stderr
    )
    judged = call(*asked, status=2).stderr
    assert "mmvet" in judged and "OPENAI_API_KEY" in judged and ",".join(NAMES[:-1]) in judged
    assert not (tmp_path / "out").exists()


def test_without_lmms_eval_the_remedy_is_named(tmp_path, without_lmms):
    said = call("adafv", "--model", "org/model", "--tasks", "gqa", "--out", tmp_path / "out", status=2).stderr
    assert "lmms-eval==0.7.3" in said and "--tasks scenes,documents" in said and not (tmp_path / "out").exists()


def test_published_averages_stand_beside_the_paper_s_own_tasks_only():
    lines = [Done(line, {task.name: Score(50.0) for task in ADAFV.tasks}) for line in ADAFV.lines]
    whole = Reproduced(ADAFV, ADAFV.tasks, lines, {})
    cells = {(row[0], row[1]): row for row in whole.cells()}
    assert cells["AdaV, as released", "0.05"][-2:] == ["100.00", "94.35"]
    assert cells["SparseVLM", "0.05"][-2:] == ["100.00", "-"]
    assert Reproduced(ADAFV, ADAFV.tasks[:3], lines, {}).cells()[1][-1] == "-"
    for done in lines[1:]:  # nothing is relative to what was not measured
        assert Reproduced(ADAFV, ADAFV.tasks, [done], {}).cells()[1][-2] == "-"


def test_published_figures_are_those_of_the_page():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    average = {(line.title, line.keep): line.average for line in ADAFV.lines}
    rows = re.findall(r"^\| \d+ % \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page, re.M)
    assert len(rows) == 3
    for tokens, *told in rows:
        keep = int(tokens) / 2880
        mine = [average[title, keep] for title in ("AdaV, as released", "saliency alone (FasterVLM)", "FastV")]
        assert mine == [float(one) for one in told]
    least = next(line.figures for line in ADAFV.lines if line.slug == "adafv-released-0.05")
    text = " ".join(page.split())
    for title, whole in ADAFV.lines[0].figures.items():
        assert f"{title} {least[title]:.2f} ({whole:.2f})" in text
