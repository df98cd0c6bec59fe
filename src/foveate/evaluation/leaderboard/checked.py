"""Reads results and names what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from foveate.evaluation.blind import NAME as BLIND
from foveate.evaluation.drawn import World
from foveate.evaluation.leaderboard.faults import NUMBERS, faults, run_faults
from foveate.evaluation.leaderboard.result import RESULT_FILE, decode, main_group
from foveate.evaluation.metrics import METRICS, Metric
from foveate.evaluation.report import Group, Stratum, world_groups
from foveate.evaluation.runner import ALL
from foveate.evaluation.worlds import WORLDS
from foveate.tokens import Keep

LARGEST = 1_000_000
"""Bytes that a committed file may have."""
UNCOMPARED = ("max_new_tokens", "batch")
"""Settings in which two results of one model on one suite may differ without being two."""


@dataclass(frozen=True)
class Measured:
    """One run of a result; means over its questions.

    Args:
        method, keep: as evaluated.
        kept, total, encoded: tokens, see ``runner.Row``.
        latency_ms: from picture to answer, milliseconds.
        accuracy: the figure of the main group.
        tallies: (n, k) of every question, see ``Metric.tallies``.
        stages: milliseconds of parts of the time, by name, where the file tells them.
        over_budget: questions of ``resize`` whose pictures had more tokens than the budget; none where the file does
            not tell: it was left out then.
    """

    method: str
    keep: float | int
    kept: float
    total: float
    encoded: float
    latency_ms: float
    accuracy: float
    tallies: np.ndarray
    stages: Mapping[str, float] = field(default_factory=dict)
    over_budget: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.method, repr(self.keep)


@dataclass(frozen=True)
class Result:
    """One evaluation, as ``result.json`` tells it.

    Args:
        path: of the file.
        told: all of it.
        metric: what an answer is worth.
        world: of a drawn suite.
        items: (n,) what figures need to know of each question; ``image`` is its picture's number.
        runs: in the order of the file.
    """

    path: Path
    told: Mapping[str, Any]
    metric: Metric
    world: World | None
    items: Sequence[Any]
    runs: Sequence[Measured]

    @property
    def model(self) -> str:
        return str(self.told["model"]["name"])

    @property
    def suite(self) -> str:
        return str(self.told["suite"]["name"])

    @property
    def settings(self) -> Mapping[str, Any]:
        return dict(self.told["settings"])

    @property
    def pictures(self) -> int:
        return len({item.image for item in self.items})

    @property
    def identity(self) -> str:
        """Equal for results of the same model on the same questions under the same settings."""
        settings = {name: value for name, value in self.settings.items() if name not in UNCOMPARED}
        return json.dumps([self.told["model"]["fingerprint"], self.told["suite"], settings], sort_keys=True)

    def groups(self) -> list[Group]:
        """The groups of questions that have a column, the main one first."""
        if self.world is None:
            return [Group("all", (Stratum("all", lambda item: True),))]
        known = {group.name: group for group in world_groups(self.world)}
        return [known[main_group(self.world)], known["overall"]]


def find(places: Sequence[Path]) -> list[Path]:
    """The result files of folders: a folder's own, else those of the folders in it, by name.

    Raises:
        ValueError: a place holds none.
    """
    found: list[Path] = []
    for place in places:
        own = place if place.is_file() else place / RESULT_FILE
        files = [own] if own.is_file() else sorted(place.glob(f"*/{RESULT_FILE}"))
        if not files:
            raise ValueError(
                f"{place} holds no {RESULT_FILE}, nor do the folders in it: `foveate eval --out {place}` writes one"
            )
        found += files
    return list(dict.fromkeys(found))


def read_all(files: Sequence[Path]) -> list[Result]:
    """Reads results.

    Raises:
        ValueError: something is wrong with one of them, or two are of the same; the message names all that is.
    """
    results, wrong = check(files)
    if wrong:
        raise ValueError("; ".join(wrong))
    return results


def check(files: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """The results that are right, and what is wrong with the others, a sentence each, the file before it."""
    results: list[Result] = []
    wrong: list[str] = []
    seen: dict[str, Path] = {}
    for path in files:
        told, found = _parse(path)
        found = found or list(faults(told))
        if not found:
            result = _result(path, told)
            found = list(_figure_faults(result))
            first = seen.setdefault(result.identity, path)
            if first != path:
                found.append(f"the same model, suite and settings as {first}: one folder holds one evaluation")
            if not found:
                results.append(result)
        wrong += [f"{path}: {fault}" for fault in found]
    return results, wrong


def _parse(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        data = path.read_bytes()
        told = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return {}, [f"not JSON: {error}"]
    if not isinstance(told, dict):
        return {}, ["not a JSON object"]
    if len(data) > LARGEST:
        return {}, [f"{len(data)} bytes, of at most {LARGEST}: ask fewer questions, or run fewer methods at a time"]
    return told, []


def _result(path: Path, told: Mapping[str, Any]) -> Result:
    world = WORLDS.get(told["suite"]["name"])
    given = told["questions"]
    items = []
    for label, picture in zip(given["label"], given["picture"], strict=True):
        own = given["labels"][label]
        if world is None:
            items.append(SimpleNamespace(image=str(picture), group=own[0]))
        else:
            kind, size, clutter, half = own
            items.append(SimpleNamespace(image=str(picture), kind=kind, size=size, clutter=clutter, answers=[half]))
    metric = METRICS[told["metric"]]
    runs = []
    for run in told["runs"]:
        try:
            tallies = decode(run["scores"], metric)
            numbers: dict[str, Any] = {name: float(run[name]) for name in NUMBERS if name != "count"}
            keep = Keep(run["keep"]).value if run["keep"] else 0
            numbers |= {"tallies": tallies, "stages": _stages(run), "over_budget": int(run.get("over_budget", 0))}
            runs.append(Measured(run["method"], keep, **numbers))
        except (KeyError, TypeError, ValueError):
            continue  # which is told of as a fault of that run
    return Result(path, told, metric, world, items, runs)


def _stages(run: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of milliseconds that stand beside the whole."""
    return {
        name.removesuffix("_ms"): float(value)
        for name, value in run.items()
        if name.endswith("_ms") and name != "latency_ms" and isinstance(value, (int, float))
    }


def _figure_faults(result: Result) -> Iterator[str]:
    """What is wrong with the runs: what they are, and what does not follow from the scores."""
    seen: set[tuple[str, str]] = set()
    group = result.groups()[0]
    chosen = np.array([group.stratum_of(item) is not None for item in result.items])
    for place, run in enumerate(result.told["runs"], 1):
        name = f"run {place} ({run.get('method')} at {run.get('keep')})"
        found = run_faults(run, len(result.items), result.metric, chosen)
        yield from (f"{name}: {fault}" for fault in found)
        key = str(run.get("method")), repr(run.get("keep"))
        if key in seen:
            yield f"{name}: stands there twice"
        seen.add(key)
    for method, keep, remedy in ((ALL, 1.0, "which is run in any case"), (BLIND, 0, f"add {BLIND} to --methods")):
        if (method, repr(keep)) not in seen:
            yield f"lacks the run {method} at {keep}: {remedy}"
