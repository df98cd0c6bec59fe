"""Where an answer's time goes, on a clock that encoder, choice and language model move by amounts of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.evaluation import report as reporting
from foveate.evaluation import runner, saving
from foveate.evaluation.blind import Blind
from foveate.evaluation.runner import Row, Transformers, evaluate
from foveate.evaluation.suites import Question
from foveate.stopwatch import Stopwatch, stage, timing
from tests import checkpoint

ENCODER, CHOICE, INSIDE, PREFILL, STEP = 7.0, 5.0, 2.0, 3.0, 1.0
"""Seconds of one picture in the tower, one choice, one stage inside the LLM, and what the LLM takes."""
NEW = 3


class Slow(foveate.Uniform):
    clock: list[float]

    def choose(self, *args: Any) -> Any:
        self.clock[0] += CHOICE
        return super().choose(*args)


class SlowInside(foveate.FastV):
    clock: list[float]

    def cut(self, *args: Any) -> Any:
        self.clock[0] += INSIDE
        return super().cut(*args)


@dataclass
class Clocked:
    engine: Transformers
    clock: list[float]

    def slow(self, keep: float | int, picture: int) -> foveate.Uniform:
        made = Slow(keep=keep)
        made.clock = self.clock
        return made

    def inside(self, keep: float | int, picture: int) -> foveate.FastV:
        made = SlowInside(keep=keep, layer=1)
        made.clock = self.clock
        return made

    def ask(self, out: Path, folder: Path, items: list[Question], **options: Any) -> dict[str, list[Row]]:
        methods = {"slow": self.slow, "inside": self.inside, "blind": lambda keep, picture: Blind()}
        rows = evaluate(self.engine, items, methods, [0.6], out, folder=folder, max_new_tokens=NEW, **options)
        return {name: [row for row in rows if row.method == name] for name in ("all", *methods)}


@pytest.fixture(scope="module")
def clocked() -> Iterator[Clocked]:
    model, processor = checkpoint.model(), checkpoint.processor()
    model.generation_config.eos_token_id = None  # every answer has NEW tokens
    clock = [0.0]

    def tower(module: Any, args: Any) -> None:
        clock[0] += ENCODER

    def decoder(module: Any, args: Any, given: dict[str, Any]) -> None:
        clock[0] += PREFILL if given["inputs_embeds"].shape[1] > 1 else STEP

    model.model.vision_tower.register_forward_pre_hook(tower)
    model.get_decoder().register_forward_pre_hook(decoder, with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_now", lambda model: clock[0])
        yield Clocked(Transformers(model, processor), clock)


def pictures(folder: Path, count: int, each: int) -> list[Question]:
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    asked = ["Is there a cat?", "How many?", "Is there a dog?"]
    return [Question(f"{n}.png", asked[q], ["yes"], f"{n}-{q}") for n in range(count) for q in range(each)]


def times(row: Row) -> tuple[float | None, ...]:
    return row.encoder_ms, row.selection_ms, row.prefill_ms, row.latency_ms


def test_questions_about_one_picture(clocked: Clocked, tmp_path: Path) -> None:
    """They share what their batch took, and each of them pays for the tower."""
    rows = clocked.ask(tmp_path / "out", tmp_path, pictures(tmp_path, 2, 3), batch=3)
    steps = (NEW - 1) * STEP
    expected = {
        "all": (ENCODER, 0, PREFILL / 3, ENCODER + (PREFILL + steps) / 3),
        "slow": (ENCODER, CHOICE, PREFILL / 3, ENCODER + CHOICE + (PREFILL + steps) / 3),
        "inside": (ENCODER, INSIDE, PREFILL / 3, ENCODER + INSIDE + (PREFILL + steps) / 3),
        "blind": (0, 0, PREFILL / 3, (PREFILL + steps) / 3),
    }
    for name, seconds in expected.items():
        assert len(rows[name]) == 6
        for row in rows[name]:
            assert times(row) == pytest.approx([1e3 * value for value in seconds]), name


def test_batches_across_pictures(clocked: Clocked, tmp_path: Path) -> None:
    rows = clocked.ask(tmp_path / "out", tmp_path, pictures(tmp_path, 4, 1), batch=2)
    for row in rows["slow"]:  # the tower runs once for both pictures
        steps = (NEW - 1) * STEP
        seconds = (ENCODER / 2, CHOICE, PREFILL / 2, (ENCODER + PREFILL + steps) / 2 + CHOICE)
        assert times(row) == pytest.approx([1e3 * value for value in seconds])


def test_asking_again_counts_both_passes(clocked: Clocked, tmp_path: Path) -> None:
    items = pictures(tmp_path, 1, 3)
    twice = foveate.AskAgain(clocked.slow(0.1, 0), clocked.slow(0.5, 0), margin=1.0)
    (*_, row) = evaluate(
        clocked.engine, items, {"twice": lambda keep, picture: twice}, [0.6], tmp_path / "out", folder=tmp_path,
        max_new_tokens=NEW,
    )  # fmt: skip
    assert row.method == "twice" and times(row)[:3] == pytest.approx([7e3, 10e3, 2e3])


def test_only_who_measures_reads_the_clock() -> None:
    """Stages are of one thread's own block; elsewhere they are nothing."""
    reads: list[str] = []
    watch = Stopwatch(lambda: reads.append(threading.current_thread().name) or float(len(reads)))  # type: ignore[func-returns-value]
    with stage("encoder"), stage("selection"):
        assert not reads

    def other() -> None:
        with stage("selection"):
            pass

    with timing(watch), stage("encoder"):
        thread = threading.Thread(target=other, name="other")
        thread.start()
        thread.join()
    with stage("prefill"):
        pass
    assert "other" not in reads and len(reads) == 4
    assert watch.taken == {"encoder": 1, "selection": 0, "prefill": 0, "decode": 0, "rest": 2}


