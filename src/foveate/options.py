"""How a pruned call is done, beside which tokens stay."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from foveate.calibration import check_calibrated
from foveate.crops import Crops
from foveate.models.base import Family
from foveate.models.encoded import Layout, Newlines, Positions
from foveate.turns import Turns, turns_at, turns_of


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
    processor: Any = None
    calibrate: bool | float = False
    crops: Crops | float | int | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "crops", Crops.of(self.crops))
        if not isinstance(self.calibrate, (bool, int, float)):
            raise TypeError(f"calibrate must be a bool or a number in [0, 1], got {type(self.calibrate).__name__}")
        if not 0.0 <= self.calibrate <= 1.0:  # NaN fails both comparisons
            raise ValueError(f"calibrate={self.calibrate!r} must be a bool or a number in [0, 1]")
        if self.calibrate and self.layout == "released":
            raise ValueError("layout='released' has no calibrate: the published runs it stands for had none")
        for name, known in (("positions", Positions), ("newlines", Newlines), ("layout", Layout)):
            value = getattr(self, name)
            if value not in get_args(known) and not (name == "positions" and value is None):
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(get_args(known))}")
        if self.layout == "released" and self.crops is not None:
            raise ValueError("layout='released' has every view's full grid: leave crops out")
        if self.layout == "released" and self.positions == "original":
            raise ValueError(
                "layout='released' sends tokens that have no place in the stock prompt: use positions='compact' with it"
            )

    @property
    def routed(self) -> Crops | None:
        """``crops`` as they were meant; None where all are encoded at once, as stock does."""
        assert self.crops is None or isinstance(self.crops, Crops)
        return self.crops

    @property
    def ranks(self) -> bool:
        """Whether crops are chosen for the question, after the base views."""
        return self.routed is not None and self.routed.ranks

    def check(self, family: Family) -> None:
        """Raises ValueError for what this family does not have."""
        if self.calibrate:
            check_calibrated(family)
        if self.routed is not None and not family.crops:
            raise ValueError(
                f"{family.title} does not cut a picture into crops beside a base view, so crops={self.crops} cannot "
                "choose among them: leave it out"
            )
        if self.layout not in family.layouts:
            raise ValueError(f"{family.title} has no layout {self.layout!r}; known: {', '.join(family.layouts)}")
        if self.positions is not None and self.positions not in family.positions:
            raise ValueError(
                f"{family.title} has no positions={self.positions!r}; known: {', '.join(family.positions)}"
            )

    def turns(self, family: Family) -> Turns:
        """How user turns are written: as the chat template says that was given, or the one beside the model's weights;
        without any, a turn ends with the model's EOS tokens. Ends that the caller named go before."""
        found = None
        if self.processor is not None:
            with contextlib.suppress(ValueError):  # no template: no turns but those that EOS tokens end
                found = turns_of(self.processor)
        elif family.model.name_or_path:
            found = turns_at(str(family.model.name_or_path))
        found = found or Turns(ends=family.turn_end_ids)
        if self.turn_end is not None:
            found = replace(found, ends=tuple(tuple(map(int, end)) for end in self.turn_end), named=True)
        return replace(found, special=found.special | family.special_token_ids)
