"""Every instant belongs to one stage, and to the right one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from typing import Any

import pytest
import torch

import foveate
from foveate.attachment import Attachment
from foveate.attention import Recorder
from foveate.benchmarks import prefill
from foveate.benchmarks.measure import Clock
from foveate.benchmarks.report import plot_stages, stages_table
from foveate.benchmarks.shapes import SHAPES
from foveate.benchmarks.stages import measure
from foveate.call import Call
from foveate.stopwatch import STAGES, Stages, Stopwatch
from tests.benchmarks.tinier import tiny

NEW = 3


@pytest.fixture(scope="module", params=["llava-next-7b", "internvl-8b", "qwen2.5-vl-7b"])
def subject(request: pytest.FixtureRequest) -> tuple[Any, dict[str, torch.Tensor]]:
    shape = tiny(SHAPES[request.param])
    if request.param == "llava-next-7b":
        shape = dataclasses.replace(shape, vision={**shape.vision, "image_size": 56}, top=SQUARES, picture=(56, 112))
    model = shape.build()
    return model, shape.inputs(model)


SQUARES = {**SHAPES["llava-next-7b"].top, "image_grid_pinpoints": [[56, 112]]}
CLOCK = Clock("wall", torch.device("cpu"))


def answering(subject: tuple[Any, dict[str, torch.Tensor]], pruner: foveate.Pruner | None) -> Any:
    model, inputs = subject
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}

    def run() -> None:
        if pruner is None:
            model.generate(**inputs, **options)
            return
        with pruner(model):
            model.generate(**inputs, **options)

    return run


def total(found: Stages) -> float:
    return sum(found.of(stage) for stage in STAGES)


def test_instants_go_to_the_innermost_stage() -> None:
    ticks = itertools.count()
    watch = Stopwatch(lambda: float(next(ticks)))
    watch.start("selection")  # 0
    watch.enter("rest")  # 1: selection
    watch.enter("prefill")  # 2: rest
    watch.enter("encoder")  # 3: prefill
    watch.leave()  # 4: encoder
    watch.leave()  # 5: prefill
    watch.turn_into("decode")  # 6: rest
    watch.leave()  # 7: decode
    found = watch.finish()  # 8: selection
    assert found == Stages(encoder_ms=1, selection_ms=2, prefill_ms=2, decode_ms=1, rest_ms=2, total_ms=8)
    assert found.encoder_share == 1 / 7
    assert found.as_dict() == {**dataclasses.asdict(found), "encoder_share": 1 / 7}


def parts(model: Any) -> dict[str, list[tuple[Any, str]]]:
    """By what they are for, functions that a run goes through."""
    tower = getattr(model.model, "vision_tower", None) or model.model.visual
    return {
        "encoder": [(tower, "forward"), (model.model, "get_image_features")],
        "selection": [
            (foveate.AdaFV, "select"), (Call, "_shorten"), (Attachment, "activate"), (Attachment, "remove"),
            (foveate.AdaFV, "record"), (Recorder, "_note"),
        ],
        "language model": [(model.lm_head, "forward"), (model.model.language_model, "forward")],
        "rest": [(model, "_prepare_generation_config")],
    }  # fmt: skip


@pytest.mark.parametrize("pruner", [None, foveate.AdaFV(keep=0.2)], ids=["stock", "pruned"])
def test_what_takes_time_is_in_its_stage(subject: Any, pruner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still but in one function of the model or the package."""
    model, _ = subject
    now = 0.0
    run = answering(subject, pruner)
    for kind, functions in parts(model).items():
        for owner, name in functions:
            calls: list[int] = []
            real = getattr(owner, name)

            @functools.wraps(real)
            def slow(*args: Any, real: Any = real, calls: list[int] = calls, **kwargs: Any) -> Any:
                nonlocal now
                now += 1
                calls.append(1)
                return real(*args, **kwargs)

            with monkeypatch.context() as patched:
                patched.setattr(owner, name, slow)
                found = measure(model, run, lambda: now, ours=pruner is not None, repeats=1)
            times = len(calls)
            wanted = dict.fromkeys(STAGES, 0.0) | {kind: float(times)}
            if kind == "language model":
                assert times == NEW
                wanted = dict.fromkeys(STAGES, 0.0) | {"prefill": 1.0, "decode": NEW - 1.0}
            assert (times > 0) == (kind != "selection" or pruner is not None), name
            assert {stage: found.of(stage) for stage in STAGES} == wanted, name
            assert found.total_ms == times


@pytest.mark.parametrize("pruner", [None, foveate.AdaFV(keep=0.2)], ids=["stock", "pruned"])
def test_they_add_up_and_leave_no_trace(subject: Any, pruner: Any) -> None:
    model, _ = subject
    names = set(vars(model)), set(vars(model.model))
    note = Recorder.note
    pre, post = len(model._forward_pre_hooks), len(model._forward_hooks)
    began = time.perf_counter()
    found = measure(model, answering(subject, pruner), CLOCK, ours=pruner is not None, repeats=1)
    lasted = (time.perf_counter() - began) * 1e3
    assert total(found) == pytest.approx(found.total_ms, rel=1e-9)
    assert 0 < found.total_ms <= lasted
    assert all(found.of(stage) > 0 for stage in STAGES if stage != "selection" or pruner is not None)
    assert found.of("selection") == 0 or pruner is not None
    assert (set(vars(model)), set(vars(model.model))) == names
    assert Recorder.note is note and (len(model._forward_pre_hooks), len(model._forward_hooks)) == (pre, post)


def test_an_error_leaves_no_trace(subject: Any) -> None:
    model, _ = subject
    names = set(vars(model)), set(vars(model.model))

    def run() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        measure(model, run, CLOCK, ours=False)
    assert (set(vars(model)), set(vars(model.model))) == names and not model._forward_hooks
    with pytest.raises(ValueError, match="at least 1"):
        measure(model, run, CLOCK, ours=False, repeats=0)


def test_the_report_shows_them(subject: Any) -> None:
    model, inputs = subject
    report = prefill.measure(
        model, inputs, methods=["adafv", "cover"], keeps=[0.2], new_tokens=2, repeats=1, clock="process"
    )
    timed = [one for one in report.results if one.kind != "baseline"]
    assert all((one.stages is None) == (one.kind == "baseline") for one in report.results)
    heads, rows = stages_table(report)
    assert len(rows) == len(timed) and all(len(row) == len(heads) for row in rows)
    told = report.as_dict()["results"]
    for one, entry in zip(report.results, told, strict=True):
        assert entry["stages"] == (None if one.stages is None else one.stages.as_dict())
    axes = plot_stages(report, "Title").axes[0]
    assert len(axes.patches) == len(STAGES) * len(timed)
    assert axes.get_legend_handles_labels()[1] == list(STAGES)
    ends = [max(bar.get_x() + bar.get_width() for bar in axes.patches[n :: len(timed)]) for n in range(len(timed))]
    assert ends == pytest.approx([one.stages.total_ms for one in timed if one.stages])
