"""How a pruned call is done, beside which tokens stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from foveate.models.base import Family
from foveate.models.encoded import Layout, Newlines, Positions


@dataclass(frozen=True)
class Options:
    """What ``foveate.attach`` was told beside model and pruner; see there.

    Raises:
        ValueError: an unknown value, or values that do not go together.
    """

    positions: Positions | None = None
    newlines: Newlines = "drop"
    layout: Layout = "stock"
    turn_end: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        for name, known in (("positions", Positions), ("newlines", Newlines), ("layout", Layout)):
            value = getattr(self, name)
            if value not in get_args(known) and not (name == "positions" and value is None):
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(get_args(known))}")
        if self.layout == "released" and self.positions == "original":
            raise ValueError(
                "layout='released' sends tokens that have no place in the stock prompt: use positions='compact' with it"
            )

    def check(self, family: Family) -> None:
        """Raises ValueError for what this family does not have."""
        if self.layout not in family.layouts:
            raise ValueError(f"{family.title} has no layout {self.layout!r}; known: {', '.join(family.layouts)}")
        if self.positions is not None and self.positions not in family.positions:
            raise ValueError(
                f"{family.title} has no positions={self.positions!r}; known: {', '.join(family.positions)}"
            )
