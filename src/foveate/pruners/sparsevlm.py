"""Visual tokens rated by the words that fit the picture, part of the dropped ones merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.functional import keep_and_recycle, text_raters
from foveate.pruners.base import Choice
from foveate.pruners.inside import InsidePruner, require_fractions, stages_at
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class SparseVLM(InsidePruner):
    """Inside the LLM, at stages, what the words that fit the picture attend to: SparseVLM (arXiv 2410.04417).

    The raters are chosen once, by their embeddings, among all text after the image. The paper lets the rank of their
    attention decide how many tokens a stage drops, its released code has a table of numbers for three budgets; here the
    budget is fixed, and every stage keeps the same share.
    Merged tokens count towards it.

    Args:
        keep, budget: as for ``InsidePruner``.
        stages: where tokens go, fractions of the depth, ascending, in (0, 1). Default: layers 2, 6 and 15 of 32, as
            released. Those that fall on one layer are one stage.
        recycled: part of the dropped tokens that is merged, in [0, 1]. Default 0.3.
        clusters: merged tokens for each recycled one, in [0, 1]; never more than half of a stage's tokens. Default 0.1.

    Raises:
        ValueError: ``stages`` that are none, not ascending or outside (0, 1); a part outside [0, 1].
    """

    stages: tuple[float, ...] = (2 / 32, 6 / 32, 15 / 32)
    recycled: float = 0.3
    clusters: float = 0.1

    name: ClassVar[str] = "sparsevlm"
    reads_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fractions(stages=self.stages)
        for name in ("recycled", "clusters"):
            if not 0.0 <= getattr(self, name) <= 1.0:  # NaN fails too
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")

    def layers(self, depth: int) -> tuple[int, ...]:
        return stages_at(self.stages, depth)

    def raters(self, visual: VisualTokens, text: TextTokens) -> Tensor:
        return text_raters(text.embeddings.detach(), visual.features.detach().to(text.embeddings.device))

    def cut(self, score: Tensor, hidden: Tensor, budget: int) -> Choice:
        kept, weights, merged = keep_and_recycle(score, hidden, budget, self.recycled, self.clusters)
        counts = torch.tensor([budget - merged, merged], device="cpu")
        return Choice(kept, shares={"attention": counts[0], "merged": counts[1]}, weights=weights)
