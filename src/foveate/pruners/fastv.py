"""Half of the layers' work for what the last token does not look at: pruning after an early layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.pruners.base import require_count
from foveate.pruners.inside import InsidePruner


@dataclass
class FastV(InsidePruner):
    """Inside the LLM, after an early layer, what the prompt's last token attends to: FastV (arXiv 2403.06764).

    The attention is that of the last layer before the cut, averaged over heads, as in the released code (the paper
    speaks of the attention received from all tokens).

    Args:
        keep, budget: as for ``InsidePruner``.
        layer: K, how many layers see every token, >= 1. Default 2.

    Raises:
        TypeError, ValueError: ``layer`` is no int >= 1.
    """

    layer: int = 2

    name: ClassVar[str] = "fastv"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(layer=self.layer)

    def layers(self, depth: int) -> tuple[int, ...]:
        if self.layer >= depth:
            raise ValueError(
                f"fastv with layer={self.layer} leaves none of the LLM's {depth} layers to be pruned: give a "
                "smaller one"
            )
        return (self.layer,)
