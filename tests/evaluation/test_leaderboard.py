"""Results that are committed: their figures are those of ``foveate eval``, and what is wrong with one is named."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from foveate.cli import app
from foveate.cli.leaderboard import COMMITTED
from foveate.evaluation.leaderboard.board import board, boards
from foveate.evaluation.leaderboard.checked import check, find, read_all
from foveate.evaluation.leaderboard.pages import markdown, page
from foveate.evaluation.leaderboard.result import compact, decode, encode, public_name, write
from foveate.evaluation.metrics import METRICS, get_metric
from foveate.evaluation.report import plain_groups, summarise, world_groups
from foveate.evaluation.runner import SETTINGS_FILE, Row
from foveate.evaluation.scenes import SCENES
from foveate.evaluation.suites import Question, Suite

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).parent / "results" / "bundled-scenes" / "result.json"
"""``foveate eval --count 20 --methods adafv,cover,cdpruner,saliency,uniform,fastv:layer=1:budget=final,auto:cover,
ask-again:first=0.02:cover,blind --keep 1,0.25,0.1``, as it came out on a busy machine."""
RUNS = (
    ("all", 1.0, 0.9), ("cover", 0.25, 0.85), ("adafv", 0.25, 0.8), ("resize", 0.25, 0.5), ("cover", 0.1, 0.6),
    ("random", 0.1, 0.4), ("adafv", 64, 0.7), ("blind", 0, 0.2),
)  # fmt: skip


def questions(count: int = 120) -> list[SimpleNamespace]:
    rng = np.random.default_rng(0)
    return [
        SimpleNamespace(
            image=f"{place // 4}.png", question="?", answers=["yes" if place % 2 else "no"],
            kind=str(rng.choice(SCENES.kinds)), size=str(rng.choice(["small", "large"])), clutter=bool(place // 4 % 2),
        )
        for place in range(count)
    ]  # fmt: skip


def answered(items, wrong: str) -> list[Row]:
    """Rows whose chance of being right is the run's, and whose tokens are those of its budget."""
    rng = np.random.default_rng(1)
    rows = []
    for method, keep, share in RUNS:
        kept = round(200 * keep) if isinstance(keep, float) else keep
        for place, item in enumerate(items):
            answer = item.answers[0] if rng.random() < share else wrong
            name = getattr(item, "id", str(place))
            rows.append(Row(name, method, keep, item.question, answer, kept, 200, 10.0 + kept + place % 3))
    return rows


@pytest.fixture
def folder(tmp_path):
    """A results folder of random answers to questions as of scenes, and ``foveate eval``'s report of them."""
    return made(tmp_path / "drawn", Suite("scenes", tmp_path, questions(), world=SCENES), "perhaps")


def made(out: Path, suite: Suite, wrong: str, model: str = "org/model"):
    out.mkdir()
    settings = {"suite": "/home/me/asked.jsonl", "model_name": "/home/me/model", "items": "0a", "model": f"1b {model}"}
    settings |= {"split": "test", "count": 30, "seed": 0, "dtype": "float32", "device": "cpu", "max_new_tokens": 8}
    (out / SETTINGS_FILE).write_text(json.dumps(settings))
    rows = answered(suite.items, wrong)
    groups = world_groups(suite.world) if suite.world else plain_groups(suite.items)
    report = summarise(rows, suite.items, groups, metric=suite.metric, bootstrapped=suite.world is None)
    return SimpleNamespace(out=out, path=write(out, suite, rows, report, model, "transformers"), report=report)


def same(found, expected) -> bool:
    return found == expected or (not expected.count and found is None)


def test_figures_are_those_of_the_report(folder):
    (result,) = read_all([folder.path])
    told = board(result)
    assert told.groups == ("pooled", "overall", "unguessed", "group A")
    assert [table.keep for table in told.tables] == [0.25, 0.1, 64]
    lines = [line for table in told.tables for line in table.lines]
    assert {line.run.key for line in lines} == {(method, repr(keep)) for method, keep, _ in RUNS}
    for line in lines:
        for group in told.groups[:3]:
            expected = folder.report.cell(line.run.method, line.run.keep, group).estimate
            assert line.cells[group] == expected, (group, line.run.key)
        (run,) = (one for one in folder.report.runs if (one.method, repr(one.keep)) == line.run.key)
        in_time = folder.report.resized_in_time_of(run, "pooled")
        assert line.resize_in_time == pytest.approx(in_time, abs=1e-6, nan_ok=True)
        if line.run.method in ("cover", "adafv") and line.run.keep == 0.25:
            assert line.cells["group A"] == folder.report.cell(line.run.method, 0.25, "group A").estimate
        else:
            assert "group A" not in line.cells
    orders = [[line.run.method for line in table.lines] for table in told.tables]
    assert all(order[0] == "all" and order[-1] == "blind" for order in orders) and "resize" in orders[0]
    groups = {line.run.method: line.standing.group for line in told.tables[0].lines[1:-1]}
    assert groups["cover"] == groups["adafv"] == 1 and groups["resize"] == 2
    assert told.tables[0].lines[0].standing is None and told.tables[0].lines[-1].standing is None


