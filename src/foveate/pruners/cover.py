"""What stands for all that the question and the encoder care about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.functional import cosine_cover, relevance_to_text
from foveate.functional.common import require_known, require_positive, require_weights
from foveate.pruners.base import FEATURES, SALIENCY, Choice, Pruner
from foveate.pruners.text import ReadsQuestion
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Cover(ReadsQuestion, Pruner):
    """Tokens that stand for all others, those the question is about before the rest: Foveate's own, unpublished.

    Weighted facility location: the kept set S greedily maximises ``sum_i w_i max_{j in S} max(0, cos(v_i, v_j)) ** p``
    over all N tokens v of the image, all its views at once. A token weighs ``r_i ** 2 / sum r ** 2 + a * s_i / sum s``:
    r is the largest cosine to any of the question's tokens (AdaFV's maximum over words, arXiv 2501.09532), min-max
    scaled over the image (as CDPruner's relevance, arXiv 2506.10967), and s is saliency. DivPrune and CDPruner ask that
    kept tokens differ from one another; here they must resemble what was dropped, so that a token nothing else is like
    is kept only for its own weight. What was measured, and where it does not win, stands in docs/choosing.md.

    Args:
        keep: as for ``Pruner``.
        power: p > 0: how alike a token must be to stand for another. Default 8; 4 to 16 make no difference.
        saliency: a >= 0: weight of saliency against the question's. Default 1. With 0 saliency is not read.
        features: what tokens are compared with one another by. ``"projected"`` (default): the tokens that enter the
            LLM; ``"encoded"``: what the vision encoder hands to the projector, as MMTok does (arXiv 2508.18264).
        text_span, special_tokens: as for ``ReadsQuestion``.

    Raises:
        ValueError: ``power`` not positive, ``saliency`` negative, either not finite; unknown ``features``.
    """

    power: float = 8.0
    saliency: float = 1.0
    features: str = "projected"
    text_span: str = "turn"  # type: ignore[misc]
    special_tokens: bool = True

    name: ClassVar[str] = "cover"
    reads_saliency: ClassVar[bool] = True
    takes_weight: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(power=self.power)
        require_weights(saliency=self.saliency)
        require_known(FEATURES, features=self.features)
        self.reads_saliency = self.saliency > 0  # type: ignore[misc]
        self.reads_encoded = self.features == "encoded"  # type: ignore[misc]

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The greedy cover; ``weight`` is w."""
        choice, _ = self.ranked(visual, text, budget)
        return Choice(choice.indices.sort().values, choice.scores)

    def ranked(
        self, visual: VisualTokens, text: TextTokens | None, budget: int, enough: float = 1.0, least: int = 1
    ) -> tuple[Choice, Tensor]:
        """The choice in the order in which it was made, and how much of the image the first k of it cover.

        Args:
            visual, text, budget: as for ``choose``.
            enough, least: as for ``foveate.functional.cosine_cover``, which need not go on to the budget.

        Returns:
            A choice with ``indices`` (K,) as they were taken; and (K,) float32 in [0, 1], ascending: F of the first k
            over F of all tokens.
        """
        assert text is not None  # Pruner.select has refused an image without text
        mask = self.text_mask(text)
        relevance = relevance_to_text(text.embeddings.detach(), visual.features.detach(), text_mask=mask, words="max")
        weight, scores = _share(relevance.square()), {"relevance": relevance}
        if self.saliency:
            assert visual.saliency is not None  # Pruner.select has refused tokens without
            scores = {SALIENCY: visual.saliency.detach(), **scores}
            weight = weight + self.saliency * _share(scores[SALIENCY])
        if visual.weight is not None:
            weight = weight * visual.weight
        own = self.features == "encoded" and visual.compared is None
        likened = (visual.encoded if own else visual.likened).detach()  # type: ignore[union-attr]
        order, covered = cosine_cover(likened, weight, budget, self.power, enough=enough, least=least)
        return Choice(order, {**scores, "weight": weight}), covered


def _share(values: Tensor) -> Tensor:
    """Values over their sum; as they are where that is nothing."""
    total = values.sum()
    return values / torch.where(total > 0, total, 1.0)
