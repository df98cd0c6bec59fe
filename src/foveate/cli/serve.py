"""``foveate serve``: an OpenAI-compatible server whose images are pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.cli.console import parse_keep, split_list
from foveate.pixels import Pixels


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed."""

    model: str
    vllm_options: Sequence[str]
    method: str
    keep: str
    max_keep: str
    methods: str | None
    option: Sequence[str]
    feature_cache: int
    image_cache: int
    crops: str | None = None
    pixels: str | None = None


def run(request: Request) -> None:
    """Serves until it is stopped.

    Raises:
        ValueError: options that do not fit; the message says which.
        ModuleNotFoundError: vLLM is not installed.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    from foveate.loading import failed
    from foveate.serving.server import parse_options, serve

    if request.model.startswith("-"):
        raise ValueError(f"give the model first: foveate serve MODEL {request.model} ...")
    pruning: dict[str, Any] = {
        "method": request.method,
        "keep": parse_keep(request.keep),
        "max_keep": parse_keep(request.max_keep, "--max-keep"),
        "methods": split_list(request.methods) if request.methods else [],
        "feature_cache_mib": request.feature_cache,
        "image_cache_mib": request.image_cache,
        "crops": request.crops,
        **({} if request.pixels is None else {"pixels": Pixels.parse(request.pixels).value}),
        **parse_options(request.option),
    }
    try:
        serve(request.model, request.vllm_options, pruning)
    except LocalEntryNotFoundError as error:  # of vLLM, offline: it names neither the model nor what to do
        raise ValueError(failed(request.model, error, local=False)) from error
    except RuntimeError as error:
        if "foveate" in str(error):
            raise ValueError(str(error)) from None
        raise
