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
from foveate.functional.diversity import farthest_first
from foveate.functional.merge import Merge, merged
from foveate.functional.steps import may_look, repeat, rows_of
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
    memory; on an accelerator O(N^2 D), and with N <= 8192 O(N^2) memory.

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

        scan = _scan_by_steps if may_look(focus) else _scan_at_once
        kept, likest, anchor = scan(unit, order, focus, budget)
    taken = torch.zeros(tokens, dtype=torch.bool, device=unit.device).index_fill_(0, kept, True)
    kept = kept.sort().values
    rank = ranks(descending(likest.masked_fill(taken, -math.inf))[1])
    joins = (rank < ((budget - focus) * refine + 1e-9).floor()) & ~taken
    return kept, _weighted(kept, torch.where(joins, anchor, tokens), priority.float()), priority.float(), focus


def _scan_by_steps(unit: Tensor, order: Tensor, focus: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Focus and Scan, O(K N D), where the size of Focus may be looked at.

    Args:
        unit: (N, D) directions.
        order: (N,) int64, by priority.
        focus: 0-d int64, how many of them are Focus.
        budget: K.

    Returns:
        the chosen, (K,) int64; every token's cosine to its nearest token of Scan, and which that is, (N,) each.
    """
    done = int(focus)
    chosen = order[:done]
    aims = unit.index_select(0, chosen).T
    closest = torch.cat([(rows @ aims).amax(dim=-1) for rows in torch.split(unit, max(1, _BLOCK // done))])
    closest.index_fill_(0, chosen, math.inf)
    likest, anchor = torch.full_like(closest, -math.inf), torch.full_like(order, len(order))
    scanned = torch.zeros(budget - done, dtype=torch.int64, device=unit.device)

    def step(token: Tensor) -> None:
        torch.argmin(closest, dim=0, keepdim=True, out=token)
        likeness = unit @ unit.index_select(0, token)[0]
        torch.maximum(closest, likeness, out=closest).index_fill_(0, token, math.inf)
        nearer = (likeness > likest) | ((likeness == likest) & (token < anchor))
        likest.copy_(torch.where(nearer, likeness, likest))
        anchor.copy_(torch.where(nearer, token, anchor))

    repeat(step, budget - done, scanned)
    return torch.cat([chosen, scanned]), likest, anchor


def _scan_at_once(unit: Tensor, order: Tensor, focus: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same without looking, O(N^2 D): Scan goes on for as long as it could, and the first of it count."""
    tokens = len(unit)
    here = torch.arange(tokens, device=unit.device)
    focused = ranks(order) < focus
    nearest = _nearest(unit, focused)[0].neg_().masked_fill_(focused, -math.inf)
    away_from = rows_of(unit, lambda some, rows: rows.neg_().scatter_(1, some.unsqueeze(-1), -math.inf))
    found = farthest_first(nearest, away_from, budget - 1)
    place = here[:budget]
    scanning = place >= focus
    # Focus has one token at least, and Scan's s-th, from 0, is in place focus + s. Of no Scan nothing is read.
    later = (place - focus).clamp_(min=0, max=max(0, budget - 2))
    scanned = found.index_select(0, later) if budget > 1 else order[:1]
    chosen = torch.where(scanning, scanned, order[:budget])
    marks = torch.zeros(tokens + 1, dtype=torch.bool, device=unit.device)
    marks.index_fill_(0, torch.where(scanning, chosen, tokens), True)
    return chosen, *_nearest(unit, marks[:tokens])


def _nearest(unit: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) every token's largest cosine to those of a (N,) bool, and the earliest of that cosine."""
    closest, which = [], []
    for rows in torch.split(unit, max(1, _BLOCK // len(unit))):
        likeness = (rows @ unit.T).masked_fill_(~among, -math.inf)
        closest.append(likeness.amax(dim=-1))
        which.append(likeness.argmax(dim=-1))
    return torch.cat(closest), torch.cat(which)


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
