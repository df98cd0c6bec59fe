"""Drawn pictures as a task of lmms-eval: its files, and what they call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foveate.evaluation.drawn import World
from foveate.evaluation.metrics import exact_match
from foveate.evaluation.report import Group, world_groups
from foveate.evaluation.worlds import get_world
from foveate.images import load_image

_UTILITIES = """\
from pathlib import Path

from foveate.evaluation.lmms import task

figures = task.Figures.of({world!r})
text, results = task.text, figures.results
globals().update(figures.aggregations)


def pictures(doc):
    return task.pictures(doc, Path(__file__).parent)
"""


def pictures(doc: Mapping[str, Any], folder: Path) -> list[Any]:
    """The picture of a question."""
    return [load_image(folder / doc["image"])]


def text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, as it is."""
    return str(doc["question"])


class Figures:
    """What lmms-eval reports of a drawn world: the same overall figures and core kinds as ``foveate eval``."""

    def __init__(self, world: World) -> None:
        reported = ("overall", "pooled", "small in clutter", *world.core)
        self.world = world
        self.task = f"foveate_{world.name}"
        self.groups = [group for group in world_groups(world) if group.name in reported]
        self.aggregations = {_name(group): _figure(group) for group in self.groups}

    @classmethod
    def of(cls, world: str) -> Figures:
        """Those of the world of that name."""
        return cls(get_world(world))

    def utilities(self) -> str:
        """The Python file beside the task's description."""
        return _UTILITIES.format(world=self.world.name)

    def yaml(self, questions: Path) -> str:
        """The task's description, for questions that stand at an absolute path."""
        metrics = "".join(
            f"  - metric: {name}\n    aggregation: !function utils.{name}\n    higher_is_better: true\n"
            for name in self.aggregations
        )
        return f"""\
task: {self.task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {json.dumps(str(questions))}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.text
doc_to_target: answers
generation_kwargs:
  max_new_tokens: 8
  do_sample: false
  temperature: 0
  num_beams: 1
process_results: !function utils.results
metric_list:
{metrics}metadata:
  - version: 1.0
"""

    def results(self, doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
        """For every figure that the question counts in, the question and whether the answer is right."""
        item = SimpleNamespace(**doc)
        asked = {name: doc[name] for name in ("kind", "size", "clutter", "answers")}
        told = {**asked, "correct": exact_match(answers[0], doc["answers"])}
        return {_name(group): told for group in self.groups if group.stratum_of(item) is not None}


def _name(group: Group) -> str:
    return group.name.replace(" ", "_")


def _figure(group: Group) -> Callable[[Sequence[Mapping[str, Any]]], float]:
    def figure(told: Sequence[Mapping[str, Any]]) -> float:
        total = weights = 0.0
        for stratum in group.strata:
            own = [one["correct"] for one in told if group.stratum_of(SimpleNamespace(**one)) is stratum]
            if own:
                total += stratum.weight * sum(own) / len(own)
                weights += stratum.weight
        return total / weights

    return figure
