"""What vLLM's towers hand to their projectors, read by a method of another package: the choices of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate import serving
from foveate.pruners.registry import METHODS, load_entry_points
from tests.vllm import checkpoints
from tests.vllm.engines import Engine
from tests.vllm.test_families import (
    CASES,
    ONE_WAY,
    OPTIONS,
    VARIANTS,
    Process,
    Served,
    agree,
    forget,
    lookups,
    mend,
    own_options,
    profile,
    seen,
    watch,
)

KEEPS = [0.25, 5]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package that names the method as one of its entry points; other processes get the same path."""
    root = tmp_path_factory.mktemp("installed")
    about = root / "ramp-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ramp\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[foveate.methods]\nramp = tests.vllm.ramp:Ramp\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        load_entry_points.cache_clear()
        yield
    load_entry_points.cache_clear()
    METHODS.pop("ramp", None)


@pytest.fixture(scope="module")
def process(installed: None) -> Iterator[Process]:
    one = Process(True)
    yield one
    if one.engine is not None:
        one.engine.close()


def served(name: str, folder: Path, engine: Engine) -> Served:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return Served(name, folder, model, AutoProcessor.from_pretrained(folder), engine)


@pytest.mark.parametrize("name", [name for name in checkpoints.FAMILIES if name not in VARIANTS])
def test_choices_are_those_of_transformers(name: str, process: Process, tmp_path: Path) -> None:
    """All cases in one batch, then all once more from the cache of encoded pictures."""
    folder = checkpoints.write(name, tmp_path)
    options = serving.options("ramp", keep=0.25, methods=("adafv",), feature_cache_mib=16)
    if name in ONE_WAY:
        options["is_mm_prefix_lm"] = False
    family = served(name, folder, process.load(folder, hf_overrides=options, **own_options(name)))
    family.engine.call(watch)
    family.engine.call(mend)
    family.engine.call(forget)
    for keep in KEEPS:
        chosen: set[Any] = set()
        for one, case in zip(family.ask(list(CASES.values()), {"keep": keep}), CASES.values(), strict=True):
            answer = family.expected(case, "ramp", keep)
            agree(one, answer)
            chosen |= {("ramp", keep, indices) for indices in answer.chosen}
        assert family.engine.call(seen) == chosen
        assert len(chosen) > len(CASES)
    hits, misses = family.engine.call(lookups)
    assert misses == 11  # different pictures
    assert hits >= misses
    agree(*family.ask([CASES["one"]], {"method": "adafv"}), family.expected(CASES["one"], "adafv", 0.25))  # type: ignore[call-arg]


SPLITS = [
    ("llava-clip", "tensor_parallel_size"),
    ("qwen2_5_vl", "tensor_parallel_size"),
    ("llava-clip", "pipeline_parallel_size"),
]


@pytest.mark.parametrize("name, split", SPLITS)
def test_two_ranks(name: str, split: str, installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, each with half of every layer, or half of the layers, answer as one; and every rank of a tower
    hands over the same."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # by itself it wants a NUMA node for each
    folder = checkpoints.write(name, tmp_path)
    options = serving.options("ramp", keep=0.25, methods=("adafv", "visionzip"), feature_cache_mib=16)
    engine = Engine(str(folder), hf_overrides=options, distributed_executor_backend="mp", **{split: 2}, **OPTIONS)
    try:
        engine.call(profile)  # without it vLLM's second stage on a CPU has nowhere to put what it receives
        family = served(name, folder, engine)
        for method, keep in (("ramp", 0.25), ("adafv", 1.0), ("adafv", 0.25), ("visionzip", 5)):
            told = family.ask(list(CASES.values()), {"keep": keep, "method": method})
            for one, case in zip(told, CASES.values(), strict=True):
                agree(one, family.expected(case, method, keep))
    finally:
        engine.close()
