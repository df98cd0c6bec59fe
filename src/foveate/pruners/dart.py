"""A few pivots, and what is least like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import least_duplicated
from foveate.pruners.base import Choice, Pruner, require_count
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class DART(Pruner):
    """The tokens least like a few pivots, and the pivots: DART (arXiv 2502.11494), here before the LLM.

    The paper prunes after the LLM's second layer, where it takes pivots among image and text tokens by the norm of
    their keys (four of each, by the L1 norm, as released). Here pivots are the projected image tokens of the largest
    Euclidean norm, and duplication is the cosine of projected tokens; all views of the image compete at once.

    Args:
        keep: as for ``Pruner``.
        pivots: how many pivots, >= 1. Default 8, as many as the paper's.

    Raises:
        ValueError: ``pivots`` < 1.
        TypeError: ``pivots`` is no int.
    """

    pivots: int = 8

    name: ClassVar[str] = "dart"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(pivots=self.pivots)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Pivots by norm, then an equal share of the least similar tokens for each."""
        kept, norm = least_duplicated(visual.features.detach(), budget, self.pivots)
        return Choice(kept, {"norm": norm})
