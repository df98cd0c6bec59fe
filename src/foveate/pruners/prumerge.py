"""Salient tokens that take up those like them, and the same with tokens spread over the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.functional import outliers_with_neighbours, salient_and_spread, top_k
from foveate.pruners.base import SALIENCY, Choice, Pruner, require_count
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class PruMerge(Pruner):
    """The most salient tokens, each merged with those most like it: LLaVA-PruMerge (arXiv 2403.15388).

    The paper keeps as many tokens as are outliers of saliency; here the budget is given and exact, so the number of
    outliers plays no part. The paper merges what leaves the vision tower; here projected tokens are merged, all views
    of the image at once. A kept token counts 1 and what joins it its saliency, as in the released code (the paper's
    formula weighs the kept token by its saliency as well), and the sum is divided by that of the weights. The released
    code appends one more token, all that was not kept summed by saliency; here nothing is appended. Its attention and
    keys are the last layer's, with all heads as one; here they are those of the layer that the projector reads.

    Args:
        keep: as for ``Pruner``.
        neighbours: at most how many tokens are merged into a kept one, >= 0. Default 32.

    Raises:
        ValueError: ``neighbours`` < 0.
        TypeError: ``neighbours`` is no int.
    """

    neighbours: int = 32

    name: ClassVar[str] = "prumerge"
    merges: ClassVar[bool] = True
    reads_saliency: ClassVar[bool] = True
    reads_keys: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(0, neighbours=self.neighbours)

    def centres(self, saliency: Tensor, visual: VisualTokens, budget: int) -> Tensor:
        """(K,) int64, ascending: the tokens that stay, before merging."""
        return top_k(saliency, budget)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The kept tokens, and for each its nearest others by key, weighted by saliency."""
        assert visual.saliency is not None and visual.keys is not None  # Pruner.select has seen to both
        score = visual.saliency.detach()
        kept = self.centres(score, visual, budget)
        weights = outliers_with_neighbours(score, visual.keys.detach(), kept, self.neighbours)
        return Choice(kept, {SALIENCY: score}, weights=weights)


@dataclass
class PruMergePlus(PruMerge):
    """PruMerge with part of the budget spread evenly over the image: LLaVA-PruMerge+ (arXiv 2403.15388).

    The paper adds evenly sampled tokens to the outliers, about three for one; here the budget is given and exact, and
    shared in that proportion. Else as ``PruMerge``.

    Args:
        keep: as for ``Pruner``.
        neighbours: as for ``PruMerge``.
        salient: part of the budget for salient tokens, in [0, 1]. Default 0.25.

    Raises:
        ValueError: ``salient`` outside [0, 1], ``neighbours`` < 0.
        TypeError: ``neighbours`` is no int.
    """

    salient: float = 0.25

    name: ClassVar[str] = "prumerge-plus"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.salient <= 1.0:  # NaN fails too
            raise ValueError(f"salient must be in [0, 1], got {self.salient!r}")

    def centres(self, saliency: Tensor, visual: VisualTokens, budget: int) -> Tensor:
        """The salient part, and the rest of the budget on a lattice over what is left of every view."""
        where = visual.geometry
        return salient_and_spread(saliency, where.view, where.row, where.column, budget, self.salient)
