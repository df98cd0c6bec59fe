"""Foveate: vision-language models look where the question points. Training-free visual token pruning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate import functional, serving
    from foveate.attachment import Attachment, attach
    from foveate.prompts import turn_end
    from foveate.pruners import (
        DART,
        INSIDE_METHODS,
        METHODS,
        SCOPE,
        AdaFV,
        CDPruner,
        DivPrune,
        FastV,
        FixedMix,
        HoloV,
        Pool,
        PruMerge,
        PruMergePlus,
        Pruner,
        PyramidDrop,
        Random,
        Saliency,
        SparseVLM,
        TextSimilarity,
        Uniform,
        VisionZip,
        VisPruner,
        get_pruner,
    )
    from foveate.session import Answer, Session, look
    from foveate.tokens import Geometry, Keep, Selection, TextTokens, VisualTokens

__version__ = "0.1.0"

__all__ = [
    "DART",
    "INSIDE_METHODS",
    "METHODS",
    "SCOPE",
    "AdaFV",
    "Answer",
    "Attachment",
    "CDPruner",
    "DivPrune",
    "FastV",
    "FixedMix",
    "Geometry",
    "HoloV",
    "Keep",
    "Pool",
    "PruMerge",
    "PruMergePlus",
    "Pruner",
    "PyramidDrop",
    "Random",
    "Saliency",
    "Selection",
    "Session",
    "SparseVLM",
    "TextSimilarity",
    "TextTokens",
    "Uniform",
    "VisPruner",
    "VisionZip",
    "VisualTokens",
    "attach",
    "functional",
    "get_pruner",
    "look",
    "serving",
    "turn_end",
]

_HOMES = {
    "foveate.attachment": ("Attachment", "attach"),
    "foveate.prompts": ("turn_end",),
    "foveate.pruners": (
        "DART",
        "INSIDE_METHODS",
        "METHODS",
        "SCOPE",
        "AdaFV",
        "CDPruner",
        "DivPrune",
        "FastV",
        "FixedMix",
        "HoloV",
        "Pool",
        "PruMerge",
        "PruMergePlus",
        "Pruner",
        "PyramidDrop",
        "Random",
        "Saliency",
        "SparseVLM",
        "TextSimilarity",
        "Uniform",
        "VisPruner",
        "VisionZip",
        "get_pruner",
    ),
    "foveate.session": ("Answer", "Session", "look"),
    "foveate.tokens": ("Geometry", "Keep", "Selection", "TextTokens", "VisualTokens"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: ``foveate --help`` need not wait for torch."""
    if name in ("functional", "serving"):
        return importlib.import_module(f"foveate.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
