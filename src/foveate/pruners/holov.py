"""A budget for every region of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import attention_in_runs, holistic_context, spatial_crops
from foveate.functional.common import require_known, require_weights
from foveate.pruners.base import SALIENCY, Choice, Pruner, require_count
from foveate.tokens import TextTokens, VisualTokens

VARIANTS = ("squares", "released")


@dataclass
class HoloV(Pruner):
    """A share of the budget for every region, by saliency and variety within it: HoloV (arXiv 2510.02912).

    The equations of ``squares`` are from memory of the paper, whose text could not be looked up again. How crops are
    cut it leaves open: here every view is a square of ``crops`` x ``crops`` of them, and those of all views share one
    budget. A crop keeps its tokens of the best scores. ``released`` follows the public code
    (:func:`foveate.functional.attention_in_runs`): its crops are ``crops ** 2`` equal runs of all the image's tokens in
    their order, whatever their views; the best of a crop are its most salient, by saliency alone; and since the
    variance is scaled to the crop's mean saliency, crops share the budget by that mean. Where the code fills a crop
    that has too few tokens up with zeros, the most salient of the other tokens stay. The paper's optional return of
    pruned context inside the LLM is left out.

    Args:
        keep: as for ``Pruner``.
        crops: crops along each side of a view, >= 1; ``released``: its square is the number of runs. Default 4.
        beta: weight of variety against saliency, >= 0. Default 0.09, as released.
        variant: ``"squares"`` (default) or ``"released"``.

    Raises:
        ValueError: ``crops`` < 1, ``beta`` negative or not finite, an unknown ``variant``.
        TypeError: ``crops`` is no int.
    """

    crops: int = 4
    beta: float = 0.09
    variant: str = "squares"

    name: ClassVar[str] = "holov"
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(crops=self.crops)
        require_weights(beta=self.beta)
        require_known(VARIANTS, variant=self.variant)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The budget in proportion to the crops' mean scores, then the best tokens of each."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        where, score, features = visual.geometry, visual.saliency.detach(), visual.features.detach()
        if self.variant == "released":
            kept, context = attention_in_runs(features, score, budget, self.crops**2, self.beta)
        else:
            crop, crops, largest = spatial_crops(where.view, where.row, where.column, where.grids, self.crops)
            kept, context = holistic_context(features, score, crop, crops, largest, budget, self.beta)
        return Choice(kept, {SALIENCY: score, "context": context})
