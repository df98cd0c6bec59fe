"""Fewer visual tokens the deeper the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.pruners.inside import InsidePruner, require_fractions, stages_at


@dataclass
class PyramidDrop(InsidePruner):
    """Inside the LLM, at stages, what the prompt's last token attends to: PyramidDrop (arXiv 2410.17247).

    Every stage keeps the same share of the tokens before it, ranked by the attention in the last layer before the cut;
    the released code works out that of the layer after it, which costs its projections once more.
    The paper gives that share (0.5) and lets the budget follow; here the share follows from ``keep``.

    Args:
        keep, budget: as for ``InsidePruner``.
        stages: where tokens go, fractions of the depth, ascending, in (0, 1). Default: the quarters, as in the paper.
            Those that fall on one layer are one stage.

    Raises:
        ValueError: ``stages`` that are none, not ascending or outside (0, 1).
    """

    stages: tuple[float, ...] = (0.25, 0.5, 0.75)

    name: ClassVar[str] = "pyramiddrop"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fractions(stages=self.stages)

    def layers(self, depth: int) -> tuple[int, ...]:
        return stages_at(self.stages, depth)
