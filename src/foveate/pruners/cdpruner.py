"""Diversity among what the question is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import conditional_dpp
from foveate.pruners.base import Choice, Pruner
from foveate.pruners.text import ReadsRelevance
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class CDPruner(ReadsRelevance, Pruner):
    """Tokens that are relevant to the question and unlike one another: CDPruner (arXiv 2506.10967).

    Relevance is the mean cosine of the projected token to the question's input embeddings, the paper's way for models
    without CLIP's text encoder; for LLaVA the paper asks CLIP, whose text encoder stock checkpoints lack. So on LLaVA
    its published numbers are not to be expected. (There it also turns the sign of the cosines, as CLIP's patches are
    least similar to the text they show; projected tokens are most similar, and are scored so; ``sign=-1`` turns it.)
    ``words="max"`` is no part of the paper: it is how AdaFV puts the words of a question together. All views of the
    image compete at once. ``Centered`` holds it.

    Args:
        keep: as for ``Pruner``.
        text_span, special_tokens, words, sign: as for ``ReadsRelevance``.
    """

    text_span: str = "turn"  # type: ignore[misc]
    special_tokens: bool = True
    words: str = "mean"
    sign: int = 1

    name: ClassVar[str] = "cdpruner"
    takes_weight: ClassVar[bool] = True

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Greedy MAP of the conditional DPP."""
        assert text is not None  # Pruner.select has refused an image without text
        relevance = self.relevance(visual, text)
        quality = relevance if visual.weight is None else relevance * visual.weight
        return Choice(conditional_dpp(visual.likened.detach(), quality, budget), {"relevance": relevance})
