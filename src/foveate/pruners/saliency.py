"""Selection by visual saliency alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import top_k
from foveate.pruners.base import SALIENCY, Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Saliency(Pruner):
    """The tokens that the vision tower itself attends to most: FasterVLM's criterion (arXiv 2412.01818).

    The same tokens stay whatever the question is.

    Args:
        keep: as for ``Pruner``.
    """

    name: ClassVar[str] = "saliency"
    reads_saliency: ClassVar[bool] = True

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The top ``budget`` by saliency, over all views at once."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        score = visual.saliency.detach()
        return Choice(top_k(score, budget), {SALIENCY: score})
