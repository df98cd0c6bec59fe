"""``foveate eval`` on clips: answers are those of a session about each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foveate
from foveate.cli import evaluate as command
from foveate.evaluation.clips import CLIPS
from foveate.evaluation.filmed import Filmed
from foveate.evaluation.runner import evaluate
from foveate.evaluation.suites import drawn_suite
from foveate.videos import load_video
from foveate.watching import watch
from tests.test_cli import call, refused
from tests.test_watching import dynamic


def test_answers_are_a_sessions(tmp_path: Path) -> None:
    """One batch about two clips, two about one: it does not matter."""
    suite = drawn_suite(CLIPS, tmp_path, 2, 3, "test")
    first = [item for item in suite.items if item.image == suite.items[0].image][:3]
    items = [*first, suite.items[-1]]
    model, processor = dynamic()
    engine = Filmed(model, processor)
    rows = evaluate(engine, items, ["uniform", "blind"], [0.2], tmp_path / "out", folder=suite.folder, batch=2)
    by_run = {(row.item, row.method): row for row in rows}
    for number, item in enumerate(items):
        session = watch(model, processor, load_video(suite.folder / item.image))
        for name, pruner in (("all", None), ("uniform", foveate.Uniform(keep=0.2))):
            answer = session.ask(item.question, pruner, max_new_tokens=8, do_sample=False)
            row = by_run[str(number), name]
            assert row.answer == answer.text and row.kept == len(answer.selections[0]) and row.latency_ms > 0
            parts = row.encoder_ms, row.selection_ms, row.prefill_ms
            assert min(parts) > 0 and sum(parts) < row.latency_ms
            assert row.total == answer.selections[0].total and row.encoded is None
        assert by_run[str(number), "blind"].encoder_ms == 0 < by_run[str(number), "blind"].prefill_ms
        assert by_run[str(number), "blind"].kept == 0 and by_run[str(number), "blind"].total == row.total
    with pytest.raises(ValueError, match="crops:amount=1:cover is for pictures"):
        evaluate(engine, items, ["crops:amount=1:cover"], [0.2], tmp_path / "other", folder=suite.folder)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_model", lambda *_: dynamic())
    where = ["--suite", "clips", "--count", 2, "--model", "dynamic", "--out", tmp_path]
    result = call("eval", *where, "--methods", "uniform", "--keep", "1.0,0.2", "--json")
    told = json.loads(result.stdout)
    assert told["settings"]["suite"] == "clips" and "warning" not in result.stderr
    assert (tmp_path / "report.md").is_file()


def test_what_is_refused() -> None:
    clips = ["eval", "--suite", "clips", "--count", 2]
    assert "the bundled model takes pictures only" in refused(*clips)
    assert "leave --engine out" in refused(*clips, "--model", "dynamic", "--engine", "vllm")
    assert "--pixels is for pictures" in refused(*clips, "--model", "dynamic", "--pixels", "0.5")
    assert "--crops is for pictures" in refused(*clips, "--model", "dynamic", "--crops", "0.5")
