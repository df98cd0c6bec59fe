"""``foveate serve``: an OpenAI-compatible server whose images are pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.cli.console import parse_keep, split_list
from foveate.cli.settling import ATTACHING, refuse_set, settled
from foveate.method_names import AUTO


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed."""

    model: str
    vllm_options: Sequence[str]
    method: str | None
    keep: str | None
    max_keep: str
    methods: str | None
    option: Sequence[str]
    feature_cache: int
    image_cache: int
    crops: str | None = None
    pixels: str | None = None
    config: str | None = None


def run(request: Request) -> None:
    """Serves until it is stopped.

    Raises:
        ValueError: options that do not fit; the message says which.
        ModuleNotFoundError: vLLM is not installed.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    from foveate.loading import failed
    from foveate.serving.server import serve

    if request.model.startswith("-"):
        raise ValueError(f"give the model first: foveate serve MODEL {request.model} ...")
    config = settled(
        request.config, method=request.method, keep=request.keep, option=request.option, crops=request.crops,
        pixels=request.pixels,
    )  # fmt: skip
    if config.keep == AUTO:
        raise ValueError(f"keep {AUTO}: a server lays the prompt out before it sees the picture: give a budget")
    refuse_set(config, request.config, ATTACHING, "is the family's own in a server")
    pruning: dict[str, Any] = {
        "method": config.method,
        "keep": config.keep,
        "max_keep": parse_keep(request.max_keep, "--max-keep"),
        "methods": split_list(request.methods) if request.methods else [],
        "feature_cache_mib": request.feature_cache,
        "image_cache_mib": request.image_cache,
        "crops": config.crops,
        **({} if config.pixels is None else {"pixels": config.pixels}),
        **config.options,
    }
    try:
        serve(request.model, request.vllm_options, pruning)
    except LocalEntryNotFoundError as error:  # of vLLM, offline: it names neither the model nor what to do
        raise ValueError(failed(request.model, error, local=False)) from error
    except RuntimeError as error:
        if "foveate" in str(error):
            raise ValueError(str(error)) from None
        raise
