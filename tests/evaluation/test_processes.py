"""Several processes under ``accelerate launch``: the real launcher, a kill in the middle, and a start that goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from foveate.evaluation.processes import Processes, from_environment
from tests import checkpoint

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def say(monkeypatch, *values):
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)


def test_the_environment_says_which_process_this_is(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    alone = from_environment()
    assert alone == Processes(0, 1, 0)
    alone.wait()  # for nobody
    say(monkeypatch, "2", "3", "1")
    third = from_environment()
    assert (third.rank, third.size, third.local_rank) == (2, 3, 1)
    assert (third.file("rows.jsonl"), alone.file("rows.jsonl")) == ("rows-2.jsonl", "rows.jsonl")


@pytest.mark.parametrize("values", [("3", "3", "0"), ("-1", "2", "0"), ("one", "2", "0"), ("0", "0", "0")])
def test_an_impossible_environment_is_refused(monkeypatch, values):
    say(monkeypatch, *values)
    with pytest.raises(ValueError, match="RANK"):
        from_environment()


def test_processes_that_cannot_meet_are_refused(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="accelerate launch or torchrun"):
        Processes(0, 2).wait()


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for path in out.glob("rows*.jsonl") for line in path.read_bytes().splitlines()]


@pytest.mark.slow
def test_accelerate_launch_is_killed_and_goes_on(tmp_path):
    model = checkpoint.save(tmp_path / "model")
    lines = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        for question in ("Is there a cat?", "Is there a dog?", "What color is the card of the dog?"):
            lines.append({"image": f"{number}.png", "question": question, "answers": ["yes"]})
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    out = tmp_path / "out"
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch += f" --dynamo_backend no --main_process_port {20_000 + os.getpid() % 10_000} -m foveate eval"
    options = "--methods adafv,random --keep 0.5,0.25 --batch-size 1 --max-new-tokens 4 --json"
    options += f" --suite {tmp_path / 'asked.jsonl'} --model {model} --out {out}"
    command = [sys.executable, *launch.split(), *options.split()]
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(out.glob("rows*.jsonl"))) < 2 or len(rows_so_far(out)) < 8:
        assert first.poll() is None and time.monotonic() < deadline, first.stderr.read().decode()[-2000:]
        time.sleep(0.02)
    launcher = psutil.Process(first.pid)
    for process in [launcher, *launcher.children(recursive=True)]:  # wherever they are
        process.kill()
    first.communicate()
    before = rows_so_far(out)
    assert 8 <= len(before) < 36 * 5
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    told = json.loads(again.stdout)  # one process reports
    assert [run["count"] for run in told["runs"]] == [36] * 5
    keys = [(row["item"], row["method"], row["keep"]) for row in rows(out)]
    assert len(keys) == len(set(keys)) == 36 * 5
    assert sorted(path.name for path in out.glob("rows*.jsonl")) == ["rows-1.jsonl", "rows.jsonl"]
    assert all(line in (out / name).read_bytes() for name, line in before)  # nothing was asked again


def rows_so_far(out: Path) -> list[tuple[str, bytes]]:
    """(file, line) of every whole line."""
    return [
        (path.name, line)
        for path in out.glob("rows*.jsonl")
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]
