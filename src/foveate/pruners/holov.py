"""A budget for every region of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import holistic_context, spatial_crops
from foveate.pruners.base import SALIENCY, Choice, Pruner, require_count
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class HoloV(Pruner):
    """A share of the budget for every region, by saliency and variety within it: HoloV (arXiv 2510.02912).

    The equations are from memory of the paper, whose text and code could not be looked up again. How crops are cut it
    leaves open: here every view is a square of ``crops`` x ``crops`` of them, and those of
    all views share one budget. A crop keeps its tokens of the best scores. The paper's optional return of pruned
    context inside the LLM is left out.

    Args:
        keep: as for ``Pruner``.
        crops: crops along each side of a view, >= 1. Default 4.
        beta: weight of variety against saliency, >= 0. Default 0.09, as released.

    Raises:
        ValueError: ``crops`` < 1, ``beta`` negative or not finite.
        TypeError: ``crops`` is no int.
    """

    crops: int = 4
    beta: float = 0.09

    name: ClassVar[str] = "holov"
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(crops=self.crops)
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"beta must be finite and >= 0, got {self.beta!r}")

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The budget in proportion to the crops' mean scores, then the best tokens of each."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        where, score = visual.geometry, visual.saliency.detach()
        crop, crops, largest = spatial_crops(where.view, where.row, where.column, where.grids, self.crops)
        kept, context = holistic_context(visual.features.detach(), score, crop, crops, largest, budget, self.beta)
        return Choice(kept, {SALIENCY: score, "context": context})
