"""lmms-eval itself, with the bundled model, on the scenes: the figures are those of ``foveate eval``.

``make test-lmms`` runs this, in an environment that has lmms-eval; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")

from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model

from foveate.evaluation.lmms import TASK, write_task
from foveate.evaluation.lmms.task import Figures
from foveate.evaluation.scenes import SCENES

COUNT = 12
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Scenes as ``foveate eval --count 12`` draws them, which are a task folder besides."""
    out = tmp_path_factory.mktemp("results")
    SCENES.write(out / "scenes", COUNT, 0)
    write_task(out / "scenes")
    return out


def run(*command: str) -> str:
    told = subprocess.run(
        [sys.executable, "-m", *command], env={**os.environ, **OFFLINE}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return told.stdout


@pytest.fixture(scope="module")
def report(folder):
    options = f"--suite scenes --count {COUNT} --methods adafv --keep 0.1 --json --out {folder}"
    return json.loads(run("foveate", "eval", *options.split()))


@pytest.mark.parametrize("arguments,method,keep", [("method=adafv,keep=0.1", "adafv", 0.1), ("method=all", "all", 1.0)])
def test_figures_are_those_of_foveate_eval(folder, report, tmp_path, arguments, method, keep):
    run(
        "lmms_eval", "--model", "foveate", "--model_args", arguments, "--include_path", str(folder / "scenes"),
        "--tasks", TASK, "--batch_size", "8", "--output_path", str(tmp_path),
    )  # fmt: skip
    (file,) = tmp_path.rglob("*_results.json")
    told = json.loads(file.read_text())["results"][TASK]
    ours = {
        cell["group"].replace(" ", "_"): cell["value"]
        for cell in report["accuracy"]
        if (cell["method"], cell["keep"]) == (method, keep)
    }
    figures = {name: told[f"{name},none"] for name in Figures.of("scenes").aggregations if name in ours}
    assert len(figures) >= 6
    assert figures == pytest.approx({name: ours[name] for name in figures}, abs=1e-12)


def test_a_table_reproduced_is_the_same_with_and_without_lmms_eval(tmp_path):
    options = "adafv --model bundled --tasks scenes,foveate_scenes --methods saliency --limit 24 --batch-size 8 --json"
    told = json.loads(run("foveate", "reproduce", *options.split(), "--out", str(tmp_path)))
    assert [line["keep"] for line in told["lines"]] == [1.0, 0.25, 0.1, 0.05]
    for line in told["lines"]:
        ours, theirs = line["scores"]["scenes"], line["scores"]["foveate_scenes"]
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-9) and ours["count"] == theirs["count"] == 24
        assert theirs["share"] is None or ours["share"] == pytest.approx(theirs["share"], abs=1e-9)
    assert len({line["scores"]["scenes"]["value"] for line in told["lines"]}) > 1


@pytest.fixture(scope="module")
def model():
    assert get_model("foveate").__module__ == "foveate.evaluation.lmms.model"  # found by the entry point
    return get_model("foveate").create_from_arg_string("method=adafv,keep=0.1", {"batch_size": 4, "device": "cpu"})


def requests(model, documents, **options):
    model.task_dict = {"task": {"test": documents}}

    def messages(document):
        content = [{"type": "image", "url": image} for image in document["images"]]
        return [{"role": "user", "content": [*content, {"type": "text", "text": document["question"]}]}]

    return [
        Instance(
            "generate_until",
            (document["question"], messages, {"max_new_tokens": 4, **options}, place, "task", "test"),
            0,
            {"task": "task", "doc_id": place, "repeats": 1},
        )
        for place, document in enumerate(documents)
    ]


def test_requests_of_several_kinds_come_back_in_order(model):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8))
    documents = [
        {"images": [picture], "question": "Is there a cat?"},
        {"images": [], "question": "Is there a dog?"},
        {"images": [picture], "question": "What color is the card of the dog?"},
    ]
    together = model.generate_until(requests(model, documents))
    alone = [model.generate_until(requests(model, [document]))[0] for document in documents]
    assert together == alone and all(isinstance(text, str) for text in together)
    assert 0 < model.kept < 0.11 * model.total
    (cut,) = model.generate_until(requests(model, documents[:1], until=[together[0][-1]]))
    assert together[0].startswith(cut) and together[0][-1] not in cut


def test_what_cannot_be_honoured_is_refused(model):
    for arguments in ("method=nope", "method=adafv,keep=0", "method=all,min_share=0.5", "method=adafv,nope=1"):
        with pytest.raises((ValueError, TypeError)):
            get_model("foveate").create_from_arg_string(arguments, {"device": "cpu"})
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    documents = [{"images": [], "question": "What is heard?"}]
    (request,) = requests(model, documents)
    heard = [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}]
    request.arguments = (request.arguments[0], lambda _: heard, *request.arguments[2:])
    with pytest.raises(ValueError, match="images only"):
        model.generate_until([request])
