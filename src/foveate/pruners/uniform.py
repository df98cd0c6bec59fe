"""The other blind control: tokens on a regular grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import uniform_grid
from foveate.pruners.base import Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Uniform(Pruner):
    """Tokens spread evenly over all views, whatever they show and whatever is asked.

    Args:
        keep: as for ``Pruner``.
    """

    name: ClassVar[str] = "uniform"

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The ``budget`` tokens nearest to a lattice over each view."""
        where = visual.geometry
        return Choice(uniform_grid(where.view, where.row, where.column, budget))
