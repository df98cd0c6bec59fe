"""Diversity alone, by the largest smallest distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import max_min_diversity
from foveate.pruners.base import Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class DivPrune(Pruner):
    """Tokens as unlike one another as can be: DivPrune (arXiv 2503.02175).

    As in the paper, on the tokens that enter the LLM, all views of the image at once. ``Centered`` holds it.

    Args:
        keep: as for ``Pruner``.
    """

    name: ClassVar[str] = "divprune"
    takes_weight: ClassVar[bool] = True

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Farthest-point sampling by ``1 - cos``; the score is the distance to the nearest other token."""
        kept, distance = max_min_diversity(visual.likened.detach(), budget, visual.weight)
        return Choice(kept, {"distance": distance})
