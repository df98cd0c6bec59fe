"""How much memory vLLM is asked for with the model that ships with Foveate: what its requests can use.

vLLM's own default is a share of all memory of the device, 92 %, and fails where other programs have some of it. Knows
nothing of vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPTIONS = frozenset({"--kv-cache-memory-bytes", "--gpu-memory-utilization"})
VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
"""How a user says it: then nothing is chosen here."""
AT_ONCE = 64
"""Requests of the model's full length that shall find room."""
BLOCK = 256
"""Tokens: no block of vLLM's KV cache is larger."""
BESIDE = 2 << 30
"""Bytes on a GPU for all but the KV cache: weights, activations, Foveate's own caches."""


@dataclass(frozen=True)
class Device:
    """What vLLM would run on.

    Args:
        total: bytes of memory that it has.
        free: of these not in use; None where it is not known before the engine starts, as on a GPU.
    """

    total: int
    free: int | None = None


def names_of(typed: Sequence[str]) -> set[str]:
    """The options among vLLM's as typed, in one spelling."""
    return {one.split("=")[0].replace("_", "-") for one in typed if one.startswith("--")}


def is_chosen(parsed: Any, typed: Collection[str], usual: float) -> bool:
    """Whether the user says how much memory is taken.

    Args:
        parsed: vLLM's options, parsed; those of a file of options among them.
        typed: the names of those that were typed.
        usual: vLLM's default of ``gpu_memory_utilization``.
    """
    if OPTIONS & set(typed) or os.environ.get(VARIABLE):
        return True
    return parsed.kv_cache_memory_bytes is not None or parsed.gpu_memory_utilization != usual


def kv_cache_bytes(text: Mapping[str, Any], length: int | None, memory: int) -> int:
    """Bytes for the KV cache of one engine process: for ``AT_ONCE`` requests of full length, at most half of the
    memory, at least what a single request needs.

    Args:
        text: the language model's config, as a checkpoint's config.json has it.
        length: the longest request, tokens; None or less than 1: what the model can.
        memory: bytes that it may take from.
    """
    length = length if length is not None and length > 0 else int(text["max_position_embeddings"])
    numbers = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]
    one = -(-length // BLOCK) * BLOCK * numbers * 4
    return int(max(one, min(one * AT_ONCE, memory // 2)))


def limit(parsed: Any, text: Mapping[str, Any], device: Device, usual: float) -> None:
    """Writes into vLLM's parsed options how much memory is taken.

    Args:
        parsed: vLLM's options, parsed.
        text: see ``kv_cache_bytes``.
        device: what vLLM would run on.
        usual: vLLM's default of ``gpu_memory_utilization``.
    """
    ranks = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        ranks *= int(getattr(parsed, name, None) or 1)
    if device.free is not None:  # all processes of a machine without a GPU share its memory
        parsed.kv_cache_memory_bytes = kv_cache_bytes(text, parsed.max_model_len, device.free // ranks)
        return
    taken = kv_cache_bytes(text, parsed.max_model_len, device.total)
    parsed.kv_cache_memory_bytes = taken
    # With the bytes given, vLLM only looks whether so much is free.
    parsed.gpu_memory_utilization = min(usual, (taken + BESIDE) / device.total)
