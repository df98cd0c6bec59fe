"""Saliency and coverage of the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import saliency_coverage
from foveate.functional.common import require_weights
from foveate.pruners.base import SALIENCY, Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class SCOPE(Pruner):
    """Salient tokens that together resemble every other one: SCOPE (arXiv 2510.24214).

    Where the paper prunes every view on its own, all views of the image compete at once.

    Args:
        keep: as for ``Pruner``.
        alpha: exponent of saliency against the gain in coverage, >= 0. Default 1.

    Raises:
        ValueError: ``alpha`` negative or not finite.
    """

    alpha: float = 1.0

    name: ClassVar[str] = "scope"
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(alpha=self.alpha)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Greedily by coverage gain times saliency; ``coverage`` is how much of the image a token covers alone."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        score = visual.saliency.detach()
        kept, coverage = saliency_coverage(visual.features.detach(), score, budget, self.alpha)
        return Choice(kept, {SALIENCY: score, "coverage": coverage})
