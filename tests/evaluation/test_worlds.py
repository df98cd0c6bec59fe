"""Drawn worlds behind one interface: each is drawn, written, read, measured and handed to lmms-eval the same way."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from foveate.evaluation import report as reporting
from foveate.evaluation.drawn import SIZES
from foveate.evaluation.lmms import task, write_task
from foveate.evaluation.runner import ALL, Row
from foveate.evaluation.suites import Source, drawn_suite
from foveate.evaluation.worlds import WORLDS, get_world

NAMES = ("scenes", "documents")
"""Those of pictures; clips have tests of their own."""
PICTURES = 16


@pytest.fixture(scope="module", params=NAMES)
def world(request):
    return get_world(request.param)


@pytest.fixture(scope="module")
def suite(world, tmp_path_factory):
    return drawn_suite(world, tmp_path_factory.mktemp(world.name), PICTURES, 4, "test")


def test_the_worlds():
    assert tuple(WORLDS) == (*NAMES, "clips") and all(WORLDS[name].name == name for name in WORLDS)
    with pytest.raises(ValueError, match="unknown world 'maps'; known: scenes, documents, clips"):
        get_world("maps")
    kinds = [kind for world in WORLDS.values() for kind in world.kinds]
    assert len(kinds) == len(set(kinds))


def test_what_is_drawn_is_what_is_written(world, suite):
    assert suite.world is world and suite.folder.name == world.name
    lines = (suite.folder / f"{world.name}.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [asdict(item) for item in suite.items]
    for index in range(PICTURES):
        drawing = world.draw(4, "test", index)
        own = [item for item in suite.items if item.image.startswith(f"test-4-{index:05d}.")]
        assert drawing.clutter is (index % 2 == 1) and len(own) == len(drawing.questions)
        for item, asked in zip(own, drawing.questions, strict=True):
            assert asdict(item) | {"image": ""} == {
                "image": "", "question": asked.text, "answers": list(asked.answers), "kind": asked.kind,
                "size": asked.size, "clutter": drawing.clutter, "boxes": asked.boxes,
            }  # fmt: skip
            assert item.kind in world.kinds and item.size in SIZES
        with Image.open(suite.folder / own[0].image) as picture:
            difference = np.abs(np.asarray(picture, int) - np.asarray(drawing.picture, int))
        assert difference.mean() < (1e-9 if own[0].image.endswith("png") else 12)


def test_bad_arguments_are_refused(world):
    with pytest.raises(ValueError, match="split must be one of test, style, train; got 'validation'"):
        world.draw(0, "validation")
    with pytest.raises(ValueError, match="seed must be an integer of at least 0; got -1"):
        world.draw(-1)
    with pytest.raises(ValueError, match="index must be an integer of at least 0; got 0.5"):
        world.draw(0, "test", 0.5)
    for options, message in (
        ({}, f"how many {world.name}"),
        ({"count": 3, "metric": "vqa"}, f"{world.name} have their own questions and metric"),
        ({"count": 3, "split": "train"}, "unknown split 'train'"),
    ):
        with pytest.raises(ValueError, match=message):
            Source(world.name, **options)


def test_a_file_of_another_world_is_refused(world, suite):
    (other,) = (WORLDS[name] for name in NAMES if WORLDS[name] is not world)
    with pytest.raises(ValueError, match="line 1: kind must be one of"):
        other.read(suite.folder / world.questions_file)


def test_a_source_names_its_world(world):
    source = Source(world.name, 8, 4)
    assert source.world is world and source.slug() == f"{world.name}-test-4-8"
    assert source.settings() == {"suite": world.name, "split": "test", "count": 8, "seed": 4}
    assert Source("a.jsonl").world is None


def answered(items) -> list[Row]:
    right = np.random.default_rng(0).random(len(items)) < 0.6
    answers = [item.answers[0] if good else "?" for item, good in zip(items, right, strict=True)]
    return [Row(str(n), ALL, 1.0, "q", answer, 1, 1, 1.0) for n, answer in enumerate(answers)]


def test_figures_weigh_kinds_alike(world, suite):
    rows = answered(suite.items)
    made = reporting.summarise(rows, suite.items, reporting.world_groups(world))
    right = {kind: [] for kind in world.kinds}
    for item, row in zip(suite.items, rows, strict=True):
        right[item.kind].append((item.answers[0], row.answer == item.answers[0]))

    def mean(kind):
        halves = world.halves.get(kind)
        parts = [[good for answer, good in right[kind] if halves is None or answer == half] for half in halves or [""]]
        return np.mean([np.mean(part) for part in parts])

    assert made.cell(ALL, 1.0, "overall").estimate.value == pytest.approx(np.mean([mean(k) for k in world.core]))
    pooled = [good for kind in world.core for _, good in right[kind]]
    assert made.cell(ALL, 1.0, "pooled").estimate.value == pytest.approx(np.mean(pooled))
    small = [
        row.answer == item.answers[0]
        for item, row in zip(suite.items, rows, strict=True)
        if item.size == "small" and item.kind in world.sized
    ]
    assert made.cell(ALL, 1.0, "small").estimate.value == pytest.approx(np.mean(small))
    assert set(world.kinds) <= set(made.groups)


class Loader(yaml.SafeLoader):
    """Reads the tag of lmms-eval's own loader as the name of a function."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_an_lmms_task_reports_the_same_figures(world, suite):
    path = write_task(suite.folder, world.name)
    told = yaml.load(path.read_text(encoding="utf-8"), Loader)
    assert path.name == f"foveate_{world.name}.yaml" and told["task"] == f"foveate_{world.name}"
    spec = importlib.util.spec_from_file_location(f"utils_of_{world.name}", suite.folder / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    assert utils.pictures(asdict(suite.items[0]))[0].mode == "RGB"
    rows = answered(suite.items)
    made = reporting.summarise(rows, suite.items, reporting.world_groups(world))
    figures: dict[str, list] = {}
    for item, row in zip(suite.items, rows, strict=True):
        for name, one in utils.results(asdict(item), [row.answer]).items():
            figures.setdefault(name, []).append(one)
    assert {"overall", "pooled", *world.core} <= set(figures)
    for metric in told["metric_list"]:
        name = metric["metric"]
        if name in figures:
            aggregation = getattr(utils, metric["aggregation"].removeprefix("utils."))
            expected = made.cell(ALL, 1.0, name.replace("_", " ")).estimate.value
            assert aggregation(figures[name]) == pytest.approx(expected)
    assert task.Figures.of(world.name).task == told["task"]


def test_a_folder_without_the_pictures_is_refused(world, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"holds no {world.name}.jsonl: draw the {world.name} first"):
        write_task(tmp_path, world.name)


def test_groups_take_items_of_any_shape(world):
    """lmms-eval hands back what stood in the file, not an item."""
    item = SimpleNamespace(kind=world.core[0], answers=["yes"], size="small", clutter=True)
    names = {group.name for group in reporting.world_groups(world) if group.stratum_of(item) is not None}
    assert {"overall", "pooled", "clutter", "small", "small in clutter", world.core[0]} <= names
    assert not {"sparse", "large", world.core[1]} & names