def test_who_spends_more_than_the_budget_is_not_compared():
    told = {table.keep: table for table in board(read_all([SAMPLE])[0]).tables}
    names = {line.run.method: line.standing for line in told[0.1].lines}
    assert names["fastv:layer=1:budget=final"] is None and names["auto:cover"] is not None
    assert names["saliency"].group > names["cover"].group == 1


@pytest.mark.parametrize(
    "metric, answers, wrong",
    [("exact", ["red"], "no"), ("yesno", ["yes"], "no"), ("vqa", ["red"] * 2 + ["blue"] * 8, "red")],
)
def test_other_suites_and_metrics(tmp_path, metric, answers, wrong):
    items = [Question(f"{n // 2}.png", "?", answers if n % 3 else [wrong] * 10, str(n), "ab"[n % 2]) for n in range(40)]
    folder = made(tmp_path / "own", Suite("own", tmp_path, items, get_metric(metric)), wrong)
    (result,) = read_all([folder.path])
    told = board(result)
    assert told.groups[0] == "all" and result.suite == "own" and result.pictures == 20
    for table in told.tables:
        for line in table.lines:
            assert line.cells["all"] == folder.report.cell(line.run.method, line.run.keep, "all").estimate
    assert "mean of kinds" not in markdown([told]).split("| group |", 1)[1]


@pytest.mark.parametrize("name", METRICS)
def test_scores_come_back(name):
    metric = METRICS[name]
    answers = ["yes"] if name == "yesno" else ["yes"] * 3 + ["no"] * 7
    tallies = metric.tallies([(said, answers) for said in ("yes", "no", "yes", "maybe", "yesno")])
    told = json.loads(json.dumps(encode(tallies)))
    assert np.allclose(decode(told, metric), tallies, atol=1e-6)
    assert isinstance(told, str) is (name not in ("vqa", "anls"))


def test_nothing_of_the_machine_but_general_words(folder):
    text = folder.path.read_text()
    assert "/home" not in text and "asked.jsonl" not in text and '"org/model"' in text
    assert public_name(str(folder.out)) == folder.out.name and public_name("org/model") == "org/model"
    assert public_name("/somewhere/else/model") == "model"


def change(told, *path, value):
    *path, last = path
    for key in path:
        told = told[key]
    if value is None:
        del told[last]
    else:
        told[last] = value


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("format",), 99, "format 99 in place of 1"),
        (("machine",), None, "lacks machine"),
        (("machine",), " ", "machine must say"),
        (("model", "name"), None, "model lacks name"),
        (("versions", "torch"), None, "versions lacks torch"),
        (("metric",), "bleu", "unknown metric 'bleu'"),
        (("settings", "split"), None, "settings lack split"),
        (("questions", "picture"), [0], "1 of picture for 120 questions"),
        (("questions", "label"), [99] * 120, "label 99 of"),
        (("questions", "labels", 0), ["smell", "small", True, ""], "label ['smell', 'small', True, '']"),
        (("runs",), [], "runs must be a list"),
        (("runs", 1, "method"), "nope", "unknown method 'nope'"),
        (("runs", 1, "method"), "cover:nope=1", "cover has no option"),
        (("runs", 1, "keep"), 1.5, "1.5"),
        (("runs", 1, "scores"), "01", "2 scores for 120 questions"),
        (("runs", 1, "scores"), "2" * 120, "must be below 2"),
        (("runs", 1, "accuracy"), 0.99, "accuracy is 0.99, and from its scores follows 0."),
        (("runs", 1, "count"), 7, "count is 7, of 120"),
        (("runs", 1, "latency_ms"), float("nan"), "latency_ms must be a number"),
        (("runs", 1, "kept"), None, "lacks kept"),
        (("runs", 2), {"method": "cover", "keep": 0.25}, "stands there twice"),
        (("runs", 7), None, "lacks the run blind at 0: add blind to --methods"),
        (("runs", 7, "kept"), 3, "blind keeps 0 tokens"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, path, value, message):
    told = json.loads(folder.path.read_text())
    change(told, *path, value=value)
    folder.path.write_text(json.dumps(told))
    results, wrong = check([folder.path])
    assert not results and any(message in fault for fault in wrong), wrong
    assert all(fault.startswith(f"{folder.path}: ") for fault in wrong)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_all([folder.path])


