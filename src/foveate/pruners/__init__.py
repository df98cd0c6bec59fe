"""Methods by name. One method, one file; a new one is imported and listed here."""

from __future__ import annotations

from typing import Any

from foveate.pruners.adafv import AdaFV
from foveate.pruners.base import Choice, Pruner
from foveate.pruners.cdpruner import CDPruner
from foveate.pruners.dart import DART
from foveate.pruners.divprune import DivPrune
from foveate.pruners.fastv import FastV
from foveate.pruners.holov import HoloV
from foveate.pruners.inside import InsidePruner
from foveate.pruners.mix import FixedMix
from foveate.pruners.pool import Pool
from foveate.pruners.prumerge import PruMerge, PruMergePlus
from foveate.pruners.pyramiddrop import PyramidDrop
from foveate.pruners.random import Random
from foveate.pruners.saliency import Saliency
from foveate.pruners.scope import SCOPE
from foveate.pruners.sparsevlm import SparseVLM
from foveate.pruners.text import TextSimilarity
from foveate.pruners.uniform import Uniform
from foveate.pruners.visionzip import VisionZip
from foveate.pruners.vispruner import VisPruner

METHODS: dict[str, type[Pruner]] = {
    method.name: method
    for method in (
        AdaFV,
        Saliency,
        TextSimilarity,
        FixedMix,
        CDPruner,
        DART,
        DivPrune,
        HoloV,
        PruMerge,
        PruMergePlus,
        SCOPE,
        VisionZip,
        VisPruner,
        Random,
        Uniform,
        Pool,
    )
}

INSIDE_METHODS: dict[str, type[InsidePruner]] = {method.name: method for method in (FastV, PyramidDrop, SparseVLM)}
"""Methods that prune inside the LLM, for comparison: some families, greedy decoding and sampling only."""

LACKING = {
    "trim": (
        "TRIM (arXiv 2409.10994) ranks patches by CLIP's image-text similarity, and that needs CLIP's text encoder and "
        "both its projections, which a vision-language checkpoint does not hold; 'text' and 'cdpruner' rank by the "
        "language model's own embeddings of the question"
    ),
}
"""Methods that people ask for by name, and what stands in their way."""


def get_pruner(name: str, **options: Any) -> Pruner:
    """The pruner of that name, with its options (``keep`` among them).

    Raises:
        ValueError: no such method; the message names those known, or says what a method lacks.
        TypeError: an option the method does not have.
    """
    if name in LACKING:
        raise ValueError(f"{name} is not available: {LACKING[name]}")
    known: dict[str, type[Pruner]] = {**METHODS, **INSIDE_METHODS}
    if name not in known:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(known)}")
    return known[name](**options)


__all__ = [
    "DART", "INSIDE_METHODS", "METHODS", "SCOPE", "AdaFV", "CDPruner", "Choice", "DivPrune", "FastV", "FixedMix",
    "HoloV", "InsidePruner", "Pool", "PruMerge", "PruMergePlus", "Pruner", "PyramidDrop", "Random", "Saliency",
    "SparseVLM", "TextSimilarity", "Uniform", "VisPruner", "VisionZip", "get_pruner",
]  # fmt: skip
