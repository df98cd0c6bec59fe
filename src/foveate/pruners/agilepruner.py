"""Saliency, and a distance to keep that grows with how much there is in the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import effective_rank, salient_and_apart
from foveate.functional.common import require_weights
from foveate.pruners.base import SALIENCY, Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class AgilePruner(Pruner):
    """Salient tokens, each removing those too like it, the more the richer the image: AgilePruner (arXiv 2603.01236).

    How like is too like: the token of rank i by saliency removes what is nearer than
    ``i * step * effective rank / typical rank``. The paper's typical rank is that of LLaVA's training pictures, a
    number it does not give: the default lies halfway between what it reports for simple and for complex pictures of MME
    (78 and 109, LLaVA-1.5), and another model wants its own (the bundled one has about 35). It measures the vision
    encoder's features, here projected ones are measured and compared, all views of the image at once. It bounds the
    threshold, by a number it does not give either; here nothing does unless ``limit`` is set. Then few tokens are left
    where much is kept (on the bundled model fewer than one in ten), and the most salient of those that were removed
    fill up: set ``limit`` to 0.05 or 0.1 to keep more than that by distance. No code was public when this was written.
    On an accelerator the rank waits for the device once per image. Published for LLaVA-1.5-7B at 128, 64 and 32 of 576
    tokens: 98.0, 96.8 and 94.0 % of unpruned.

    Args:
        keep: as for ``Pruner``.
        step: by how much the threshold grows from rank to rank in an image of typical rank, >= 0. Default 0.01.
        typical_rank: the mean effective rank of the model's pictures, > 0. Default 93.5.
        limit: the threshold grows no larger, in [0, 2]. Default 2: as far as two tokens can be apart.

    Raises:
        ValueError: options outside of their ranges.
    """

    step: float = 0.01
    typical_rank: float = 93.5
    limit: float = 2.0

    name: ClassVar[str] = "agilepruner"
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(step=self.step)
        if not (math.isfinite(self.typical_rank) and self.typical_rank > 0):
            raise ValueError(f"typical_rank must be finite and > 0, got {self.typical_rank!r}")
        if not 0.0 <= self.limit <= 2.0:  # NaN fails too
            raise ValueError(f"limit must be in [0, 2], got {self.limit!r}")

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """By saliency, apart from one another; ``threshold`` is how far a token would keep others away."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        features, score = visual.features.detach(), visual.saliency.detach()
        step = self.step / self.typical_rank * effective_rank(features)
        kept, threshold = salient_and_apart(features, score, budget, step, self.limit)
        return Choice(kept, {SALIENCY: score, "threshold": threshold})
