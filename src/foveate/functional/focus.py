"""Evidence, then what differs from it, then what is left over merged in: a pure function of one image's tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    descending,
    directions,
    everything,
    ranks,
    require_budget,
    require_length,
    require_weights,
)
from foveate.functional.merge import Merge, merged
from foveate.functional.text import min_max

_BLOCK = 1 << 22  # cells of a table that is built piece by piece (16 MiB)


def focus_scan_refine(
    visual: Tensor,
    relevance: Tensor,
    saliency: Tensor,
    budget: int,
    alpha: float = 3.0,
    beta: float = 1.0,
    mass: float = 0.9,
    refine: float = 1.0,
) -> tuple[Tensor, Merge, Tensor, Tensor]:
    """What the question and the eye agree on, what is unlike it, and likenesses merged in: FSR (arXiv 2602.05809).

    A token's priority is ``r ** alpha * s ** beta``, both scaled to [0, 1] over the image (equation 3). *Focus* is the
    fewest tokens, the first by priority, that hold ``mass`` of all of it (equation 4), at least one and at most K.
    *Scan* adds, until there are K, the token whose nearest one among those chosen is farthest, by ``1 - cos``
    (equation 5). *Refine*: every dropped token has a nearest token of Scan; the ``floor(refine * S)`` dropped tokens
    most like theirs, S the size of Scan, go into it, which becomes the mean of all it holds by their priorities. Tokens
    of Focus stay as they are, and so does one of Scan where all that it holds have no priority. O(K N D) time, O(N D)
    memory.

    Args:
        visual: (N, D) tokens of one image.
        relevance: (N,) to the question, see :func:`foveate.functional.relevance_to_text`.
        saliency: (N,).
        budget: K >= 1; with N <= K everything is kept.
        alpha: exponent of relevance, >= 0. Default 3.
        beta: exponent of saliency, >= 0. Default 1.
        mass: part of the priority that Focus holds, in (0, 1]. Default 0.9.
        refine: dropped tokens merged for each token of Scan, >= 0. Default 1.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; weights (min(K, N), N); priorities, (N,) float32 in [0, 1]; and the
        size of Focus, 0-d int64. Ties go to the earlier token, and to the earlier token of Scan. A scale on which all
        tokens are equal counts 1.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, options outside of their ranges; on CPU tensors
            also NaN or infinity.
    """
    budget = require_budget(budget)
    require_weights(alpha=alpha, beta=beta, refine=refine)
    if not 0.0 < mass <= 1.0:  # NaN fails too
        raise ValueError(f"mass must be in (0, 1], got {mass!r}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, relevance=relevance, saliency=saliency)
        real = accumulator(unit.device)
        priority = min_max(relevance.to(real)) ** alpha * min_max(saliency.to(real)) ** beta
        here = everything(saliency)
        by_priority, order = descending(priority)
        held = by_priority.cumsum(0)
        focus = ((held < mass * held[-1]).sum() + 1).clamp(max=min(budget, tokens))
        if tokens <= budget:
            return here, Merge.picking(here, tokens), priority.float(), focus

        # Where values may be looked at, Focus is taken at once; else step by step, as nothing waits for its size.
        done = int(focus) if _may_look(focus) else 1
        chosen = order[:done]
        taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device).index_fill_(0, chosen, True)
        aims = unit.index_select(0, chosen).T
        closest = torch.cat([(rows @ aims).amax(dim=-1) for rows in torch.split(unit, max(1, _BLOCK // done))])
        likest, anchor = torch.full_like(closest, -math.inf), torch.full_like(here, tokens)
        picked = [chosen]
        for step in range(done, budget):
            scanning = step >= focus
            farthest = closest.masked_fill(taken, math.inf).argmin(dim=0, keepdim=True)
            token = torch.where(scanning, farthest, order[step])
            likeness = unit @ unit.index_select(0, token)[0]
            closest = torch.maximum(closest, likeness)
            taken.index_fill_(0, token, True)
            picked.append(token)
            nearer = (likeness > likest) | ((likeness == likest) & (token < anchor))
            nearer = nearer & scanning
            likest, anchor = torch.where(nearer, likeness, likest), torch.where(nearer, token, anchor)
    kept = torch.cat(picked).sort().values
    rank = ranks(descending(likest.masked_fill(taken, -math.inf))[1])
    joins = (rank < ((budget - focus) * refine + 1e-9).floor()) & ~taken
    return kept, _weighted(kept, torch.where(joins, anchor, tokens), priority.float()), priority.float(), focus


def _may_look(value: Tensor) -> bool:
    """Whether reading it makes nobody wait."""
    return value.device.type == "cpu"


def _weighted(kept: Tensor, anchor: Tensor, priority: Tensor) -> Merge:
    """Every kept token the mean of itself and of the tokens whose anchor it is, by priority; N is no anchor."""
    budget, tokens = len(kept), len(anchor)
    # N is past the last of the kept: the row of none.
    rows = torch.cat([torch.arange(budget, device=kept.device), torch.searchsorted(kept, anchor)])
    members = torch.cat([kept, torch.arange(tokens, device=kept.device)])
    counts = torch.where(rows < budget, priority.index_select(0, members), 0.0)
    rows = rows.clamp(max=budget - 1)
    total = merged(Merge.of_entries(rows, members, counts, (budget, tokens)), torch.ones_like(priority))
    own = torch.arange(len(rows), device=kept.device) < budget
    total = total.index_select(0, rows)
    weights = torch.where(total > 0, counts / torch.where(total > 0, total, 1.0), own.float())
    return Merge.of_entries(rows, members, weights, (budget, tokens))
