"""A pytest plugin: supported classes generate and run forward around ``AdaFV(keep=1.0)``, and outcomes are written.

It imports nothing of ``tests``, a name that transformers' checkout uses itself. ``FOVEATE_AROUND=1`` wraps; without it
the same tests run bare. ``FOVEATE_OUTCOMES`` is the file that gets one JSON line per test: passed, failed or skipped.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import foveate
from foveate.models import FAMILIES

AROUND = os.environ.get("FOVEATE_AROUND") == "1"
OUTCOMES = os.environ["FOVEATE_OUTCOMES"]

_pruned = 0
_within: list[Any] = []
"""Models whose call is running, innermost last."""


def around(model_class: type, name: str) -> None:
    """Wraps a method of a class: the outermost call on an instance attaches a pruner, and calls what that put there."""
    stock = getattr(model_class, name)

    @functools.wraps(stock)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        global _pruned
        if any(model is self for model in _within):
            return stock(self, *args, **kwargs)
        pruner = foveate.AdaFV(keep=1.0)
        _within.append(self)
        try:
            with pruner(self):
                result = getattr(self, name)(*args, **kwargs)
        finally:
            _within.pop()
        _pruned += len(pruner.selections) > 0
        return result

    setattr(model_class, name, wrapped)


def pytest_configure(config: pytest.Config) -> None:
    if AROUND:
        for model_type in FAMILIES:
            model_class = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
            around(model_class, "forward")
            around(model_class, "generate")
    if not hasattr(config, "workerinput"):
        Path(OUTCOMES).write_text("", encoding="utf-8")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """How many calls of the test went through a pruner with images."""
    before = _pruned
    try:
        return (yield)
    finally:
        item.user_properties.append(("pruned", _pruned - before))


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    outcome = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "message": crash.message if crash is not None else str(report.longrepr or ""),
        "raised in": crash.path if crash is not None else "",
        "pruned": dict(report.user_properties).get("pruned", 0),
    }
    with Path(OUTCOMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(outcome) + "\n")
