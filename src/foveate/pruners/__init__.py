"""Methods by name. One method, one file; a new one is imported and listed here, and named in ``method_names``."""

from foveate.pruners.adafv import AdaFV
from foveate.pruners.agilepruner import AgilePruner
from foveate.pruners.auto import Auto
from foveate.pruners.base import Choice, Method, Pruner, Scorer
from foveate.pruners.cdpruner import CDPruner
from foveate.pruners.centered import Centered
from foveate.pruners.changing import Changing
from foveate.pruners.cover import Cover
from foveate.pruners.dart import DART
from foveate.pruners.divprune import DivPrune
from foveate.pruners.eadp import EADP
from foveate.pruners.evs import EVS
from foveate.pruners.fastv import FastV
from foveate.pruners.fsr import FSR
from foveate.pruners.holov import HoloV
from foveate.pruners.inside import InsidePruner
from foveate.pruners.merged import Merged
from foveate.pruners.mix import FixedMix
from foveate.pruners.mmtok import MMTok
from foveate.pruners.pool import Pool
from foveate.pruners.prumerge import PruMerge, PruMergePlus
from foveate.pruners.prunesid import PruneSID
from foveate.pruners.pyramiddrop import PyramidDrop
from foveate.pruners.random import Random
from foveate.pruners.registry import (
    INSIDE_METHODS,
    METHODS,
    WRAPPERS,
    get_pruner,
    known_methods,
    parse_method,
    register,
    replaced,
    takes,
)
from foveate.pruners.saliency import Saliency
from foveate.pruners.scope import SCOPE
from foveate.pruners.sparsevlm import SparseVLM
from foveate.pruners.spread import Spread
from foveate.pruners.text import TextSimilarity
from foveate.pruners.tops import TOPS
from foveate.pruners.uniform import Uniform
from foveate.pruners.vidcom2 import VidCom2
from foveate.pruners.visionzip import VisionZip
from foveate.pruners.vispruner import VisPruner
from foveate.pruners.wrapper import Wrapper

for _method in (
    AdaFV,
    Cover,
    Saliency,
    TextSimilarity,
    FixedMix,
    AgilePruner,
    CDPruner,
    DART,
    DivPrune,
    EADP,
    EVS,
    FSR,
    HoloV,
    MMTok,
    PruMerge,
    PruMergePlus,
    PruneSID,
    SCOPE,
    TOPS,
    VidCom2,
    VisionZip,
    VisPruner,
    Random,
    Uniform,
    Pool,
    FastV,
    PyramidDrop,
    SparseVLM,
    Centered,
    Merged,
    Auto,
    Changing,
    Spread,
):
    register(_method)

__all__ = [
    "DART", "EADP", "EVS", "FSR", "INSIDE_METHODS", "METHODS", "SCOPE", "TOPS", "WRAPPERS", "AdaFV", "AgilePruner",
    "Auto", "CDPruner", "Centered", "Changing", "Choice", "Cover", "DivPrune", "FastV", "FixedMix", "HoloV",
    "InsidePruner", "MMTok", "Merged", "Method", "Pool", "PruMerge", "PruMergePlus", "PruneSID", "Pruner",
    "PyramidDrop", "Random", "Saliency", "Scorer", "SparseVLM", "Spread", "TextSimilarity", "Uniform", "VidCom2",
    "VisPruner", "VisionZip", "Wrapper", "get_pruner", "known_methods", "parse_method", "register", "replaced",
    "takes",
]  # fmt: skip
