"""Answers without the picture, what they leave to be asked, and what downsampling gets wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from PIL import Image

import foveate
from foveate.evaluation.engines import Item
from foveate.evaluation.plots import plot
from foveate.evaluation.report import GROUP_A, UNGUESSED, Group, Report, Stratum, plain_groups, summarise
from foveate.evaluation.runner import ALL, Row, Transformers, evaluate, factory
from foveate.evaluation.saving import tables
from foveate.evaluation.suites import Question
from foveate.evaluation.vllm_engine import servable
from foveate.inputs import question_prompt
from foveate.resizing import Counts
from tests.dynamic import pair, picture

QUESTIONS = ("is there a cat", "what is red", "how many are there")


@pytest.fixture
def asked(tmp_path: Any) -> list[Question]:
    for number, size in enumerate([(112, 84), (60, 112)]):
        picture(number, *size).save(tmp_path / f"{number}.png")
    return [Question(f"{n}.png", q, ["cat"], f"{n}-{q}") for n in range(2) for q in QUESTIONS]


@pytest.mark.parametrize("few", [False, True])  # by picture, and across pictures
def test_it_is_the_model_on_text_alone(few: bool, asked: list[Question], tmp_path: Any) -> None:
    model, processor = pair("qwen2_5_vl")
    items = asked[::3] if few else asked
    rows = evaluate(
        Transformers(model, processor), items, ["blind", "saliency"], [0.5], tmp_path / "out", folder=tmp_path,
        max_new_tokens=3, batch=2,
    )  # fmt: skip
    assert {(row.method, row.keep) for row in rows} == {("all", 1.0), ("blind", 0), ("saliency", 0.5)}
    counts = Counts.of(model, processor)
    for row in rows:
        if row.method != "blind":
            continue
        (item,) = (one for one in items if one.id == row.item)
        inputs = processor(text=[question_prompt(processor, item.question, 0)], return_tensors="pt")
        assert "pixel_values" not in inputs
        stock = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert row.answer == processor.tokenizer.decode(stock, skip_special_tokens=True).strip()
        with Image.open(tmp_path / item.image) as opened:
            assert (row.kept, row.total, row.tokens_encoded) == (0, counts.patches(opened.size), 0)


def test_what_it_is_not() -> None:
    with pytest.raises(ValueError, match="blind has no options"):
        factory("blind:keep=0")
    with pytest.raises(ValueError, match="foveate eval"):
        foveate.get_pruner("blind")
    with pytest.raises(ValueError, match="use --engine transformers"):
        servable("blind")


def made(right: dict[tuple[str, float | int], str], ms: dict[tuple[str, float | int], float] | None = None) -> Report:
    """A report on eight questions; ``right`` has a 1 for every one that a run answered rightly."""
    items: list[Item] = [Question(f"{n // 2}.png", "q", ["yes"], str(n)) for n in range(8)]
    rows = [
        Row(str(n), method, keep, "q", "yes" if mark == "1" else "no", 1, 10, (ms or {}).get((method, keep), 5.0))
        for (method, keep), marks in right.items()
        for n, mark in enumerate(marks)
    ]
    return summarise(rows, items, plain_groups(items), paired_groups=["all"])


RUNS: dict[tuple[str, float | int], str] = {
    (ALL, 1.0): "11111100",
    ("adafv", 0.5): "11110000",
    ("adafv", 0.1): "10011000",
    ("resize", 0.5): "11000011",
    ("resize", 0.1): "10000001",
    ("blind", 0): "10000010",
}


def test_what_is_not_guessed() -> None:
    report = made(RUNS)
    assert report.groups == ("all", UNGUESSED, GROUP_A)
    wanted = {run: sum(map(int, marks[1:6] + marks[7])) / 6 for run, marks in RUNS.items()}
    for (method, keep), share in wanted.items():
        assert report.cell(method, keep, UNGUESSED).estimate.value == pytest.approx(share)
        assert report.cell(method, keep, UNGUESSED).estimate.count == 6
    assert UNGUESSED not in made({run: RUNS[run] for run in RUNS if run[0] != "blind"}).groups


def test_what_downsampling_gets_wrong() -> None:
    """Of the six that all tokens have right, at 0.5 the four behind the second, at 0.1 the five behind the first."""
    report = made(RUNS)
    for keep, marks, asked in ((0.5, "1100", 4), (0.1, "00110", 5)):
        cell = report.cell("adafv", keep, GROUP_A)
        assert (cell.estimate.count, cell.estimate.value) == (asked, pytest.approx(marks.count("1") / len(marks)))
        assert cell.relative == cell.estimate.value
    for nothing in ((ALL, 1.0), ("resize", 0.5), ("blind", 0)):
        assert report.cell(*nothing, GROUP_A).estimate.count == 0
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert any(one["group"] == GROUP_A and one["value"] is None for one in told["accuracy"])
    lines = tables(report, ["all", UNGUESSED, GROUP_A]).splitlines()
    assert "| `resize` | 10% | 1 | 25.0 [7.1, 59.1] | 16.7 |  |" in "\n".join(lines)
    assert "nan" not in "\n".join(lines)
    plot(report, ["all", GROUP_A])


def test_in_the_same_time() -> None:
    """All tokens take 20 ms, smaller pictures 10 and 4: a run of 7 is half way between these two."""
    took = {(ALL, 1.0): 20.0, ("resize", 0.5): 10.0, ("resize", 0.1): 4.0, ("adafv", 0.5): 7.0, ("adafv", 0.1): 3.0}
    report = made(RUNS, took)
    runs = {(run.method, run.keep): run for run in report.runs}
    assert report.resized_in_time_of(runs["adafv", 0.5], "all") == pytest.approx((4 / 8 + 2 / 8) / 2)
    for run in (("adafv", 0.1), ("resize", 0.5), (ALL, 1.0), ("blind", 0)):  # quicker than any; no method
        assert math.isnan(report.resized_in_time_of(runs[run], "all"))
    told = {(one["method"], one["keep"]): one for one in report.as_dict()["runs"]}
    assert told["adafv", 0.5]["resize_in_same_time"]["all"] == pytest.approx(0.375)
    assert told["adafv", 0.1]["resize_in_same_time"]["all"] is None
    assert "resize, same ms" in tables(report, ["all"])
    without = made({run: RUNS[run] for run in RUNS if run[0] != "resize"})
    assert "resize" not in tables(without, ["all"]) and "resize_in_same_time" not in without.as_dict()["runs"][0]


def test_without_the_picture_of_a_group_with_strata() -> None:
    group = Group("both", (Stratum("even", lambda item: int(item.id) % 2 == 0), Stratum("odd", lambda item: True)))
    items: list[Item] = [Question("a.png", "q", ["yes"], str(n)) for n in range(4)]
    rows = [Row(str(n), m, k, "q", "yes", 1, 9, 1.0) for m, k in ((ALL, 1.0), ("blind", 0)) for n in range(4)]
    report = summarise(rows, items, [group])
    assert report.cell("blind", 0, "both").estimate.value == 1.0
    assert report.cell(ALL, 1.0, UNGUESSED).estimate.count == 0
