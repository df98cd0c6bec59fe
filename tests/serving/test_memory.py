"""The memory that a server of the bundled model asks for, and the models that are refused before there is an engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foveate import bundled
from foveate.serving import memory
from foveate.serving.memory import Device
from foveate.serving.server import check_served, config_of

GIB = 1 << 30
USUAL = 0.92
PER_TOKEN = 2 * 4 * 4 * 64 * 4
"""Bytes: keys and values, layers, heads, their size, float32."""


def options(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"kv_cache_memory_bytes": None, "gpu_memory_utilization": USUAL, "max_model_len": None, **given}
    )


def test_the_bundled_model_takes_what_its_requests_can_use() -> None:
    given = options()
    memory.limit(given, bundled.text_config(), Device(23 * GIB, 20 * GIB), USUAL)
    assert given.kv_cache_memory_bytes == 64 * 2048 * PER_TOKEN == GIB
    assert given.gpu_memory_utilization == USUAL
    given = options(max_model_len=1000)
    memory.limit(given, bundled.text_config(), Device(23 * GIB, 20 * GIB), USUAL)
    assert given.kv_cache_memory_bytes == 64 * 1024 * PER_TOKEN


def test_of_little_memory_it_takes_half_and_no_less_than_a_request_needs() -> None:
    for free, taken in ((GIB, GIB // 2), (GIB // 100, 2048 * PER_TOKEN)):
        given = options()
        memory.limit(given, bundled.text_config(), Device(23 * GIB, free), USUAL)
        assert given.kv_cache_memory_bytes == taken
    given = options(tensor_parallel_size=2, data_parallel_size=2)
    memory.limit(given, bundled.text_config(), Device(23 * GIB, 2 * GIB), USUAL)
    assert given.kv_cache_memory_bytes == GIB // 4


def test_on_a_gpu_so_much_must_be_free_and_not_92_percent() -> None:
    given = options()
    memory.limit(given, bundled.text_config(), Device(80 * GIB), USUAL)
    assert given.kv_cache_memory_bytes == GIB
    assert given.gpu_memory_utilization == pytest.approx(3 / 80)
    given = options()
    memory.limit(given, bundled.text_config(), Device(2 * GIB), USUAL)
    assert given.gpu_memory_utilization == USUAL


@pytest.mark.parametrize(
    ("parsed", "typed", "space", "chosen"),
    [
        ({}, ["--enforce-eager"], None, False),
        ({}, ["--gpu_memory_utilization=0.92"], None, True),
        ({"kv_cache_memory_bytes": GIB}, ["--kv-cache-memory-bytes", "1G"], None, True),
        ({"gpu_memory_utilization": 0.5}, ["--config", "options.yaml"], None, True),
        ({"kv_cache_memory_bytes": GIB}, ["--config", "options.yaml"], None, True),
        ({}, [], "4", True),
        ({}, [], "", False),
    ],
)
def test_what_the_user_chooses_goes_through(
    parsed: dict[str, Any], typed: list[str], space: str | None, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    if space is not None:
        monkeypatch.setenv(memory.VARIABLE, space)
    assert memory.is_chosen(options(**parsed), memory.names_of(typed), USUAL) is chosen


def test_what_would_be_served_unpruned_is_refused(tmp_path: Path) -> None:
    check_served(config_of(str(bundled.path())))
    check_served(config_of(str(tmp_path)))  # no config: vLLM has its own ways to find one, or to say so
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama", "architectures": ["MllamaFor"]}))
    with pytest.raises(ValueError, match="'mllama' is not supported: .*cross attention"):
        check_served(config_of(str(tmp_path)))
    other = {"model_type": "some_vlm", "architectures": ["SomeVlmForConditionalGeneration"]}
    with pytest.raises(ValueError, match="SomeVlmFor.*is not pruned in vLLM: that works for Llava.*`vllm serve`"):
        check_served(other)
    check_served({**other, "architectures": ["InternVLForConditionalGeneration"]})
