"""Saliency and the question, half and half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import fixed_mix
from foveate.pruners.base import SALIENCY, TEXT_TO_IMAGE, Choice, Pruner
from foveate.pruners.text import ReadsText
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class FixedMix(ReadsText, Pruner):
    """Half of the budget by saliency, the other half by the question: AdaFV without its adaptive split.

    Args:
        keep: as for ``Pruner``.
        text_span, temperature, special_tokens: as for ``ReadsText``.
    """

    text_span: str = "turn"  # type: ignore[misc]
    temperature: float = 0.01
    special_tokens: bool = True

    name: ClassVar[str] = "fixed-mix"
    reads_saliency: ClassVar[bool] = True

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The salient half, rounded up, then the tokens the text points at most among the others."""
        assert visual.saliency is not None and text is not None  # Pruner.select has seen to both
        saliency, asked = visual.saliency.detach(), self.text_to_image(visual, text)
        return Choice(fixed_mix(saliency, asked, budget), {SALIENCY: saliency, TEXT_TO_IMAGE: asked})
