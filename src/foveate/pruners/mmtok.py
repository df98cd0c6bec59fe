"""Coverage of the question and of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import multimodal_cover
from foveate.functional.common import require_known, require_positive, require_weights
from foveate.pruners.base import FEATURES, Choice, Pruner
from foveate.pruners.text import ReadsQuestion
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class MMTok(ReadsQuestion, Pruner):
    """Tokens that together cover the question's words and the image's tokens: MMTok (arXiv 2508.18264).

    Greedy facility location over what each word and each token spreads over the image; see
    ``foveate.functional.multimodal_cover``. The released code first drops words that name nothing visible ("the", "is",
    "what") and template sentences; here all tokens of the chosen text count but special ones. It chooses in every view
    on its own with the same part of the budget; here all views of the image compete at once. Published, in % of the
    unpruned model: LLaVA-1.5-7B with 64 tokens 96.6, LLaVA-NeXT-7B with 320 and 160 tokens 97.3 and 95.1.

    Args:
        keep: as for ``Pruner``.
        temperature: of the words' softmax, > 0. Default 0.02, the paper's for LLaVA; for Qwen2.5-VL it is 0.01.
        visual_temperature: of the tokens' softmax, > 0. Default 0.2.
        visual_weight: how much covering tokens counts beside covering words, >= 0. Default 0.5.
        features: what tokens are compared with one another by. ``"encoded"`` (default), as in the paper: what the
            vision encoder hands to the projector; ``"projected"``: the tokens that enter the LLM.
        text_span, special_tokens: as for ``ReadsQuestion``, but special tokens are left out by default.

    Raises:
        ValueError: a temperature not positive, ``visual_weight`` negative, either not finite; unknown ``features``.
    """

    temperature: float = 0.02
    visual_temperature: float = 0.2
    visual_weight: float = 0.5
    features: str = "encoded"
    text_span: str = "turn"  # type: ignore[misc]
    special_tokens: bool = False

    name: ClassVar[str] = "mmtok"
    reads_encoded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature, visual_temperature=self.visual_temperature)
        require_weights(visual_weight=self.visual_weight)
        require_known(FEATURES, features=self.features)
        self.reads_encoded = self.features == "encoded"  # type: ignore[misc]

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The greedy cover; ``coverage`` is what a token would cover alone."""
        assert text is not None  # Pruner.select has refused an image without text
        projected = visual.features.detach()
        compared = projected if self.features == "projected" else visual.encoded
        assert compared is not None  # Pruner.select has refused tokens without
        kept, coverage = multimodal_cover(
            text.embeddings.detach(),
            projected,
            compared.detach(),
            budget,
            self.temperature,
            self.visual_temperature,
            self.visual_weight,
            text_mask=self.text_mask(text),
        )
        return Choice(kept, {"coverage": coverage})
