"""``foveate bench`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate.benchmarks import prefill, shapes, tap
from foveate.cli import app
from tests import checkpoint
from tests.benchmarks.tinier import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint.save(tmp_path_factory.mktemp("checkpoint")))


def call(*arguments: Any, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


FAST = ("--repeats", 1, "--clock", "process", "--max-new-tokens", 2)


def test_a_checkpoint_is_measured_and_written(folder: str, tmp_path: Path) -> None:
    options = ("--model", folder, "--image", "90x50", "--keep", "0.2", "--batch-size", 2, "--out", tmp_path, "--json")
    found = json.loads(call(*options, *FAST).stdout)
    ways = ["bound", "lean-bound", "foveate"]
    assert [one["kind"] for one in found["results"]] == ["stock", *ways, *ways, "baseline"]
    assert (found["batch"], found["picture"], found["clock"], found["repeats"]) == (2, "90x50", "process", 1)
    written = sorted(Path(file).suffix for file in found["files"])
    assert written == [".json", ".md", ".png", ".png"]  # what was measured, and where the time goes
    saved = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert saved == {name: value for name, value in found.items() if name != "files"}
    assert "| stock | 100% |" in next(tmp_path.glob("*.md")).read_text(encoding="utf-8")


def test_accuracy_is_drawn_over_time(folder: str, tmp_path: Path) -> None:
    Image.new("RGB", (50, 90), "red").save(tmp_path / "p.png")
    lines = [{"image": "p.png", "question": f"What is {n}?", "answers": [f"{n}"]} for n in range(3)]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    asked = tmp_path / "asked"
    options = ("--model", folder, "--methods", "uniform,random", "--keep", "0.2")
    result = CliRunner().invoke(
        app, ["eval", "--suite", str(tmp_path / "suite.jsonl"), *options, "--max-new-tokens", "1", "--out", str(asked)]
    )
    assert result.exit_code == 0, result.stderr
    bench = (
        *options,
        "--keep",
        "0.2,0.4",
        "--image",
        "90x50",
        "--accuracy",
        asked,
        "--out",
        tmp_path / "out",
        "--json",
    )
    found = json.loads(call(*bench, *FAST).stdout)
    told = json.loads((asked / "report.json").read_text(encoding="utf-8"))["accuracy"]
    values = {(one["method"], one["keep"]): one["value"] for one in told}
    assert [(one["kind"], one["method"], one["keep"], one["value"], one["count"]) for one in found["accuracy"]] == [
        ("stock", "", 1.0, values["all", 1.0], 3),
        *(("foveate", method, 0.2, values[method, 0.2], 3) for method in ("uniform", "random")),
    ]
    assert "accuracy, %, all questions |" in next((tmp_path / "out").glob("*.md")).read_text(encoding="utf-8")
    assert len(list((tmp_path / "out").glob("*-accuracy.png"))) == 1
    other = call("--accuracy", asked, "--out", tmp_path / "none", *FAST, status=2)
    assert "are of another model" in other.stderr
    assert "holds no results" in call("--accuracy", tmp_path, "--out", tmp_path / "none", status=2).stderr
    assert "leave it out" in call("--tap", "--accuracy", asked, status=2).stderr


def test_a_shape_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shapes.SHAPES, "llava-1.5-7b", tiny(shapes.SHAPES["llava-1.5-7b"]))
    monkeypatch.setattr(prefill, "TIME_TARGET", 0.0)
    options = ("--shape", "llava-1.5-7b", "--llm-layers", 1, "--keep", 0.5, "--no-baseline", "--out", tmp_path)
    result = call(*options, *FAST, "--check", status=1)
    assert "foveate adafv" in result.stdout and "baseline" not in result.stdout
    assert "target missed: adafv: first token" in result.stderr
    assert "1 of 2" in next(tmp_path.glob("*.md")).read_text(encoding="utf-8")
    assert "target missed" in call(*options, *FAST).stderr


def test_check_tells_a_tap_that_is_too_dear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shapes.SHAPES, "gemma3-4b", tiny(shapes.SHAPES["gemma3-4b"]))
    options = ("--tap", "--shape", "gemma3-4b", "--quick", "--repeats", 1, "--clock", "process", "--out", tmp_path)
    monkeypatch.setattr(tap, "BOUNDS", {"received": 0.0})
    assert "target missed: gemma3-4b" in call(*options, "--check", status=1).stderr
    monkeypatch.setattr(tap, "BOUNDS", {"received": 1000.0})
    call(*options, "--check")
    found = json.loads((tmp_path / "tap-quick.json").read_text(encoding="utf-8"))
    assert [one["shape"] for one in found["encoders"]] == ["gemma3-4b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shape", "llava-8b"), "unknown shape 'llava-8b'; known: bundled, "),
        (("--shape", "gemma3-4b"), "an encoder alone: measure it with --tap"),
        (("--shape", "bundled", "--model", "x"), "give one"),
        (("--llm-layers", 2), "a checkpoint is measured whole"),
        (("--image", "12"), "such as 672x672"),
        (("--clock", "sun"), "unknown clock 'sun'"),
        (("--device", "abacus"), "unknown device 'abacus'"),
        (("--methods", "none"), "none"),
        (("--tap", "--model", "x"), "--tap measures the encoders of shapes"),
        (("--tap", "--shape", "bundled"), "unknown shape 'bundled'"),
        (("--shape", "llava-1.5-7b", "--llm-layers", 99), "has 32 language model layers"),
        (("--shape", "llava-1.5-7b", "--dtype", "int3"), "unknown dtype 'int3'"),
    ],
)
def test_bad_input_is_one_clear_line(options: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    result = call(*options, "--out", tmp_path / "out", status=2)
    assert message in result.stderr
    assert result.stdout == "" and not (tmp_path / "out").exists()
