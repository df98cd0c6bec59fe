"""Which part of what is asked about a clip is kept: against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import foveate
from foveate.cli import recall as command
from foveate.evaluation import recall
from foveate.evaluation.clips import CLIPS
from foveate.evaluation.drawn import FilmedItem
from foveate.evaluation.runner import factory
from foveate.evaluation.suites import drawn_suite
from foveate.models.encoded import grid_geometry
from foveate.videos import load_video
from foveate.watching import watch
from tests.test_cli import call, refused
from tests.test_watching import dynamic

LARGE = 1 << 20
"""Pixels of a clip's frames at which things are some tokens large."""
ITEM = FilmedItem(
    "a.apng", "what moves ?", ["cat"], "what", "small", True, [[0, 0, 20, 20], [20, 0, 41, 20]], [[0, 1], [1.5, 2]]
)


def test_a_token_is_of_what_is_asked_by_its_centre_at_that_time() -> None:
    """Three moments of two frames each, half a second apart: in the first at the left, in the second at the right."""
    boxes = torch.tensor([[0, 0, 80, 40]]).expand(3, -1)
    geometry = grid_geometry([(2, 4)] * 3, boxes, (40, 80), torch.device("cpu"))
    times = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    views = [range(0, 2), range(2, 4), range(4, 6)]
    found = recall.of_what_is_asked(ITEM, geometry, (80, 40), views, times)
    assert np.flatnonzero(found).tolist() == [0, 8 + 1]
    wider = recall.of_what_is_asked(ITEM, geometry, (40, 20), views, times)  # the same in a clip half as large
    assert np.flatnonzero(wider).tolist() == [0, 1, 4, 5, 8 + 2, 8 + 3, 8 + 6, 8 + 7]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return drawn_suite(CLIPS, tmp_path_factory.mktemp("clips"), 2, 3, "test")


def test_what_is_counted(suite) -> None:
    model, processor = dynamic(LARGE)
    methods = {"text": factory("text")}
    done = []
    found = recall.measure(
        model,
        processor,
        suite.items,
        suite.folder,
        methods,
        [0.25, 12],
        fps=1,
        progress=lambda *told: done.append(told),
    )
    assert done == [(1, 2), (2, 2)] and found.clips == 2
    kinds = {item.kind for item in suite.items if item.boxes}
    for name, pruner in (("text", foveate.TextSimilarity),):
        for keep in (0.25, 12):
            recalls, moments = [], []
            for image in dict.fromkeys(item.image for item in suite.items):
                session = watch(model, processor, load_video(suite.folder / image, fps=1))
                for item in (one for one in suite.items if one.image == image):
                    (selection,) = session.ask(item.question, pruner(keep=keep), max_new_tokens=1).selections
                    hit, whole = by_hand(item, session, selection)
                    if whole:
                        recalls.append(len(hit) / len(whole))
                        moments.append(len({view for view, _ in hit}) / len({view for view, _ in whole}))
            (figure,) = (one for one in found.figures if (one.method, one.keep, one.group) == (name, keep, recall.ALL))
            assert figure.recall.value == pytest.approx(np.mean(recalls))
            assert figure.moments.value == pytest.approx(np.mean(moments))
            assert found.questions == figure.recall.count == len(recalls)
    assert {one.group for one in found.figures} <= {recall.ALL, recall.SMALL, *kinds}
    assert found.questions + found.unseen == sum(bool(item.boxes) for item in suite.items)


def by_hand(item, session, selection):
    """(view, index) of the kept ones and of all: token by token."""
    width, height = session.video.size
    geometry = selection.geometry
    hit, whole = [], []
    for index in range(selection.total):
        x0, y0, x1, y1 = geometry.boxes_in(height, width)[index].tolist()
        view = int(geometry.view[index])
        for frame in (2 * view, 2 * view + 1):  # two frames are one moment
            if frame >= len(session.video):
                continue
            for box, (start, end) in zip(item.boxes, item.times, strict=True):
                inside = box[0] <= (x0 + x1) / 2 < box[2] and box[1] <= (y0 + y1) / 2 < box[3]
                if inside and start <= session.video.times[frame] < end and (view, index) not in whole:
                    whole.append((view, index))
                    if index in selection.indices.tolist():
                        hit.append((view, index))
    return hit, whole


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_model", lambda *_: dynamic(LARGE))
    options = ["analyze", "--suite", "clips", "--count", 2, "--seed", 3, "--model", "dynamic", "--out", tmp_path]
    options += ["--methods", "saliency", "--keep", "0.25"]
    told = json.loads(call(*options, "--json").stdout)
    assert told["clips"] == 2 and {one["method"] for one in told["figures"]} == {"saliency", "uniform"}
    assert json.loads((tmp_path / recall.RECALL_FILE).read_text("utf-8"))["figures"] == told["figures"]
    lines = call(*options).stdout.splitlines()
    rows = [line.split()[:2] for line in lines if line.lstrip().startswith("25%")]  # twice in a table of two parts
    assert "moments" in lines[0] + lines[1] and {method for _, method in rows} == {"saliency", "uniform"}
    whole = next(one for one in told["figures"] if one["method"] == "uniform" and one["group"] == "all")
    assert any(f"uniform   {100 * whole['recall']['value']:.1f}" in line for line in lines)


def test_what_is_refused() -> None:
    assert "the bundled model takes pictures only: give --model dynamic" in refused("analyze", "--suite", "clips")
    assert "budgets are tuned on pictures" in refused("tune", "clips", "--count", 2)
    with pytest.raises(ValueError, match="no question to ask"):
        recall.measure(None, None, [], Path(), {}, [0.1])
