"""Selection by visual saliency alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.pruners.base import SALIENCY, Scorer
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Saliency(Scorer):
    """The tokens that the vision tower itself attends to most: FasterVLM's criterion (arXiv 2412.01818).

    The same tokens stay whatever the question is.

    Args:
        keep: as for ``Pruner``.
    """

    name: ClassVar[str] = "saliency"
    reads_saliency: ClassVar[bool] = True

    def score(self, visual: VisualTokens, text: TextTokens | None) -> dict[str, Tensor]:
        """Saliency, over all views at once."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        return {SALIENCY: visual.saliency.detach()}
