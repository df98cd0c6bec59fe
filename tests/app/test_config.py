"""The explorer of a configuration: what stands on its right side at first answers as the configuration does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import foveate
from foveate import bundled
from foveate.app.engine import START, Explorer, Side
from foveate.app.snippets import as_curl, as_python
from foveate.app.visit import Visit
from foveate.cli.explore import side_of
from foveate.evaluation.worlds import get_world
from tests import checkpoint
from tests.test_cli import call, refused

QUESTION = "Is there a sign?"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Explorer]:
    """The explorers that ``foveate app`` would have served, without Gradio and its server."""
    found: list[Explorer] = []

    def launch(explorer: Explorer, **_: Any) -> None:
        found.append(explorer)
        raise typer.Exit

    monkeypatch.setitem(sys.modules, "foveate.app.page", SimpleNamespace(launch=launch))
    return found


def written(folder: Path, **given: Any) -> str:
    path = folder / "prune.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    return str(path)


def begin(served: list[Explorer], *options: Any) -> Explorer:
    call("app", "--max-new-tokens", 6, *options)
    return served[-1]


def test_it_begins_as_the_file_says(served: list[Explorer], tmp_path: Path) -> None:
    given = {"method": "cover", "keep": "2.5%", "options": {"power": 4.0}, "crops": "0.5:by=text", "pixels": 0.5}
    file = written(tmp_path, **given)
    explorer = begin(served, "--config", file)
    assert explorer.start == (START[0], Side("cover:power=4.0", 2.5))
    visit = Visit.begun(explorer)
    visit.take_drawn(explorer, "scenes", 1)
    visit.set(explorer, QUESTION, [shown.side for shown in visit.sides])
    list(visit.ask(explorer))
    config = foveate.from_config(file)
    session = config.look(*bundled.load(), get_world("scenes").draw(0, index=1).picture)
    expected = config.ask(session, QUESTION, max_new_tokens=6, do_sample=False)
    right = visit.sides[1]
    assert right.told is not None and right.chosen is not None
    assert (right.told.text, right.told.visual_tokens) == (expected.text, expected.visual_tokens)
    assert right.chosen.selections[0].indices.tolist() == expected.selections[0].indices.tolist()
    code = as_python(explorer, visit.sources, QUESTION, right.side)
    assert "get_pruner('cover:power=4.0', keep=0.025)" in code and "crops='0.5:by=text', pixels=0.5" in code
    command = as_curl(explorer, visit.sources, QUESTION, right.side)
    assert "--method cover:power=4.0 --keep 0.025 --crops 0.5:by=text --pixels 0.5" in command
    typed = begin(served, "--config", file, "--pixels", "0.25", "--crops", "2")
    assert (typed.pixels, str(typed.crops), typed.start) == (0.25, "2", explorer.start)


def test_without_a_file_it_begins_as_ever(served: list[Explorer], tmp_path: Path) -> None:
    for options in ((), ("--config", written(tmp_path))):
        explorer = begin(served, *options)
        assert explorer.start == START and explorer.crops is None and explorer.pixels is None


@pytest.mark.parametrize(
    "given, percent, step",
    [
        ({"keep": "100%"}, 100, 1), ({"keep": 0.07}, 7, 1), ({"keep": "0.5%"}, 0.5, 0.1),
        ({"keep": 0.3333}, 33.33, 0.01),
        ({"method": "cover", "keep": "auto"}, 25, 1), ({"method": "auto:cover", "keep": "50%"}, 50, 1),
        ({"method": "merged:cdpruner", "options": {"words": "max"}}, 10, 1), ({"method": "fastv:layer=1"}, 10, 1),
    ],
)  # fmt: skip
def test_a_side_of_a_configuration(given: dict[str, Any], percent: float, step: float) -> None:
    config = foveate.from_config(given)
    side = side_of(config)
    assert (side.percent, side.step) == (percent, step) and side.pruner() == config.pruner
    assert round(side.percent / side.step, 6) % 1 == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"keep": "64t"}, "keep 64t: a side of the explorer keeps a part of each picture's tokens"),
        ({"keep": 0.12345}, "keep 12.345%: the slider of the explorer has steps of 0.01 % at the finest"),
        ({"keep": 0.00001}, "keep 0.001%: the slider"),
        ({"newlines": "rows"}, "newlines has no place in the explorer: leave it out of"),
        ({"calibrate": True}, "calibrate has no place in the explorer"),
        ({"method": "covr"}, "unknown method 'covr'"),
        ({"kep": 0.1}, "unknown key 'kep' (did you mean 'keep'?)"),
        ({"crops": "half"}, "crops"),
    ],
)
def test_what_has_no_place_there_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refused("app", "--config", written(tmp_path, **given))


def test_what_is_wrong_with_a_model_is_said_before_it_is_loaded(
    served: list[Explorer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.cli.explore.load_model", lambda *_: pytest.fail("a model was loaded"))
    folder = checkpoint.save(tmp_path / "checkpoint")
    assert "no such configuration file" in refused("app", "--config", tmp_path / "none.yaml")
    assert "none does not exist" in refused("app", "--model", tmp_path / "none")
    file = written(tmp_path, method="sparsevlm", crops=0.5)
    assert "prunes inside the LLM and has no crops=" in refused("app", "--model", folder, "--config", file)
