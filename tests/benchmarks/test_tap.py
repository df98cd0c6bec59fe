"""The tap's cost: what is counted, what is scaled up, what is put back."""

from __future__ import annotations

import dataclasses

import pytest

from foveate.attention import Recorder
from foveate.benchmarks.shapes import SHAPES
from foveate.benchmarks.tap import TapCost, measure
from tests.benchmarks.tinier import tiny


@pytest.mark.parametrize(
    ("name", "read", "patches"),
    [("llava-next-7b", "cls", 5 * 24 * 24), ("qwen2.5-vl-7b", "received", 16 * 24), ("ovis2-8b", "received", 32 * 32)],
)
def test_structure(name: str, read: str, patches: int) -> None:
    note = Recorder.note
    cost = measure(name, shape=tiny(SHAPES[name]), repeats=2, clock="process")
    assert Recorder.note is note
    assert (cost.read, cost.patches, cost.repeats) == (read, patches, 2)
    assert cost.layers == cost.whole == tiny(SHAPES[name]).vision_layers
    assert not cost.extrapolated
    assert cost.whole_ms == pytest.approx(cost.stock_ms)
    assert 0 < cost.layers_ms < cost.stock_ms
    assert cost.tap_ms > 0 and cost.tap_share > 1


def test_quick_runs_few_layers_and_scales_them_up() -> None:
    cost = measure("gemma3-4b", shape=tiny(SHAPES["gemma3-4b"], layers=9), quick=True, repeats=1, clock="process")
    assert (cost.layers, cost.whole, cost.extrapolated) == (3, 9, True)
    assert cost.whole_ms == pytest.approx(cost.stock_ms + 2 * cost.layers_ms)


def test_a_ratio_above_its_bound_is_a_miss() -> None:
    held = TapCost("a", "cls", 1, 1, 1, 1, 1, 1, 1, 1, 1, ratio=1.03, tap_ratio=1.0, tap_share=1.0, repeats=1)
    assert held.holds and held.bound == 1.03
    assert not dataclasses.replace(held, ratio=1.031).holds
    assert not dataclasses.replace(held, tap_ratio=1.031).holds
    assert dataclasses.replace(held, read="received", ratio=1.05).holds
    assert held.as_dict()["holds"] is True
