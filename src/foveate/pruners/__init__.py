"""Methods by name. One method, one file; a new one is imported and listed here."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from foveate.pruners.adafv import AdaFV
from foveate.pruners.base import Choice, Method, Pruner
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


def parse_method(text: str) -> tuple[type[Method], Mapping[str, Any]]:
    """What a method's name stands for: its class, and options that stand behind the name.

    Args:
        text: ``"adafv"``, or with options ``"fastv:layer=1:budget=final"``. A value is read as Python writes it, where
            it is a literal (``3``, ``0.5``, ``True``, ``(0.25, 0.5)``), else as text.

    Raises:
        ValueError: no such method; the message names those known, or says what a method lacks. An option the method
            does not have, or that is ``keep``, which is said elsewhere.
    """
    name, *given = text.split(":")
    if name in LACKING:
        raise ValueError(f"{name} is not available: {LACKING[name]}")
    known: dict[str, type[Method]] = {**METHODS, **INSIDE_METHODS}
    if name not in known:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(known)}")
    own = [field.name for field in fields(known[name]) if field.init and field.name != "keep"]
    options: dict[str, Any] = {}
    for one in given:
        option, equals, value = one.partition("=")
        if option not in own or not equals:
            raise ValueError(f"{text!r}: {name} has no option {one!r}; known, as in {name}:option=value: {own}")
        try:
            options[option] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[option] = value
    return known[name], options


def get_pruner(name: str, **options: Any) -> Method:
    """The pruner of that name, with its options (``keep`` among them).

    Args:
        name: as for ``parse_method``.
        options: of the method; they go before those behind the name.

    Raises:
        ValueError: as for ``parse_method``, or a value the method refuses.
        TypeError: an option the method does not have.
    """
    method, own = parse_method(name)
    return method(**{**own, **options})


__all__ = [
    "DART", "INSIDE_METHODS", "METHODS", "SCOPE", "AdaFV", "CDPruner", "Choice", "DivPrune", "FastV", "FixedMix",
    "HoloV", "InsidePruner", "Method", "Pool", "PruMerge", "PruMergePlus", "Pruner", "PyramidDrop", "Random",
    "Saliency", "SparseVLM", "TextSimilarity", "Uniform", "VisPruner", "VisionZip", "get_pruner", "parse_method",
]  # fmt: skip
