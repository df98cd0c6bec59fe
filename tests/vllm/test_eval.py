"""``foveate eval --engine vllm``: the same questions get the answers that they get with transformers."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor
from typer.testing import CliRunner

from foveate import bundled
from foveate.cli import app
from foveate.evaluation.runner import ROWS_FILE, Transformers, evaluate
from foveate.evaluation.suites import Source
from foveate.tokens import Keep
from tests.vllm.engines import ENVIRONMENT

COUNT = 12
"""Pictures; each has about six questions."""
METHODS = ["adafv", "text", "uniform"]
KEEPS = [1.0, 0.25, 16]
OPTIONS = ["--enforce-eager", "--max-model-len", "1024", "--limit-mm-per-prompt", '{"image": 1}']


class Killed(BaseException):
    pass


def _kill(done: int, total: int) -> None:
    if done >= total // 2:
        raise Killed


def ask(engine: Any, folder: Path, out: Path, **options: Any) -> list[Any]:
    suite = Source(count=COUNT).open(folder)
    return evaluate(engine, suite.items, METHODS, KEEPS, out, folder=suite.folder, batch=24, **options)


def _child(pipe: Any, folder: Path) -> None:
    """One engine for all: a run that is killed, the same gone on with, and the command."""
    os.environ.update(ENVIRONMENT)
    from foveate.evaluation import vllm_engine

    engine = vllm_engine.Vllm.start("bundled", METHODS, "auto", OPTIONS)
    try:
        ask(engine, folder / "suite", folder / "rows", progress=_kill)
    except Killed:
        before = (folder / "rows" / ROWS_FILE).read_text(encoding="utf-8").splitlines()
    rows = ask(engine, folder / "suite", folder / "rows")
    after = (folder / "rows" / ROWS_FILE).read_text(encoding="utf-8").splitlines()

    started: list[Any] = []

    def start(*given: Any) -> Any:
        started.append(given)
        return engine

    vllm_engine.Vllm.start = start
    engine.close = lambda: started.append("closed")
    words = [
        "eval",
        "--engine",
        "vllm",
        "--methods",
        ",".join(METHODS),
        "--keep",
        "1.0,0.25,16t",
        "--count",
        str(COUNT),
    ]
    words += ["--json", "--out", str(folder / "command"), "--", *OPTIONS]
    told = CliRunner().invoke(app, words)
    pipe.send(([vars(row) for row in rows], before, after, started, told.exit_code, told.stdout, told.stderr))


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("eval")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, folder))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    finally:
        process.join(30)
        process.kill()
    return folder, found


def stable(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith("_ms")}


def test_answers_are_those_of_transformers(answered: tuple[Path, Any], tmp_path: Path) -> None:
    folder, (rows, *_) = answered
    # The processor that vLLM loads: torchvision's resizing, where that is installed, gives other pixels than Pillow's.
    processor = AutoProcessor.from_pretrained(bundled.path(), local_files_only=True)
    expected = ask(Transformers(bundled.load()[0], processor), folder / "suite", tmp_path)
    assert [stable(row) for row in rows] == [stable(dataclasses.asdict(row)) for row in expected]
    assert len({row["answer"] for row in rows}) > 5 and all(row["latency_ms"] > 0 for row in rows)
    assert len({row["total"] for row in rows}) > 1  # pictures of several shapes
    assert all(row["kept"] == Keep(row["keep"]).budget(row["total"]) for row in rows)


def test_a_kill_loses_nothing_and_repeats_nothing(answered: tuple[Path, Any]) -> None:
    _, (rows, before, after, *_) = answered
    assert 0 < len(before) < len(after) == len(rows)
    assert after[: len(before)] == before
    keys = [(row["item"], row["method"], repr(row["keep"])) for row in map(json.loads, after)]
    assert len(set(keys)) == len(keys)


def test_the_command(answered: tuple[Path, Any]) -> None:
    _, (rows, _, _, started, status, stdout, stderr) = answered
    assert status == 0, stderr
    assert started == [("bundled", METHODS, "auto", OPTIONS, None), "closed"]
    found = json.loads(stdout)
    whole = next(one for one in found["accuracy"] if one["method"] == "all")
    assert whole["value"] > 0.8  # the bundled model, not chance
    settings = json.loads((Path(found["files"][0]).parent / "settings.json").read_text(encoding="utf-8"))
    assert settings["engine"].startswith("vllm ") and settings["dtype"] == "float32"
    assert len((Path(found["files"][0]).parent / ROWS_FILE).read_text(encoding="utf-8").splitlines()) == len(rows)
