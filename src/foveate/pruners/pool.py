"""The control for merging: plain averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import spatial_pooling
from foveate.pruners.base import Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Pool(Pruner):
    """Averages over equal cells of every view, whatever they show and whatever is asked.

    With a budget below the number of views some views have no token.

    Args:
        keep: as for ``Pruner``.
    """

    name: ClassVar[str] = "pool"
    merges: ClassVar[bool] = True

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Average pooling to exactly ``budget`` tokens, each in the place nearest to its cell's centre."""
        where = visual.geometry
        kept, weights = spatial_pooling(where.view, where.row, where.column, budget)
        return Choice(kept, weights=weights)
