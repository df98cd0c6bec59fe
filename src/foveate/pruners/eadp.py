"""Coverage of what the question's most focused words point at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import focused_relevance, shifted_cosine_cover, smooth_on_grid
from foveate.functional.common import require_positive
from foveate.functional.text import require_sign
from foveate.pruners.base import Choice, Pruner
from foveate.pruners.text import ReadsQuestion
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class EADP(ReadsQuestion, Pruner):
    """Tokens that cover what the question's most focused words point at: EADP (arXiv 2607.02484).

    Relevance, see ``foveate.functional.focused_relevance``, is smoothed over each view's grid by a 3 x 3 Gaussian,
    raised to a power and weighs facility location with ``(1 + cos) / 2``.

    The released code differs between models. The words that stay are half of them by its function's default and a
    fifth (``share=0.2``) where that is called; the power is 1 in its scripts for LLaVA and 1, 2, 5 or 10 in those for
    Qwen. It negates every cosine, to CLIP's embeddings and to the LLM's (``sign=-1``). For the text as a whole it asks
    CLIP's pooled embedding, on Qwen the mean of the words' embeddings; here it is the mean of the words' cosines, as in
    CDPruner. It mirrors a grid at its edge and does not smooth incomplete ones; here the Gaussian is divided by what of
    it lies on tokens. On LLaVA-NeXT it gives each view a part of the budget by its relevance; here all views of the
    image compete at once. Published, in % of the unpruned model: LLaVA-NeXT-7B with 320 and 160 tokens 98.3 and 95.6.

    Args:
        keep: as for ``Pruner``.
        share: part of the words that stays, those of the least entropy, in (0, 1], one at least. Default 0.5.
        power: of the smoothed relevance, > 0. Default 10.
        sign: 1 (default), or -1: the cosines are negated.
        text_span, special_tokens: as for ``ReadsQuestion``.

    Raises:
        ValueError: ``share`` outside (0, 1], ``power`` not positive and finite, another ``sign``.
    """

    share: float = 0.5
    power: float = 10.0
    sign: int = 1
    text_span: str = "turn"  # type: ignore[misc]
    special_tokens: bool = True

    name: ClassVar[str] = "eadp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:  # NaN fails too
            raise ValueError(f"share must be in (0, 1], got {self.share!r}")
        require_positive(power=self.power)
        require_sign(self.sign)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The greedy cover; ``weight`` is relevance, smoothed and raised."""
        assert text is not None  # Pruner.select has refused an image without text
        features, where = visual.features.detach(), visual.geometry
        relevance = focused_relevance(
            text.embeddings.detach(), features, text_mask=self.text_mask(text), share=self.share, sign=self.sign
        )
        weight = smooth_on_grid(relevance, where.view, where.row, where.column, where.grids) ** self.power
        order, _ = shifted_cosine_cover(features, weight, budget)
        return Choice(order.sort().values, {"relevance": relevance, "weight": weight})
