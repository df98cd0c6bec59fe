"""The time of the choice: what is measured, compared, and held against a target."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from foveate import Uniform, get_pruner
from foveate.benchmarks import selection
from foveate.benchmarks.selection import Cost
from tests.benchmarks.test_command import call


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIDE": 6, "WIDTH": 32, "KEY_WIDTH": 8, "WORDS": 8}.items():
        monkeypatch.setattr(selection, name, value)


@pytest.mark.usefixtures("small")
def test_every_method_is_timed_on_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def watched(pruner: Uniform, visual: object, text: object) -> object:
        seen.setdefault(pruner.name, set()).add(id(visual))
        return type(pruner).choose(pruner, visual, text, 18)

    methods = {name: get_pruner(name, keep=0.1) for name in ("cdpruner", "uniform", "mmtok")}
    for name, pruner in methods.items():
        monkeypatch.setattr(pruner, "select", lambda visual, text, one=pruner: watched(one, visual, text))
        assert name == pruner.name
    costs = selection.measure(methods, repeats=2, clock="process")
    assert [cost.method for cost in costs] == list(methods) and len(set.union(*seen.values())) == 1
    assert costs[0].ratio == 1 and all(cost.ms > 0 and cost.peak_bytes > 0 for cost in costs)
    assert math.isnan(selection.measure({"uniform": get_pruner("uniform")}, repeats=1)[0].ratio)


@pytest.mark.usefixtures("small")
def test_the_tokens_have_what_methods_read() -> None:
    visual, text = selection.picture(torch.device("cpu"), torch.bfloat16)
    assert len(visual) == 180 and len(text) == 8 and visual.features.dtype == torch.bfloat16
    assert all(one is not None for one in (visual.saliency, visual.keys, visual.encoded))
    near = torch.nn.functional.normalize(visual.features.float(), dim=-1)
    assert float((near @ near.T).fill_diagonal_(-1).amax(dim=1).median()) > 0.4  # most have something like them


def test_the_target_is_cover_s_and_can_be_missed() -> None:
    assert Cost("cover", 1.0, 0.99, 0).missed is None and Cost("scope", 9.0, 9.0, 0).missed is None
    assert Cost("cover", 1.0, math.nan, 0).missed is None
    assert "1.010 times cdpruner's time > 1" in (Cost("cover", 1.0, 1.01, 0).missed or "")


@pytest.mark.usefixtures("small")
def test_the_command_writes_a_table(tmp_path: Path) -> None:
    options = ("--selection", "--methods", "cover,cdpruner,merged:uniform", "--repeats", 1, "--out", tmp_path, "--json")
    found = json.loads(call(*options).stdout)
    assert [one["method"] for one in found["methods"]] == ["cover", "cdpruner", "merged:uniform"]
    assert (found["tokens"], found["keep"]) == (180, 0.1)
    written = (tmp_path / "selection.md").read_text(encoding="utf-8")
    assert "| method | ms | times cdpruner | peak memory, MiB |" in written and "merged:uniform" in written


@pytest.mark.parametrize(
    "options, message",
    [
        (("--model", "bundled"), "leave --model"),
        (("--keep", "0.1,0.2"), "one budget"),
        (("--methods", "fastv"), "prunes inside the LLM"),
    ],
)
def test_what_makes_no_sense_is_refused(options: tuple[str, ...], message: str) -> None:
    assert message in " ".join(call("--selection", *options, status=2).stderr.split())
