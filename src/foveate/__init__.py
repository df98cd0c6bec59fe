"""Foveate: vision-language models look where the question points. Training-free visual token pruning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate import bundled, functional, serving
    from foveate.asking_again import AskAgain
    from foveate.attachment import Attachment, attach, detach
    from foveate.config import Config, from_config
    from foveate.crops import Crops
    from foveate.pixels import Pixels, resized
    from foveate.pruners import (
        DART,
        EADP,
        EVS,
        FSR,
        INSIDE_METHODS,
        METHODS,
        SCOPE,
        TOPS,
        WRAPPERS,
        AdaFV,
        AgilePruner,
        Auto,
        CDPruner,
        Centered,
        Changing,
        Cover,
        DivPrune,
        FastV,
        FixedMix,
        HoloV,
        Merged,
        Method,
        MMTok,
        Pool,
        PruMerge,
        PruMergePlus,
        Pruner,
        PruneSID,
        PyramidDrop,
        Random,
        Saliency,
        Scorer,
        SparseVLM,
        Spread,
        TextSimilarity,
        Uniform,
        VidCom2,
        VisionZip,
        VisPruner,
        Wrapper,
        get_pruner,
        register,
    )
    from foveate.session import Answer, Session, look
    from foveate.stateless import Generated, generate
    from foveate.tokens import Geometry, Keep, Selection, TextTokens, VisualTokens
    from foveate.turns import turn_end

__version__ = "0.1.0"

_HOMES = {
    "foveate.asking_again": "AskAgain",
    "foveate.attachment": "Attachment attach detach",
    "foveate.config": "Config from_config",
    "foveate.crops": "Crops",
    "foveate.pixels": "Pixels resized",
    "foveate.pruners": (
        "DART EADP EVS FSR INSIDE_METHODS METHODS SCOPE TOPS WRAPPERS AdaFV AgilePruner Auto CDPruner Centered "
        "Changing Cover DivPrune FastV FixedMix HoloV MMTok Merged Method Pool PruMerge PruMergePlus PruneSID "
        "Pruner PyramidDrop Random Saliency Scorer SparseVLM Spread TextSimilarity Uniform VidCom2 VisPruner "
        "VisionZip Wrapper get_pruner register "
    ),
    "foveate.session": "Answer Session look",
    "foveate.stateless": "Generated generate",
    "foveate.tokens": "Geometry Keep Selection TextTokens VisualTokens",
    "foveate.turns": "turn_end",
    "foveate": "bundled functional serving",  # modules
}
"""The public names and where they live: the one list, which type checkers read above (a test ties the two)."""
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: ``foveate --help`` need not wait for torch."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home == __name__:
        return importlib.import_module(f"{home}.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