def test_reports_carry_medians(tmp_path: Path) -> None:
    items = pictures(tmp_path, 1, 3)
    rows = [
        Row(item.id, name, keep, "q", "yes", 3, 10, 9.0, None, *((1.0, taken, 2 * taken) if timed else ()))
        for name, keep, timed in (("all", 1.0, True), ("cover", 0.3, True), ("old", 0.3, False))
        for item, taken in zip(items, (0.25, 0.5, 30.0), strict=True)
    ]
    made = reporting.summarise(rows, items, reporting.plain_groups(items))
    whole, cover, old = made.runs
    assert (cover.encoder_ms, cover.selection_ms, cover.prefill_ms) == (1.0, 0.5, 1.0) == times_of(whole)
    assert times_of(old) == (None, None, None)
    told = [line.split("|")[-5:-1] for line in saving.tables(made, ["all"]).splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line] for line in told] == [
        ["ms", "encoder ms", "selection ms", "prefill ms"], ["---"] * 4,
        ["9", "1.0", "0.50", "1.0"], ["9", "1.0", "0.50", "1.0"], ["9", "", "", ""],
    ]  # fmt: skip
    assert made.as_dict()["runs"][2]["selection_ms"] is None
    untimed = reporting.summarise([row for row in rows if row.method == "old"], items, reporting.plain_groups(items))
    assert untimed.stages == () and "encoder" not in saving.tables(untimed, ["all"])


def times_of(run: reporting.Run) -> tuple[float | None, ...]:
    return run.encoder_ms, run.selection_ms, run.prefill_ms


@pytest.mark.parametrize("metric", ["exact", "anls", "yesno"])
@pytest.mark.parametrize("answer", ["yes", "?"])
def test_no_interval_is_without_width(tmp_path: Path, metric: str, answer: str) -> None:
    """Answers that are all alike are not sure: five pictures may all be right where one in three is wrong."""
    from foveate.evaluation.metrics import METRICS

    items = [Question(f"{n % 5}.png", "q", ["yes"], str(n)) for n in range(10)]
    rows = [
        Row(item.id, name, keep, "q", answer, 3, 10, 9.0)
        for name, keep in (("all", 1.0), ("cover", 0.3))
        for item in items
    ]
    groups = reporting.plain_groups(items)
    made = reporting.summarise(rows, items, groups, [], ["all"], METRICS[metric], bootstrapped=True)
    estimate = made.cell("cover", 0.3, "all").estimate
    assert estimate.value == (answer == "yes") and estimate.high - estimate.low == pytest.approx(
        1.96**2 / (5 + 1.96**2), rel=1e-3
    )
    (pair,) = made.pairs
    assert (pair.difference.low, pair.difference.high) == pytest.approx((-0.4345, 0.4345), abs=1e-3)


def test_bounds_that_round_alike_get_more_digits() -> None:
    assert saving.bounds(0.9985, 1.0, 0) == ("99.9", "100.0") and saving.bounds(0.5, 0.6, 0) == ("50", "60")
    assert saving.bounds(-0.00004, 0.00004, 1, "+") == ("-0.004", "+0.004")
