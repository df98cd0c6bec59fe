"""Evidence, what it lacks, and what is left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import focus_scan_refine, relevance_to_text
from foveate.functional.common import require_weights
from foveate.pruners.base import SALIENCY, Choice, Pruner
from foveate.pruners.text import ReadsQuestion
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class FSR(ReadsQuestion, Pruner):
    """What is relevant and salient, then what is unlike it, then likenesses merged in: FSR (arXiv 2602.05809).

    Relevance is CDPruner's: the mean cosine of the projected token to the question's input embeddings, where the paper
    asks CLIP's text encoder, which stock checkpoints lack (for Qwen2.5-VL it leaves relevance out: ``alpha=0``).
    Normalised scores, which the paper does not define, are scaled by least and most. Tokens merged one after the other
    by their priorities come to their weighted mean, which is taken at once. No code was public when this was written.
    All views of the image compete at once. Published for LLaVA-1.5-7B at 64 of 576 tokens: 96.1 % of unpruned.

    Args:
        keep: as for ``Pruner``.
        alpha: exponent of relevance, >= 0. Default 3.
        beta: exponent of saliency, >= 0. Default 1.
        mass: part of the priority that the tokens kept for it hold, in (0, 1]. Default 0.9.
        refine: dropped tokens that are merged for each of those kept for their difference, >= 0. Default 1.
        text_span, special_tokens: as for ``ReadsQuestion``.

    Raises:
        ValueError: options outside of their ranges.
    """

    alpha: float = 3.0
    beta: float = 1.0
    mass: float = 0.9
    refine: float = 1.0
    text_span: str = "turn"  # type: ignore[misc]
    special_tokens: bool = True

    name: ClassVar[str] = "fsr"
    merges: ClassVar[bool] = True
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(alpha=self.alpha, beta=self.beta, refine=self.refine)
        if not 0.0 < self.mass <= 1.0:  # NaN fails too
            raise ValueError(f"mass must be in (0, 1], got {self.mass!r}")

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Focus by priority, Scan by difference, Refine by likeness; shares say how many the first two brought."""
        assert text is not None and visual.saliency is not None  # Pruner.select has seen to both
        features, saliency = visual.features.detach(), visual.saliency.detach()
        relevance = relevance_to_text(text.embeddings.detach(), features, text_mask=self.text_mask(text))
        kept, weights, priority, focus = focus_scan_refine(
            features, relevance, saliency, budget, self.alpha, self.beta, self.mass, self.refine
        )
        scores = {SALIENCY: saliency, "relevance": relevance, "priority": priority}
        return Choice(kept, scores, {"focus": focus, "scan": budget - focus}, weights)
