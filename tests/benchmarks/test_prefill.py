"""The report's counted quantities against arithmetic, and the baseline against the family's own saliency."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch

import foveate
from foveate.benchmarks import baseline
from foveate.benchmarks.prefill import Report, Result, measure
from foveate.benchmarks.report import markdown, plot, results_table, targets_table
from foveate.benchmarks.shapes import SHAPES
from tests.benchmarks.tinier import tiny

KEEPS = (1.0, 0.1, 7)
SIDE = 10


@cache
def subject(name: str = "llava-next-7b", batch: int = 2) -> tuple[Any, dict[str, torch.Tensor]]:
    shape = tiny(SHAPES[name])
    if name == "llava-next-7b":  # three views of SIDE x SIDE patches
        vision = {**shape.vision, "image_size": 14 * SIDE}
        top = {**shape.top, "image_grid_pinpoints": [[14 * SIDE, 28 * SIDE]]}
        shape = dataclasses.replace(shape, vision=vision, top=top, picture=(14 * SIDE, 28 * SIDE))
    model = shape.build()
    return model, shape.inputs(model, batch)


@cache
def report() -> Report:
    model, inputs = subject()
    return measure(model, inputs, methods=["adafv", "saliency"], keeps=KEEPS, new_tokens=3, repeats=1, clock="process")


def test_every_case_is_there() -> None:
    cases = [(one.kind, one.method, one.keep) for one in report().results]
    assert cases[0] == ("stock", "", 1.0)
    assert len(cases) == len(set(cases)) == 1 + 3 * 4 + 2 * 2
    assert {keep for kind, _, keep in cases if kind == "baseline"} == {0.1, 7}
    assert all(one.decode_rate and one.total_ms for one in report().results)


def test_lengths_and_cache_are_those_of_the_budget() -> None:
    model, inputs = subject()
    _, length = inputs["input_ids"].shape
    placeholders = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    patches = 3 * SIDE**2
    text = model.config.text_config
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    kept = {1.0: placeholders, 0.1: -(-patches // 10), 7: 7}
    for one in report().results:
        assert one.prompt_tokens == length - placeholders + kept[one.keep], one
        assert one.cache_bytes == 2 * one.prompt_tokens * per_token


def llm_flops(model: Any, tokens: int, batch: int) -> int:
    """Prefill of a LLaMA: all layers, and the head for the last token."""
    text = model.config.text_config
    width, head = text.hidden_size, text.head_dim
    queries, groups = text.num_attention_heads * head, text.num_key_value_heads * head
    linear = 2 * width * (2 * queries + 2 * groups + 3 * text.intermediate_size)
    attention = 2 * 2 * tokens * queries
    return batch * (tokens * (linear + attention) * text.num_hidden_layers + 2 * width * text.vocab_size)


def test_flops_of_the_bound_are_those_of_the_prompts_length() -> None:
    model, _ = subject()
    bounds = {one.keep: one for one in report().results if one.kind == "bound"}
    whole = bounds[1.0]
    for few in (bounds[0.1], bounds[7]):
        saved = llm_flops(model, whole.prompt_tokens, 2) - llm_flops(model, few.prompt_tokens, 2)
        assert whole.flops - few.flops == saved


def test_flops_of_pruning_are_the_bounds_less_the_layer_nobody_reads() -> None:
    model, inputs = subject()
    vision = model.config.vision_config
    views, places, width = inputs["pixel_values"].shape[0] * 3, SIDE**2 + 1, vision.hidden_size
    layer = views * places * (2 * width * (4 * width + 2 * vision.intermediate_size) + 2 * 2 * places * width)
    tap = views * 2 * places * width  # one row of logits
    for keep in (0.1, 7):
        ours, bound = report().find("foveate", keep, "saliency"), report().find("bound", keep)
        assert ours and bound
        assert ours.flops - bound.flops == tap - layer
        lean = report().find("lean-bound", keep)
        assert lean and bound.flops - lean.flops == layer
        assert ours.over_lean and ours.over_bound and (lean.over_lean, bound.over_bound) == (1.0, 1.0)


def test_memory_is_below_stock_and_the_baseline_keeps_every_matrix() -> None:
    model, _ = subject()
    stock = report().find("stock")
    vision = model.config.vision_config
    matrices = 3 * vision.num_hidden_layers * vision.num_attention_heads * (SIDE**2 + 1) ** 2 * 4
    for one in report().results:
        if one.kind == "foveate":
            assert one.peak_bytes <= stock.peak_bytes
        if one.kind == "baseline":
            assert one.peak_bytes > matrices


def test_baseline_reads_the_same_saliency() -> None:
    model, inputs = subject()
    with baseline.eager_tower(model), torch.no_grad():
        features, saliency = baseline._encode(model, inputs["pixel_values"][0])
    assert model.model.vision_tower.config._attn_implementation == "sdpa"
    pruner = foveate.Saliency(keep=0.1)
    with pruner(model, layout="released"):
        model.generate(**inputs, max_new_tokens=1)
    torch.testing.assert_close(pruner.selections[0].scores["saliency"], saliency, atol=1e-6, rtol=1e-4)
    assert len(features) == pruner.selections[0].total


def test_only_llava_has_a_baseline() -> None:
    model, inputs = subject("qwen3-vl-8b", 1)
    assert not baseline.supports(model)
    found = measure(model, inputs, keeps=[0.2], new_tokens=1, repeats=1, clock="process")
    # Nor a lean bound: every layer of its tower is read.
    assert {one.kind for one in found.results} == {"stock", "bound", "foveate"}
    assert all(one.over_lean is None for one in found.results)
    assert all(one.decode_rate is None and one.total_ms is None for one in found.results)
    with pytest.raises(ValueError, match="no method 'dart'; known: saliency, adafv"):
        baseline.generate(model, inputs, "dart", 0.1)


def test_bad_input_is_refused() -> None:
    model, inputs = subject()
    with pytest.raises(ValueError, match="no method to measure"):
        measure(model, inputs, methods=[])
    padded = {**inputs, "attention_mask": inputs["attention_mask"].index_fill(1, torch.tensor([0]), 0)}
    with pytest.raises(ValueError, match="padded"):
        measure(model, padded)


def test_methods_inside_the_llm_are_measured_without_targets() -> None:
    model, inputs = subject("llava-1.5-7b", 1)
    methods = ["fastv:layer=1:budget=final", "uniform"]
    found = measure(model, inputs, methods=methods, keeps=[0.2], new_tokens=1, repeats=1, clock="process")
    inside, before, stock = (
        found.find("foveate", 0.2, methods[0]),
        found.find("foveate", 0.2, "uniform"),
        found.results[0],
    )
    assert inside and before
    assert inside.prompt_tokens == stock.prompt_tokens > before.prompt_tokens
    # One of two layers holds all tokens, the other a fifth.
    assert inside.cache_bytes == (stock.cache_bytes + before.cache_bytes) / 2
    assert {target.name.split(":")[0] for target in found.targets()} == {"uniform"}
    assert Report(found.results, methods[:1], [1.0, 0.2], 1, 1).targets() == []


def made(kind: Any, keep: float, ttft: float, peak: int, over: float | None, lean: float | None = None) -> Result:
    method = "adafv" if kind == "foveate" else ""
    return Result(kind, method, keep, int(100 * keep), ttft, None, None, peak, 0, 0, over, 1.0, lean)


def test_targets_tell_what_is_missed() -> None:
    results = [
        made("stock", 1.0, 100, 1000, None),
        made("bound", 1.0, 100, 900, 1.0),
        made("bound", 0.1, 20, 500, 1.0),
        made("foveate", 1.0, 100, 1001, 1.0),
        made("foveate", 0.1, 25, 500, 1.25),
    ]
    time, speedup, memory = Report(results, ["adafv"], [1.0, 0.1], 1, 1).targets()
    assert (time.value, time.holds) == (1.25, False)
    assert (speedup.value, speedup.holds) == (0.8, False)
    assert (memory.value, memory.holds) == (1.001, False)
    results[4] = made("foveate", 0.1, 20.5, 500, 1.025)
    results[3] = made("foveate", 1.0, 100, 1000, 1.0)
    assert all(target.holds for target in Report(results, ["adafv"], [1.0, 0.1], 1, 1).targets())
    results[4] = made("foveate", 0.1, 20.5, 500, 1.025, 1.04)
    lean = Report(results, ["adafv"], [1.0, 0.1], 1, 1).targets()[1]
    assert "lean" in lean.name and (lean.value, lean.holds) == (1.04, False)


def test_tables_and_plot_hold_every_result() -> None:
    heads, rows = results_table(report())
    assert len(rows) == len(report().results)
    assert all(len(row) == len(heads) for row in rows)
    page = markdown("Title", {"dtype": "float32", "absent": None}, [(heads, rows), targets_table(report())], "command")
    assert page.count("\n| ") == 1 + 1 + len(rows) + 1 + 1 + len(report().targets())
    assert "dtype: float32" in page and "absent" not in page
    labels = plot(report(), "Title").axes[0].get_legend_handles_labels()[1]
    kinds = ["foveate adafv", "foveate saliency", "baseline adafv", "baseline saliency", "bound", "lean-bound", "stock"]
    assert sorted(labels) == sorted(kinds)