def test_one_answer_turned_round_is_found(folder):
    told = json.loads(folder.path.read_text())
    core = next(
        n for n, label in enumerate(told["questions"]["label"]) if told["questions"]["labels"][label][0] in SCENES.core
    )
    scores = told["runs"][1]["scores"]
    told["runs"][1]["scores"] = scores[:core] + "10"[int(scores[core])] + scores[core + 1 :]
    folder.path.write_text(compact(told))
    assert "from its scores follows" in check([folder.path])[1][0]


def test_the_same_evaluation_twice_is_found(folder, tmp_path):
    other = tmp_path / "drawn-again"
    other.mkdir()
    (other / "result.json").write_text(folder.path.read_text())
    results, wrong = check(find([tmp_path]))
    assert len(results) == 1 and "the same model, suite and settings as" in wrong[0]
    made(tmp_path / "else", Suite("scenes", tmp_path, questions(), world=SCENES), "perhaps", "org/other")
    assert len(check(find([tmp_path / "drawn", tmp_path / "else"]))[0]) == 2


class Page(HTMLParser):
    """Rows of cells, and whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loaded: list[str] = []
        self.cell = False

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.cell = tag in ("td", "th", "button")

    def handle_endtag(self, tag):
        self.cell = False

    def handle_data(self, data):
        if self.cell and self.rows:
            self.rows[-1][-1] += data


def test_both_pages_say_the_same(folder):
    told = boards(read_all([SAMPLE, folder.path]))
    text, whole = markdown(told), page(told)
    assert (text, whole) == (markdown(boards(read_all([folder.path, SAMPLE]))), page(told))
    read = Page()
    read.feed(whole)
    assert not read.loaded and "http" not in whole and "<!-- " not in whole
    heads, *rows = read.rows
    assert len({len(row) for row in read.rows}) == 1
    assert len(rows) == sum(len(table.lines) + (not table.resized) for one in told for table in one.tables)
    cells = {(row[0], row[2], row[4]): dict(zip(heads, row, strict=True)) for row in rows}
    one = cells["bundled", "10 % of the tokens", "saliency"]
    line = f"| {one['group']} | `saliency` | {one['accuracy']} | {one['to the best']} | {one['mean of kinds']} |"
    assert line in text and one["accuracy"].startswith("84.9 [") and one["group"] == "2"
    assert "## bundled on scenes, 10 % of the tokens" in text and "## org/model on scenes, 64 tokens" in text
    assert cells["bundled", "10 % of the tokens", "resize"]["accuracy"] == "not run"
    assert cells["org/model", "25 % of the tokens", "resize"]["accuracy"] != "not run"
    tables = text.split("\n## ")[1:]
    assert all("resize" in table and "no picture" in table and "all tokens" in table for table in tables)


def test_parts_of_the_time_have_columns_where_they_were_measured(folder):
    told = json.loads(folder.path.read_text())
    told["runs"][1] |= {"encoder_ms": 12.34, "selection_ms": None}
    folder.path.write_text(compact(told))
    mine = boards(read_all([folder.path]))
    text, whole = markdown(mine), page(mine)
    assert "| ms | encoder, ms | resize in the same time |" in text and "selection, ms |" not in text
    assert next(line for line in text.splitlines() if "| `cover` |" in line).split(" | ")[-2] == "12.3"
    assert '<td class="number" data-value="12.34">12.3</td>' in whole


def call(*arguments, status=0):
    result = CliRunner().invoke(app, ["leaderboard", *map(str, arguments)])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def test_the_command(folder, tmp_path):
    out, html = tmp_path / "new" / "l.md", tmp_path / "l.html"
    call(SAMPLE.parent.parent, folder.out, "--out", out, "--page", html)
    assert out.read_text(encoding="utf-8") == markdown(boards(read_all([SAMPLE, folder.path])))
    assert "org/model" in html.read_text(encoding="utf-8")
    assert call(SAMPLE.parent).stdout == markdown(boards(read_all([SAMPLE])))
    assert "1 of 1 results are right" in call(SAMPLE.parent, "--check").stderr
    folder.path.write_text("{")
    assert f"{folder.path}: not JSON" in call(SAMPLE.parent, folder.out, "--check", status=1).stdout
    assert "holds no result.json" in call(tmp_path / "new", status=2).stderr
    assert "--check writes nothing" in call("--check", "--out", out, status=2).stderr


def test_committed_results_are_right_and_the_page_is_theirs():
    files = sorted((ROOT / COMMITTED).glob("*/result.json"))
    results, wrong = check([SAMPLE, *files])
    assert not wrong and len(results) == 1 + len(files)
    told = ROOT / "docs" / "leaderboard.md"
    assert told.exists() is bool(files), "foveate leaderboard --out docs/leaderboard.md"
    if files:
        expected = markdown(boards(read_all(files)))
        assert told.read_text(encoding="utf-8") == expected, "foveate leaderboard --out docs/leaderboard.md"
