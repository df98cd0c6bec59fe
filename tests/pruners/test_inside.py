"""In-LLM methods as objects: options, stages and budgets. What they do to a model is in ``tests/test_inside.py``."""

from __future__ import annotations

import contextlib

import pytest
import torch

import foveate
from foveate import FastV, PyramidDrop, SparseVLM
from foveate.functional import Merge, attention_of_queries
from foveate.pruners import INSIDE_METHODS, METHODS, InsidePruner, get_pruner
from foveate.pruners.base import Choice, Method, Pruner


def test_registry() -> None:
    assert list(INSIDE_METHODS) == ["fastv", "pyramiddrop", "sparsevlm"]
    assert not INSIDE_METHODS.keys() & METHODS.keys()
    for name, method in INSIDE_METHODS.items():
        pruner = get_pruner(name, keep=0.3, budget="final")
        assert type(pruner) is method and isinstance(pruner, Method) and pruner.name == name
        assert not isinstance(pruner, Pruner) and pruner.text_span == "prompt"
        assert (pruner.keep, pruner.budget) == (0.3, "final")
        assert getattr(foveate, method.__name__) is method
        assert "arXiv" in (method.__doc__ or "")
    with pytest.raises(ValueError, match="known: adafv, .*fastv"):
        get_pruner("fast-v")


@pytest.mark.parametrize(
    "pruner, depth, layers",
    [
        (FastV(), 32, (2,)),
        (FastV(layer=1), 2, (1,)),
        (PyramidDrop(), 32, (8, 16, 24)),
        (PyramidDrop(), 4, (1, 2, 3)),
        (PyramidDrop(), 2, (1,)),
        (PyramidDrop(stages=(0.01, 0.99)), 10, (1, 9)),
        (SparseVLM(), 32, (2, 6, 15)),
        (SparseVLM(), 40, (2, 8, 19)),
        (SparseVLM(), 4, (1, 2)),
    ],
)
def test_stages(pruner: InsidePruner, depth: int, layers: tuple[int, ...]) -> None:
    assert pruner.layers(depth) == layers


@pytest.mark.parametrize(
    "pruner, tokens, counts",
    [
        # 10 of 10 in two layers and 3 in eight make a mean of 4.4; one more would make 5.2
        (FastV(keep=5), 10, [10] * 2 + [3] * 8),
        (FastV(keep=5, budget="final"), 10, [10] * 2 + [5] * 8),
        (FastV(keep=1.0), 10, [10] * 10),
        (FastV(keep=99), 10, [10] * 10),
        (
            PyramidDrop(keep=0.125, budget="final", stages=(0.2, 0.5, 0.8)),
            80,
            [80] * 2 + [40] * 3 + [20] * 3 + [10] * 2,
        ),
    ],
)
def test_schedule(pruner: InsidePruner, tokens: int, counts: list[int]) -> None:
    assert pruner.schedule(tokens, 10) == counts


def test_published_budgets() -> None:
    """LLaVA-1.5 (32 layers, 576 tokens) at a mean of 64: what stays late is far fewer."""
    assert FastV(keep=64).schedule(576, 32)[-1] == 29  # (64 * 32 - 2 * 576) / 30 = 29.87
    counts = SparseVLM(keep=64).schedule(576, 32)
    assert sum(counts) / 32 == pytest.approx(64, abs=1) and sum(counts) <= 64 * 32
    assert [counts[layer] for layer in (2, 6, 15)] == sorted((counts[layer] for layer in (2, 6, 15)), reverse=True)


def test_budgets_that_cannot_be_met() -> None:
    with pytest.raises(
        ValueError, match=r"pyramiddrop with keep=0.1: a mean of 58 .* the first 8 of 32 layers hold all 576"
    ):
        PyramidDrop(keep=0.1).schedule(576, 32)
    assert PyramidDrop(keep=0.1, budget="final").schedule(576, 32)[-1] == 58


def test_options_that_are_none() -> None:
    for make, message in (
        (lambda: FastV(budget="all"), "unknown budget 'all'; known: mean, final"),
        (lambda: FastV(layer=0), "layer must be >= 1"),
        (lambda: PyramidDrop(stages=()), "ascending fractions"),
        (lambda: PyramidDrop(stages=(0.5, 0.5)), "ascending fractions"),
        (lambda: SparseVLM(stages=(0.0, 0.5)), "ascending fractions"),
        (lambda: SparseVLM(recycled=1.5), r"recycled must be in \[0, 1\]"),
        (lambda: PyramidDrop().layers(1), "a single layer"),
        (lambda: FastV(layer=4).layers(4), "leaves none of the LLM's 4 layers"),
        (lambda: FastV(keep=0.0), "keep=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="layer must be an int"):
        FastV(layer=2.0)


def test_nothing_is_chosen_before_the_llm_reads() -> None:
    for name in INSIDE_METHODS:
        pruner = get_pruner(name)
        assert not hasattr(pruner, "select") and not hasattr(pruner, "choose")
        with pytest.raises(AttributeError, match=f"{name} chooses by the LLM's own attention"):
            pruner.select(torch.zeros(1))
        with pytest.raises(AttributeError, match=f"{type(pruner).__name__}' object has no attribute 'chosen'"):
            pruner.chosen  # noqa: B018


@pytest.mark.parametrize("name", list(INSIDE_METHODS))
@pytest.mark.parametrize("budget", [1, 7, 30])
def test_nothing_asks_for_a_value(name: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the meta device have no values: whatever would wait for one raises, on any machine."""
    pruner = get_pruner(name)
    query, key, allowed = torch.randn(4, 2, 8), torch.randn(2, 90, 8), torch.ones(2, 90, dtype=torch.bool)
    hidden = torch.randn(40, 16)
    expected = pruner.cut(attention_of_queries(query, key, 0.3, allowed).mean(dim=0)[:40], hidden, budget)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know that device
    score = attention_of_queries(query.to("meta"), key.to("meta"), 0.3, allowed.to("meta")).mean(dim=0)[:40]
    choice = pruner.cut(score, hidden.to("meta"), budget)
    assert choice.indices.is_meta and choice.indices.shape == expected.indices.shape == (budget,)
    assert (choice.weights is None) == (expected.weights is None)


@pytest.mark.parametrize("name", list(INSIDE_METHODS))
def test_autocast_and_the_default_device_do_not_matter(name: str) -> None:
    pruner = get_pruner(name)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(4, 2, 8, generator=generator), torch.randn(2, 90, 8, generator=generator)
    hidden, allowed = torch.randn(40, 16, generator=generator), torch.ones(2, 90, dtype=torch.bool)

    def cut() -> tuple[torch.Tensor, Choice]:
        score = attention_of_queries(query, key, 0.3, allowed).mean(dim=0)[:40]
        return score, pruner.cut(score, hidden, 20)

    score, expected = cut()
    for around in (torch.autocast("cpu", torch.bfloat16), torch.device("meta")):
        with around:
            same, choice = cut()
        assert torch.equal(same, score) and torch.equal(choice.indices, expected.indices)
        assert all(torch.equal(choice.shares[side], expected.shares[side]) for side in expected.shares)
        if name == "sparsevlm":
            assert isinstance(choice.weights, Merge) and isinstance(expected.weights, Merge)
            assert torch.equal(choice.weights.dense(), expected.weights.dense())
