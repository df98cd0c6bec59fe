"""What is wrong with a result: what it lacks, what cannot be, what does not follow from its scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from foveate.evaluation.blind import NAME as BLIND
from foveate.evaluation.drawn import SIZES, World
from foveate.evaluation.leaderboard.result import FORMAT, decode
from foveate.evaluation.metrics import METRICS, Metric
from foveate.evaluation.runner import ALL, factory
from foveate.evaluation.worlds import WORLDS
from foveate.tokens import Keep

OFF = 1e-6
"""By which a figure may differ from what follows from the scores."""
TOP = ("format", "model", "suite", "metric", "settings", "machine", "versions", "questions", "runs")
QUESTIONS = ("count", "labels", "label", "picture")
NUMBERS = ("kept", "total", "encoded", "latency_ms", "count", "accuracy")
"""Of every run; others may stand beside them."""
WANTED_VERSIONS = ("python", "foveate", "torch", "transformers")


def faults(told: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with what stands in the file, without working anything out."""
    if told.get("format") != FORMAT:
        yield f"format {told.get('format')!r} in place of {FORMAT}: `foveate eval` of this version writes it anew"
        return
    lacking = [name for name in TOP if name not in told]
    if lacking:
        yield f"lacks {', '.join(lacking)}"
        return
    for name, wanted in (
        ("model", ("name", "fingerprint")),
        ("suite", ("name", "questions")),
        ("versions", WANTED_VERSIONS),
    ):
        given = told[name] if isinstance(told[name], Mapping) else {}
        for key in wanted:
            if not isinstance(given.get(key), str) or not given[key].strip():
                yield f"{name} lacks {key}"
    if not isinstance(told["machine"], str) or not told["machine"].strip():
        yield "machine must say in general words what the times were measured on"
    if told["metric"] not in METRICS:
        yield f"unknown metric {told['metric']!r}; known: {', '.join(METRICS)}"
    if not isinstance(told["settings"], Mapping):
        yield "settings must be an object"
    elif isinstance(told["suite"], Mapping) and told["suite"].get("name") in WORLDS:
        for key in ("split", "count", "seed"):
            if key not in told["settings"]:
                yield f"settings lack {key}, which says which {told['suite']['name']} were drawn"
    yield from _question_faults(told)
    if (
        not isinstance(told["runs"], list)
        or not told["runs"]
        or not all(isinstance(run, Mapping) for run in told["runs"])
    ):
        yield "runs must be a list of objects, at least one"


def _question_faults(told: Mapping[str, Any]) -> Iterator[str]:
    given = told["questions"] if isinstance(told["questions"], Mapping) else {}
    lacking = [name for name in QUESTIONS if name not in given]
    if lacking:
        yield f"questions lack {', '.join(lacking)}"
        return
    count, labels = given["count"], given["labels"]
    if not _is_count(count) or not count:
        yield f"questions: count must be a whole number of at least 1, got {count!r}"
        return
    for name in ("label", "picture"):
        if not isinstance(given[name], list) or not all(map(_is_count, given[name])):
            yield f"questions: {name} must be a list of whole numbers"
        elif len(given[name]) != count:
            yield f"questions: {len(given[name])} of {name} for {count} questions"
        elif name == "label" and isinstance(labels, list) and max(given[name]) >= len(labels):
            yield f"questions: label {max(given[name])} of {len(labels)} labels, counted from 0"
    world = WORLDS.get(str(told["suite"].get("name"))) if isinstance(told["suite"], Mapping) else None
    for label in labels if isinstance(labels, list) else [None]:
        if not _is_label(label, world):
            yield f"questions: label {label!r} is none of " + ("kind, size, clutter and half" if world else "a group")


def _is_label(label: Any, world: World | None) -> bool:
    if not isinstance(label, list):
        return False
    if world is None:
        return len(label) == 1 and isinstance(label[0], str)
    if len(label) != 4:
        return False
    kind, size, clutter, half = label
    return (
        kind in world.kinds
        and size in SIZES
        and isinstance(clutter, bool)
        and half in ("", *world.halves.get(kind, ()))
    )


def run_faults(run: Mapping[str, Any], count: int, metric: Metric, chosen: np.ndarray) -> Iterator[str]:
    """What is wrong with one run of a result.

    Args:
        run: as it stands in the file.
        count: of questions.
        metric: of the result.
        chosen: (count,) which questions its accuracy is of.
    """
    lacking = [name for name in ("method", "keep", *NUMBERS, "scores") if name not in run]
    if lacking:
        yield f"lacks {', '.join(lacking)}"
        return
    try:
        if run["method"] != ALL:
            factory(str(run["method"]))
    except (ValueError, TypeError) as error:
        yield " ".join(str(error).split())
    try:
        if run["method"] == BLIND:
            if run["keep"] != 0 or run["kept"] != 0:
                yield f"{BLIND} keeps 0 tokens"
        else:
            Keep(run["keep"])
    except (ValueError, TypeError) as error:
        yield " ".join(str(error).split())
    for name in NUMBERS:
        if (
            isinstance(run[name], bool)
            or not isinstance(run[name], (int, float))
            or not math.isfinite(run[name])
            or run[name] < 0
        ):
            yield f"{name} must be a number of at least 0, got {run[name]!r}"
            return
    over = run.get("over_budget", 0)  # which older files do not tell
    if not _is_count(over) or over > count:
        yield f"over_budget must be how many of the {count} questions exceed the budget, got {over!r}"
    if run["count"] != count:
        yield f"count is {run['count']}, of {count} questions"
    try:
        tallies = decode(run["scores"], metric)
    except ValueError as error:
        yield str(error)
        return
    if len(tallies) != count:
        yield f"{len(tallies)} scores for {count} questions"
        return
    figure = float(metric.value(tallies[chosen].sum(0)))
    if abs(figure - run["accuracy"]) > OFF:
        yield f"accuracy is {run['accuracy']}, and from its scores follows {figure:.6f}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
