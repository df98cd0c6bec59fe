"""Methods by name. One method, one file; a new one is imported and listed here."""

from __future__ import annotations

from typing import Any

from foveate.pruners.adafv import AdaFV
from foveate.pruners.base import Choice, Pruner
from foveate.pruners.cdpruner import CDPruner
from foveate.pruners.dart import DART
from foveate.pruners.divprune import DivPrune
from foveate.pruners.holov import HoloV
from foveate.pruners.mix import FixedMix
from foveate.pruners.random import Random
from foveate.pruners.saliency import Saliency
from foveate.pruners.scope import SCOPE
from foveate.pruners.text import TextSimilarity
from foveate.pruners.uniform import Uniform
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
        SCOPE,
        VisPruner,
        Random,
        Uniform,
    )
}


def get_pruner(name: str, **options: Any) -> Pruner:
    """The pruner of that name, with its options (``keep`` among them).

    Raises:
        ValueError: no such method; the message names those known.
        TypeError: an option the method does not have.
    """
    try:
        method = METHODS[name]
    except KeyError:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}") from None
    return method(**options)


__all__ = [
    "DART", "METHODS", "SCOPE", "AdaFV", "CDPruner", "Choice", "DivPrune", "FixedMix", "HoloV", "Pruner", "Random",
    "Saliency", "TextSimilarity", "Uniform", "VisPruner", "get_pruner",
]  # fmt: skip
