"""``foveate tune`` as a user meets it, on questions whose answers are the unpruned model's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import foveate
from tests import checkpoint
from tests.test_cli import call, refused


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    model, processor = checkpoint.model(), checkpoint.processor()
    lines = []
    for number in range(3):
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (60, 90, 3), dtype=np.uint8))
        picture.save(folder / f"{number}.png")
        session = foveate.look(model, processor, picture)
        for question in ("Is there a cat?", "Is there a dog?"):
            answer = session.ask(question, None, max_new_tokens=1, do_sample=False).text
            lines.append({"image": f"{number}.png", "question": question, "answers": [answer]})
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder / "asked.jsonl", checkpoint.save(folder / "model")


def test_tune_prints_what_it_tried_and_goes_on(asked, tmp_path):
    path, folder = asked
    out = tmp_path / "out"
    options = ["tune", path, "--methods", "adafv,uniform", "--model", folder, "--out", out, "--max-new-tokens", 1]
    result = call(*options)
    assert "all tokens: 100.0 % of 6 questions about 3 pictures" in result.stdout
    assert "nothing can be shown to hold 98 %" in result.stdout and "at most 11 decisions" in result.stderr
    rows = (out / "decisions" / "rows.jsonl").read_text()
    told = json.loads(call(*options, "--json").stdout)
    assert (out / "decisions" / "rows.jsonl").read_text() == rows  # nothing was asked again
    assert told["best"] is None and told["questions"] == 6
    assert {"tune.json", "tune.png"} <= {file.name for file in out.iterdir()}


def test_tune_refuses_bad_arguments(asked, tmp_path):
    path, folder = asked
    options = ["--model", folder, "--out", tmp_path / "out", "--methods", "adafv"]
    assert "target must be" in refused("tune", path, "--target", 98, *options)
    assert "unknown suite" in refused("tune", "mine", *options)
    assert "unknown method" in refused("tune", path, "--methods", "nope")


def test_tune_turns_the_dials_of_auto_and_of_asking_again(asked, tmp_path):
    """Three pictures show nothing, so it says what they suggest: fewer tokens than all that reach the target."""
    path, folder = asked
    options = [
        "tune", path, "--methods", "auto:text,ask-again:first=0.1:margin=0.5:text", "--model", folder, "--target", 0.2,
        "--confidence", 0.5, "--out", tmp_path / "out", "--max-new-tokens", 1,
    ]  # fmt: skip
    told = json.loads(call(*options, "--json").stdout)
    assert {trial["dial"] for trial in told["trials"]} <= {
        "auto:text", "ask-again:first=0.1:margin=0.5:text, then 100%", "ask-again:first=0.1:margin=0.5:text, then 25%"
    }  # fmt: skip
    assert not told["plain"] and len(told["screening"]) == 3
    result = call(*options)
    assert "screening" in result.stdout and "mean tokens per question" in result.stderr
