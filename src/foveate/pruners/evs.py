"""What has changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.functional import change_in_place, top_k, uniform_grid
from foveate.pruners.base import Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class EVS(Pruner):
    """The first frame of a video, and what differs most from the same place a frame before: EVS (arXiv 2510.14624).

    As vLLM has it: difference is ``1 - cos`` of projected tokens, where the paper compares pixels of patches; the K
    largest of the whole video stay, ties to the earlier token, and all of the first frame counts as larger than any.

    The budget is exact. Where it is less than the first frame, which vLLM keeps whole in any case, that frame's tokens
    are taken evenly, as ``uniform`` takes them. A picture is one frame: of it nothing is known to change, and it is
    thinned out evenly too.

    Args:
        keep: as for ``Pruner``.
    """

    name: ClassVar[str] = "evs"
    over_time: ClassVar[bool] = True

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The top ``budget`` by ``change``."""
        where = visual.geometry
        frame = where.view if where.frames else torch.zeros_like(where.view)
        change = change_in_place(visual.features.detach(), frame, where.row, where.column)
        first = min(len(visual), where.grids[0][0] * where.grids[0][1]) if where.frames else len(visual)
        if budget >= first:
            return Choice(top_k(change, budget), {"change": change})
        evenly = uniform_grid(where.view[:first], where.row[:first], where.column[:first], budget)
        return Choice(evenly, {"change": change})
