"""The scenes as a task of lmms-eval, without it: its files, and figures that are the report's own."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict

import numpy as np
import pytest
import yaml

from foveate.evaluation import report as reporting
from foveate.evaluation.lmms import TASK, write_task
from foveate.evaluation.lmms.task import Figures
from foveate.evaluation.runner import ALL, Row
from foveate.evaluation.scenes import SCENES

FIGURES = Figures(SCENES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return SCENES.write(tmp_path_factory.mktemp("scenes"), 6, 0).parent


class Loader(yaml.SafeLoader):
    """Reads the tag of lmms-eval's own loader as the name of a function."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_files_go_together(folder):
    path = write_task(folder)
    told = yaml.load(path.read_text(encoding="utf-8"), Loader)
    assert path.name == f"{TASK}.yaml" and told["task"] == TASK
    assert told["dataset_kwargs"]["data_files"]["test"] == str(folder / "scenes.jsonl")
    spec = importlib.util.spec_from_file_location("utils", folder / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    named = [told[name] for name in ("doc_to_visual", "doc_to_text", "process_results")]
    named += [metric["aggregation"] for metric in told["metric_list"]]
    assert len(named) == 10 and all(callable(getattr(utils, name.removeprefix("utils."))) for name in named)
    doc = asdict(SCENES.read(folder / "scenes.jsonl")[0])
    assert utils.text(doc) == doc["question"] and utils.pictures(doc)[0].mode == "RGB"


def test_figures_are_the_report_s(folder):
    items = SCENES.read(folder / "scenes.jsonl")
    right = np.random.default_rng(0).random(len(items)) < 0.6
    answers = [item.answers[0] if good else "?" for item, good in zip(items, right, strict=True)]
    rows = [Row(str(n), ALL, 1.0, "q", answer, 1, 1, 1.0) for n, answer in enumerate(answers)]
    made = reporting.summarise(rows, items, reporting.world_groups(SCENES))
    told: dict[str, list] = {}
    for item, answer in zip(items, answers, strict=True):
        for name, one in FIGURES.results(asdict(item), [answer]).items():
            told.setdefault(name, []).append(one)
    assert {"overall", "pooled", "presence"} <= set(told) <= set(FIGURES.aggregations)
    for name, ones in told.items():
        assert FIGURES.aggregations[name](ones) == pytest.approx(
            made.cell(ALL, 1.0, name.replace("_", " ")).estimate.value
        )


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="draw the scenes first"):
        write_task(tmp_path)
