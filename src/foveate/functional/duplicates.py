"""Tokens without their duplicates: pure functions of one image's tokens.

They take one image at a time, (N, D) without batch dimensions. Similarity is the cosine, in float32. There is a loop
over rounds, whose steps are tensor operations that nothing waits for on an accelerator.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from foveate.functional.common import descending, directions, everything, require_budget, require_length

_BLOCK = 1 << 22  # cells of a table that is built piece by piece (16 MiB)
_FEW = 1 << 18  # cells that are read no slower than looked up in lists
_LISTED = (4, 16, 64)
"""How many of its neighbours are looked at before a token's whole row is: the first four, which is mostly enough, then
the others up to the 16th, and to the 64th. While one token in ten is in question, one list in a thousand has none."""


def important_and_diverse(
    visual: Tensor, saliency: Tensor, budget: int, important: float = 0.5, step: int = 8
) -> tuple[Tensor, Tensor]:
    """Salient tokens, and of the others those that remain when duplicates are removed: VisPruner (arXiv 2412.01818 v2).

    The ``floor(important * K)`` most salient tokens stay. The others, the most salient first, are split alternately in
    two halves; the ``step`` tokens of the first half that are most similar to some token of the second are dropped.
    What remains of the first, the most similar first, and then the second are split anew until the budget is met:
    the order, which the paper leaves open, is the released code's. O(N^2 D) time for the similarities, then O(N^2) a
    round (on the CPU O(N) as a rule, see :class:`_Closest`); O(N^2) memory.

    Args:
        visual: (N, D) tokens of one image.
        saliency: (N,).
        budget: K >= 1; with N <= K everything is kept.
        important: part of the budget for salient tokens, in [0, 1]. Default 0.5.
        step: tokens dropped in a round, >= 1. Default 8.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the cosine of every token to the most similar other one, (N,)
        float32. Of equally salient tokens the earlier stays, of equally similar ones the one that stood first.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, ``important`` outside [0, 1], ``step`` < 1; on CPU
            tensors also NaN or infinity.
    """
    budget = require_budget(budget)
    if not 0.0 <= important <= 1.0:  # NaN fails too
        raise ValueError(f"important must be in [0, 1], got {important!r}")
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step!r}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        likeness = (unit @ unit.T).fill_diagonal_(-1.0)
    closest = likeness.amax(dim=-1)
    if tokens <= budget:
        return everything(saliency), closest
    order = descending(saliency)[1]
    salient = math.floor(important * budget + 1e-9)
    kept, left = order[:salient], order[salient:]
    diverse = budget - salient
    closest_of = _Closest(likeness)
    while diverse and len(left) > diverse:
        first, second = left[::2], left[1::2]
        similar = closest_of(first, second)
        drop = min(step, len(left) - diverse, len(first))
        ascending = similar.sort(stable=True).indices[: len(first) - drop]
        left = torch.cat([first.index_select(0, ascending.flip(0)), second])
    return torch.cat([kept, left[:diverse]]).sort().values, closest


class _Closest:
    """The largest likeness of some tokens to any of some others.

    On an accelerator, and where they are few, the cells in question are all read. Else, on the CPU, where values may be
    looked at, every token has a list of its nearest, and the first of them that is in question is the one; a token none
    of whose listed are has its row read, and its list made anew of what is left. The result is the same cell.

    Args:
        likeness: (N, N), -1 on the diagonal.
    """

    def __init__(self, likeness: Tensor) -> None:
        self.likeness = likeness
        self.lists: tuple[Tensor, Tensor] | None = None

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """(F,) the largest likeness of each of the tokens ``first`` (F,) to any of ``second`` (S,), none in both."""
        if self.likeness.device.type != "cpu" or len(first) * len(self.likeness) <= _FEW:
            return self.likeness.index_select(0, first).index_select(1, second).amax(dim=-1)
        values, tokens = self._lists()
        asked = torch.zeros(len(values), dtype=torch.bool, device=first.device).index_fill_(0, second, True)
        similar = values.new_empty(len(first))
        # Written with index_select throughout: torch shares a few thousand cells of x[y] out among threads, which takes
        # longer than the work where others keep the processor busy.
        open_ = torch.arange(len(first), device=first.device)  # places in ``first`` whose neighbour is to be found
        for start, end in itertools.pairwise((0, *_LISTED)):
            rows = first.index_select(0, open_)
            near = tokens[:, start:end].index_select(0, rows)
            if near.shape[1] == 0:
                break
            hit = asked.index_select(0, near.flatten()).view(near.shape)
            cells = rows * values.shape[1] + start + hit.view(torch.uint8).argmax(dim=-1)  # the first of them
            found = hit.any(dim=-1)
            met = found.nonzero().squeeze(1)
            likest = values.flatten().index_select(0, cells.index_select(0, met))
            similar.index_copy_(0, open_.index_select(0, met), likest)
            open_ = open_.index_select(0, found.logical_not_().nonzero().squeeze(1))
        left = asked.index_fill(0, first, True)
        for some in torch.split(open_, max(1, _BLOCK // len(values))):
            rows = first.index_select(0, some)
            row = self.likeness.index_select(0, rows)
            similar.index_copy_(0, some, row.masked_fill(~asked, -math.inf).amax(dim=-1))
            again = row.masked_fill_(~left, -math.inf).topk(values.shape[1], dim=-1)
            values.index_copy_(0, rows, again.values)
            tokens.index_copy_(0, rows, again.indices)
        return similar

    def _lists(self) -> tuple[Tensor, Tensor]:
        """(N, M) likenesses, descending, and whose they are."""
        if self.lists is None:
            length, height = min(_LISTED[-1], len(self.likeness)), max(1, _BLOCK // len(self.likeness))
            parts = [rows.topk(length, dim=-1) for rows in torch.split(self.likeness, height)]
            self.lists = torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
        return self.lists
