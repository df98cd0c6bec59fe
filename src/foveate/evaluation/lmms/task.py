"""The scenes as a task of lmms-eval: its files, and what they call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foveate.evaluation.metrics import exact_match
from foveate.evaluation.report import Group, scenes_groups
from foveate.images import load_image

UTILITIES = """\
from pathlib import Path

from foveate.evaluation.lmms import task

text, results = task.text, task.results
globals().update(task.FIGURES)


def pictures(doc):
    return task.pictures(doc, Path(__file__).parent)
"""

REPORTED = ("overall", "pooled", "small in clutter", "presence", "attribute", "reading", "biggest")


def yaml(questions: Path) -> str:
    """The task's description, for scenes whose questions stand at an absolute path."""
    from foveate.evaluation.lmms import TASK

    metrics = "".join(
        f"  - metric: {name}\n    aggregation: !function utils.{name}\n    higher_is_better: true\n" for name in FIGURES
    )
    return f"""\
task: {TASK}
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


def pictures(doc: Mapping[str, Any], folder: Path) -> list[Any]:
    """The picture of a question."""
    return [load_image(folder / doc["image"])]


def text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, as it is."""
    return str(doc["question"])


def results(doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """For every figure that the question counts in, the question and whether the answer is right."""
    item = SimpleNamespace(**doc)
    asked = {name: doc[name] for name in ("kind", "size", "clutter", "answers")}
    told = {**asked, "correct": exact_match(answers[0], doc["answers"])}
    return {_name(group): told for group in _groups() if group.stratum_of(item) is not None}


def _groups() -> list[Group]:
    return [group for group in scenes_groups() if group.name in REPORTED]


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


FIGURES = {_name(group): _figure(group) for group in _groups()}
"""By name, what lmms-eval aggregates with: the same figures that ``foveate eval`` prints."""
