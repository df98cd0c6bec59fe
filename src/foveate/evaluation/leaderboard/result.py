"""The file of one evaluation, one model on one suite, that is small enough to be committed.

It holds what every question was worth under every run, so that every figure and interval can be worked out again.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from foveate.evaluation.drawn import World
from foveate.evaluation.metrics import Metric
from foveate.evaluation.report import Report
from foveate.evaluation.runner import SETTINGS_FILE, Row
from foveate.evaluation.suites import JSONL, Suite
from foveate.evaluation.worlds import WORLDS

RESULT_FILE = "result.json"
FORMAT = 1

PACKAGES = ("foveate", "torch", "transformers", "vllm")
PLACES = 6
"""Decimals of scores that are no zeros and ones, and of figures."""


def write(out: Path, suite: Suite, rows: Sequence[Row], report: Report, model: str | None, engine: str) -> Path:
    """Writes ``result.json`` into a results folder.

    Args:
        out: the folder, which holds ``settings.json``.
        suite: what was asked.
        rows: every answer.
        report: of them.
        model: as it was named; None is the model that ships with the package. Of a folder only its name is told.
        engine: what ran it.

    Returns:
        The path of the file.
    """
    settings = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
    for name in ("suite", "model_name", "foveate"):  # paths of somebody's machine, perhaps; versions stand apart
        settings.pop(name, None)
    settings.setdefault("engine", engine)  # vLLM says its version
    device = settings.pop("device", "")
    told = {
        "format": FORMAT,
        "model": {"name": public_name(model or "bundled"), "fingerprint": settings.pop("model")},
        "suite": {"name": suite_name(suite), "questions": settings.pop("items")},
        "metric": report.metric.name,
        "settings": settings,
        "machine": machine(device),
        "versions": versions(),
        "questions": _questions(suite),
        "runs": _runs(suite, rows, report),
    }
    path = out / RESULT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(compact(told), encoding="utf-8")
    os.replace(partial, path)
    return path


def public_name(model: str) -> str:
    """A model's name without the folders it lies in; a hub id stays whole."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() or model.count("/") != 1 else model


def suite_name(suite: Suite) -> str:
    """A drawn world's name, or the file's or data set's, without folders, and never that of a drawn world."""
    if suite.world is not None:
        return suite.world.name
    return f"{suite.name}{JSONL[0]}" if suite.name in WORLDS else suite.name


def compact(told: Mapping[str, Any]) -> str:
    """JSON that can be read and compared by line: one line for every run, and for every list of questions."""
    lines = ["{"]
    for name, value in told.items():
        end = "" if name == list(told)[-1] else ","
        if isinstance(value, list):
            parts = ",\n".join(f"    {json.dumps(part, ensure_ascii=False)}" for part in value)
            lines.append(f"  {json.dumps(name)}: [\n{parts}\n  ]{end}")
        elif name == "questions":
            parts = ",\n".join(f"    {json.dumps(key)}: {json.dumps(part)}" for key, part in value.items())
            lines.append(f"  {json.dumps(name)}: {{\n{parts}\n  }}{end}")
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}{end}")
    return "\n".join([*lines, "}"]) + "\n"


def machine(device: str) -> str:
    """The machine in general words: "NVIDIA H100 80GB HBM3", "CPU, 2 cores, Linux x86_64"."""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    where = f"{platform.system()} {platform.machine()}"
    return f"{device.upper() or 'CPU'}, {os.cpu_count() or 1} cores, {where}"


def versions() -> dict[str, str]:
    """Of Python, Foveate and what runs models, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def label(item: Any, world: World | None) -> list[Any]:
    """What a question counts among: of a drawn one its kind, size and clutter, and its answer where its kind counts
    answers apart, else ""; of another its group."""
    if world is None:
        return [item.group]
    return [item.kind, item.size, item.clutter, item.answers[0] if item.kind in world.halves else ""]


def _questions(suite: Suite) -> dict[str, Any]:
    pictures = list(dict.fromkeys(item.image for item in suite.items))
    labels = [tuple(label(item, suite.world)) for item in suite.items]
    kinds = sorted(set(labels))
    return {
        "count": len(labels),
        "labels": [list(kind) for kind in kinds],
        "label": [kinds.index(one) for one in labels],
        "picture": [pictures.index(item.image) for item in suite.items],
    }


def _runs(suite: Suite, rows: Sequence[Row], report: Report) -> list[dict[str, Any]]:
    known = {str(getattr(item, "id", place)): item for place, item in enumerate(suite.items)}
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        answers.setdefault((row.method, repr(row.keep)), {})[row.item] = row.answer
    main = main_group(suite.world)
    told = []
    for run in report.runs:
        own = answers[run.method, repr(run.keep)]
        tallies = report.metric.tallies([(own[name], item.answers) for name, item in known.items()])
        measured = {**{name: _measured(value) for name, value in asdict(run).items()}, "keep": run.keep}
        accuracy = round(report.cell(run.method, run.keep, main).estimate.value, PLACES)
        told.append({**measured, "accuracy": accuracy, "scores": encode(tallies)})
    return told


def _measured(value: Any) -> Any:
    """To three decimals; NaN, which JSON has not, as None."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 3)


def main_group(world: World | None) -> str:
    """The group whose figure is a run's accuracy: all questions, of a drawn world those of the core kinds."""
    return "all" if world is None else "pooled"


def encode(tallies: np.ndarray) -> str | list[list[float]]:
    """(n, k + 1) tallies without the ones in their last column: where all are 0 or 1 and at most four, a text of one
    hexadecimal digit per question, the first tally its highest bit; else a list of numbers for each question."""
    own = tallies[:, :-1]
    if own.shape[1] <= 4 and bool(np.isin(own, (0.0, 1.0)).all()):
        bits = own.astype(int) @ (1 << np.arange(own.shape[1])[::-1])
        return "".join(f"{int(one):x}" for one in bits)
    return [[round(float(value), PLACES) for value in one] for one in own]


def decode(scores: str | Sequence[Sequence[float]], metric: Metric) -> np.ndarray:
    """What ``encode`` wrote, with the ones.

    Raises:
        ValueError: it is something else.
    """
    width = len(metric.won)
    if isinstance(scores, str):
        try:
            values = np.array([int(digit, 16) for digit in scores], dtype=int)
        except ValueError:
            raise ValueError("scores must be hexadecimal digits, one per question") from None
        if (values >= 1 << width).any():
            raise ValueError(f"scores of the metric {metric.name} must be below {1 << width:x}, as hexadecimal digits")
        own = (values[:, None] >> np.arange(width)[::-1] & 1).astype(float)
    else:
        try:
            own = np.array(scores, dtype=float).reshape(len(scores), -1)
        except (TypeError, ValueError):
            raise ValueError("scores must be a text of digits, or a list of numbers for each question") from None
        if own.shape[1:] != (width,) or not ((own >= 0) & (own <= 1)).all():
            raise ValueError(f"scores of the metric {metric.name} must be {width} numbers in [0, 1] for each question")
        if metric.binary and not np.isin(own, (0.0, 1.0)).all():
            raise ValueError(f"scores of the metric {metric.name} must be zeros and ones")
    return np.concatenate([own, np.ones((len(own), 1))], axis=1)
