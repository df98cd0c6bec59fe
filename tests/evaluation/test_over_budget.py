"""Budgets that smaller pictures cannot meet: the smallest there is, its tokens, and a mark wherever the row stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import foveate
from foveate.benchmarks import accuracy
from foveate.cli.evaluate import USUAL, Request, _accuracy, _paired, _spread
from foveate.evaluation.engines import Item
from foveate.evaluation.leaderboard.board import board
from foveate.evaluation.leaderboard.checked import check, read_all
from foveate.evaluation.leaderboard.pages import markdown, page
from foveate.evaluation.leaderboard.result import write
from foveate.evaluation.metrics import EXACT
from foveate.evaluation.plots import plot
from foveate.evaluation.report import GROUP_A, plain_groups, summarise
from foveate.evaluation.runner import ALL, SETTINGS_FILE, Row, Transformers, evaluate, fingerprint, write_parquet
from foveate.evaluation.saving import tables
from foveate.evaluation.suites import Question, Source, Suite
from foveate.resizing import Resize
from tests import checkpoint
from tests.dynamic import pair, picture
from tests.tiny import ROWS

QUESTIONS = ("is there a cat", "what is red", "how many are there")
LEAST = 9
"""Tokens of a picture below which the model enlarges it."""


@pytest.fixture
def asked(tmp_path: Path) -> list[Question]:
    for number, size in enumerate([(200, 200), (90, 90)]):
        picture(number, *size).save(tmp_path / f"{number}.png")
    return [Question(f"{n}.png", q, ["cat"], f"{n}-{q}") for n in range(2) for q in QUESTIONS]


def enlarging() -> tuple[Any, Any]:
    """As Qwen-VL ships: pictures of few pixels are enlarged."""
    model, processor = pair("qwen2_5_vl")
    images = processor.image_processor
    images.size = {"shortest_edge": LEAST * 28 * 28, "longest_edge": (40 * 28) ** 2}
    return model, processor


@pytest.mark.parametrize("few", [False, True])  # by picture, and across pictures
def test_the_smallest_picture_is_asked_about(few: bool, asked: list[Question], tmp_path: Path) -> None:
    model, processor = enlarging()
    items = asked[::3] if few else asked
    rows = evaluate(
        Transformers(model, processor), items, ["saliency", "resize"], [0.5, 0.1], tmp_path / "out", folder=tmp_path,
        max_new_tokens=3, batch=2,
    )  # fmt: skip
    fewest = {}
    for number, side in enumerate([200, 90]):
        looks = [foveate.look(model, processor, picture(number, n, n)).images[0].tokens for n in range(side, 7, -3)]
        fewest[f"{number}.png"] = min(map(len, looks))
    assert min(fewest.values()) >= LEAST
    over = set()
    for row in rows:
        (item,) = (one for one in items if one.id == row.item)
        if row.method != "resize":
            assert not row.over_budget
            continue
        allowed = -(-row.total * round(10 * row.keep) // 10)
        assert row.kept == row.encoded and row.over_budget is (row.kept > allowed)
        assert row.kept == fewest[item.image] if row.over_budget else row.kept <= allowed
        over.add((item.image, row.keep, row.over_budget, row.kept == row.total))
        with Image.open(tmp_path / item.image) as opened:
            size = Resize(row.keep, or_fewest=True).size(opened.size, Transformers(model, processor).counts)
            small = opened.resize(size, Image.Resampling.LANCZOS) if size != opened.size else opened.copy()
        answer = foveate.look(model, processor, small).ask(item.question, max_new_tokens=3, do_sample=False)
        assert (answer.text, answer.visual_tokens) == (row.answer, row.kept)
    # Of the larger one half is within reach and a tenth is not; the smaller one has the fewest already and stays.
    assert over == {
        ("0.png", 0.5, False, False), ("0.png", 0.1, True, False), ("1.png", 0.5, True, True),
        ("1.png", 0.1, True, True),
    }  # fmt: skip


def test_of_a_model_with_one_resolution_it_is_all_tokens(asked: list[Question], tmp_path: Path) -> None:
    """LLaVA-1.5: the picture as it is, so every answer is that of all tokens, and group A has no question."""
    engine = Transformers(ROWS["llava-clip"].make("sdpa"), checkpoint.llava_processor())
    rows = evaluate(engine, asked, ["saliency", "resize"], [0.25], tmp_path / "out", folder=tmp_path, max_new_tokens=3)
    by = {(row.item, row.method): row for row in rows}
    for item in asked:
        whole, small = by[item.id, ALL], by[item.id, "resize"]
        assert (small.answer, small.kept, small.total) == (whole.answer, whole.kept, whole.total)
        assert small.over_budget and not by[item.id, "saliency"].over_budget
    report = summarise(rows, asked, plain_groups(asked))
    assert report.cell("saliency", 0.25, GROUP_A).estimate.count == 0
    assert report.legend.endswith("resize is all tokens there, and leaves group A no question.")


MARKS = {
    (ALL, 1.0): "11111100", ("adafv", 0.5): "11110000", ("adafv", 0.1): "10011000", ("resize", 0.5): "11000011",
    ("resize", 0.1): "10000001", ("blind", 0): "10000010",
}  # fmt: skip
KEPT = {("blind", 0): [0] * 8, ("resize", 0.5): [3, 3, 3, 5, 5, 5, 5, 7], ("resize", 0.1): [3, 3, 3, 5, 5, 5, 5, 7]}
"""Tokens of 10: at 0.5 one question is over the budget, at 0.1 all are."""


def answered() -> tuple[list[Item], list[Row]]:
    items: list[Item] = [Question(f"{n // 2}.png", "q", ["yes"], str(n)) for n in range(8)]
    rows = [
        Row(str(n), method, keep, "q", "yes" if mark == "1" else "no", KEPT.get((method, keep), [1] * 8)[n], 10, 5.0)
        for (method, keep), marks in MARKS.items()
        for n, mark in enumerate(marks)
    ]
    return items, rows


def test_rows_are_marked_and_group_a_is_what_the_smallest_picture_gets_wrong(tmp_path: Path) -> None:
    items, rows = answered()
    report = summarise(rows, items, plain_groups(items), [("adafv", "resize")], ["all"])
    assert [run.over_budget for run in report.runs] == [0, 0, 0, 1, 8, 0]
    titles = ["resize (over budget for 12 %)", "resize (over budget)"]
    assert [run.title for run in report.runs if run.method == "resize"] == titles
    cell = report.cell("adafv", 0.1, GROUP_A)  # of the six that all tokens have right, all but the first
    assert (cell.estimate.count, cell.estimate.value) == (5, pytest.approx(2 / 5))
    for text in (report.legend, json.loads(json.dumps(report.as_dict()))["note"]):
        assert "the model makes more tokens of it than the budget says" in text and "group A is what" in text
    assert "at 50%: 1 of 8 questions, 4.5 of 10.0 tokens on average; resize at 10%: 8 of 8" in report.legend
    told = {(run["method"], run["keep"]): run["over_budget"] for run in report.as_dict()["runs"]}
    assert told == {run: {("resize", 0.5): 1, ("resize", 0.1): 8}.get(run, 0) for run in MARKS}
    text = tables(report, ["all", GROUP_A])
    assert "| `resize` (over budget) | 10% | 4 |" in text and "\nOver budget: however small" in text
    assert "| all | 50% | `adafv` | `resize` (over budget for 12 %) |" in text
    assert set(titles) < set(_accuracy(report, "", report.groups).columns[0].cells)
    assert set(titles) < {one for column in _paired(report).columns for one in column.cells}
    figure = plot(report, ["all"])
    assert "resize (over budget)" in figure.axes[0].get_legend_handles_labels()[1]
    within = summarise([row for row in rows if row.method != "resize"], items, plain_groups(items))
    assert not within.legend and "over budget" not in tables(within, ["all"])


def test_in_the_table_of_answers(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    items, rows = answered()
    told = pq.read_table(write_parquet(rows, items, EXACT, tmp_path / "a.parquet")).to_pylist()
    over = [one["kept"] for one in told if one["over_budget"]]
    assert over == [7, *KEPT["resize", 0.1]] and {one["method"] for one in told if one["over_budget"]} == {"resize"}


def test_labels_of_the_plot_keep_apart() -> None:
    """Smaller pictures have a few tokens fewer than methods keep: 24 and 25 of 100 share a label, 9 has its own."""
    items: list[Item] = [Question("0.png", "q", ["yes"], "0")]
    spent = (ALL, 1.0, 100), ("adafv", 0.25, 25), ("resize", 0.25, 24), ("resize", 0.1, 9)
    rows = [Row("0", method, keep, "q", "yes", kept, 100, 5.0) for method, keep, kept in spent]
    axes = plot(summarise(rows, items, plain_groups(items)), ["all"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["9", "24"]


def test_on_the_leaderboard(tmp_path: Path) -> None:
    items, rows = answered()
    out = tmp_path / "made"
    out.mkdir()
    (out / SETTINGS_FILE).write_text(json.dumps({"items": "0a", "model": "1b", "dtype": "float32", "device": "cpu"}))
    suite = Suite("made", tmp_path, tuple(items))
    report = summarise(rows, items, plain_groups(items), bootstrapped=True)
    path = write(out, suite, rows, report, "org/model", "transformers")
    found = board(read_all([path])[0])
    text, whole = markdown([found]), page([found])
    for mark in ("(over budget for 12 %)", "(over budget)"):
        assert f"`resize` {mark} |" in text and f"<td>resize {mark}</td>" in whole
    assert "- *resize, over budget*: however small" in text and "<dt>resize, over budget</dt>" in whole
    standings = {line.run.key: line.standing for table in found.tables for line in table.lines}
    assert standings["resize", "0.1"] is None and standings["resize", "0.5"] is not None
    (line,) = (line for line in found.tables[1].lines if line.run.method == "adafv")
    assert line.cells[GROUP_A] == report.cell("adafv", 0.1, GROUP_A).estimate
    told = json.loads(path.read_text(encoding="utf-8"))
    for wrong in (-1, 9, "all", True):
        told["runs"][-2]["over_budget"] = wrong
        path.write_text(json.dumps(told), encoding="utf-8")
        assert "over_budget must be how many of the 8 questions" in check([path])[1][0]
    for run in told["runs"]:  # as older versions wrote it
        del run["over_budget"]
    path.write_text(json.dumps(told), encoding="utf-8")
    assert "(over budget" not in markdown([board(read_all([path])[0])])


def test_no_time_is_drawn_under_an_accuracy_of_more_tokens(tmp_path: Path) -> None:
    items, rows = answered()
    report = summarise(rows, items, plain_groups(items))
    model = ROWS["llava-clip"].make("sdpa")
    (tmp_path / "report.json").write_text(json.dumps(report.as_dict()), encoding="utf-8")
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({"model": fingerprint(model)}), encoding="utf-8")
    methods = {(method, keep) for method, keep, _ in accuracy.read(tmp_path, model).figures}
    assert methods == {(method, repr(keep)) for method, keep in MARKS if method != "resize"}


def test_it_is_run_unless_methods_are_named_but_not_of_clips() -> None:
    def usual(suite: str, methods: str | None = None) -> list[str]:
        given = None, None, None, False, "auto", 1, None, None, "transformers", []
        return _spread(Request(Source(suite, 4, 0), methods, *given), [1.0, 0.1])  # type: ignore[arg-type]

    assert "resize" in USUAL and "resize" in usual("documents")
    assert "resize" not in usual("clips") and "blind" in usual("clips")
    assert usual("scenes", "adafv") == ["adafv"]
