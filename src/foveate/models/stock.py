"""What a function of stock transformers takes, and whether it is one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function names, without those that are None.

    One that transformers did not write may pass on what it does not name, and gets them all.
    """
    names = inspect.signature(function).parameters
    passes = not is_stock(function) and any(one.kind is one.VAR_KEYWORD for one in names.values())
    return {name: value for name, value in arguments.items() if (name in names or passes) and value is not None}


def is_stock(function: Callable[..., Any]) -> bool:
    """Whether transformers itself wrote a function, rather than a checkpoint's repository or a user."""
    return str(getattr(function, "__module__", "")).startswith("transformers.")


def require_encoded_apart(title: str, base: nn.Module) -> None:
    """Raises ValueError where a class's forward takes no encoded images from outside (before 5.18): for families whose
    class fails by itself in older versions."""
    if "mm_encoder_outputs" not in inspect.signature(base.forward).parameters:
        raise ValueError(
            f"{title}: the model of this transformers fails by itself (static caches, decoding without a cache); it is "
            "known to work from 5.19 on: upgrade transformers, or use no pruner"
        )
