"""Foveate: vision-language models look where the question points. Training-free visual token pruning."""

from foveate import functional
from foveate.attach import Attachment, attach
from foveate.prompts import turn_end
from foveate.pruners import (
    METHODS,
    AdaFV,
    FixedMix,
    Pruner,
    Random,
    Saliency,
    TextSimilarity,
    Uniform,
    get_pruner,
)
from foveate.session import Answer, Session, look
from foveate.tokens import Geometry, Keep, Selection, TextTokens, VisualTokens

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AdaFV",
    "Answer",
    "Attachment",
    "FixedMix",
    "Geometry",
    "Keep",
    "Pruner",
    "Random",
    "Saliency",
    "Selection",
    "Session",
    "TextSimilarity",
    "TextTokens",
    "Uniform",
    "VisualTokens",
    "attach",
    "functional",
    "get_pruner",
    "look",
    "turn_end",
]
