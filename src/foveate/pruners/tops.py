"""Relevance, coverage and diversity, weighed at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import optimal_preservation
from foveate.functional.common import require_known, require_weights
from foveate.functional.preservation import SCALES
from foveate.pruners.base import SALIENCY, Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class TOPS(Pruner):
    """Salient tokens that cover the image and differ from one another: TOPS (arXiv 2606.27161) before the LLM.

    The paper's first stage, alone; its second prunes inside the LLM by the question. Its text scales the three terms by
    least and most, its algorithm divides each by its mean, by which saliency, a few tokens having most of it, outweighs
    the others; the text is the default here. Both are taken over the tokens that are left at each step, which the paper
    does not say. All views of the image compete at once. Published with both stages for LLaVA-NeXT-7B at 640, 320 and
    160 of 2880 tokens: 100.0, 99.1 and 96.4 % of unpruned.

    Args:
        keep: as for ``Pruner``.
        coverage: weight of coverage, >= 0. Default 0.5, the paper's for this stage.
        diversity: weight of diversity, >= 0. Default 0.5, the paper's for this stage.
        scale: ``"range"`` (default) or ``"mean"``.

    Raises:
        ValueError: a weight that is negative or not finite, an unknown ``scale``.
    """

    coverage: float = 0.5
    diversity: float = 0.5
    scale: str = "range"

    name: ClassVar[str] = "tops"
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(coverage=self.coverage, diversity=self.diversity)
        require_known(SCALES, scale=self.scale)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Greedily by the three terms; ``coverage`` is how much of the image a token covers alone."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        score, features = visual.saliency.detach(), visual.features.detach()
        kept, alone = optimal_preservation(features, score, budget, self.coverage, self.diversity, self.scale)
        return Choice(kept, {SALIENCY: score, "coverage": alone})
