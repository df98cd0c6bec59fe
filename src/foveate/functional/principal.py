"""Groups by principal components, and the salient but different of each: pure functions of one image's tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    descending,
    directions,
    everything,
    require_budget,
    require_length,
    require_vectors,
    require_weights,
    shape_of,
)
from foveate.functional.steps import may_look, repeat

_NO_VARIANCE = 1e-6
"""Part of the largest component's variance that float32 cannot tell from none."""


def principal_groups(visual: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The principal component that each token weighs most in: the groups of PruneSID (arXiv 2603.09480).

    Every token is ``sigmoid(v) - mean(sigmoid(v))``, the mean over its D values; a component is an eigenvector of the
    products of any two of them, and a token belongs to the one of the first ``groups`` in which its entry is largest,
    whatever its sign. A component without variance has no members. The released code finds components by random
    projections, two steps of iteration and no seed; here they are exact. O(N^2 (D + N)) time, O(N^2) memory. Waits for
    an accelerator, since torch looks whether the factorisation has worked.

    Args:
        visual: (N, D) tokens of one image.
        groups: how many components at most, >= 1.

    Returns:
        (N,) int64 in [0, ``groups``), components of more variance first; and the entries, (N,) float32 in [0, 1]. Ties
        go to the component of more variance.

    Raises:
        TypeError: ``visual`` is not floating.
        ValueError: a shape that does not fit, no token, ``groups`` < 1; on CPU tensors also NaN or infinity. On an
            accelerator the entries are NaN then.
    """
    require_vectors(visual=visual)
    if groups < 1:
        raise ValueError(f"groups must be >= 1, got {groups!r}")
    with torch.autocast(visual.device.type, enabled=False):
        rows = torch.sigmoid(visual.float())
        rows = rows - rows.mean(dim=-1, keepdim=True)
        gram = rows @ rows.T
        # The sigmoid makes infinity a number.
        finite = torch.isfinite(gram).all() & torch.isfinite(visual).all()
        values, vectors = torch.linalg.eigh(torch.where(finite, gram, 0.0))
    count = min(groups, len(visual))
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    entries = torch.where(values > _NO_VARIANCE * values[0], vectors.abs(), 0.0)
    entry, group = entries.max(dim=-1)
    return group, torch.where(finite, entry, math.nan)


def different_in_groups(
    visual: Tensor, saliency: Tensor, group: Tensor, groups: int, budget: int, slack: float = 18.0
) -> Tensor:
    """The salient tokens of every group without those too like them: the choice of PruneSID (arXiv 2603.09480).

    In a group the most salient token survives, and the others whose cosine to it is above the threshold do not; then
    the next that is left, and so on, for K rounds at most. The threshold is ``max(slack * K / N, 1)`` times the mean
    cosine of all pairs of tokens. A group that has members gets one token; the rest of the budget is shared by the
    number of survivors, cumulated over the groups in their order and rounded, half to even. No group gets more than it
    has survivors, nor more than ``5 * ceil(K / 64)``; where that bounds all groups together below K, the bounds rise
    one by one, up to what a group has. What is left over goes to the groups of the most survivors, as much as each can
    take. In a group survivors come first, then others, each the most salient first. O(N^2 D + K N) time, O(N^2) memory.

    The bounds and the factor are the released code's (for Qwen2-VL; for LLaVA, whose N is 576, ``K / 32`` is the same
    factor but may be below 1, and one of the K is the class token, which no other model has).

    Args:
        visual: (N, D) tokens of one image.
        saliency: (N,).
        group: (N,) int64 in [0, ``groups``), see :func:`principal_groups`.
        groups: how many there are, empty ones included, at most K that have members.
        budget: K >= 1; with N <= K everything is kept.
        slack: by how much the threshold grows with the part of tokens that is kept, >= 0. Default 18, as released.

    Returns:
        (min(K, N)) int64, ascending, distinct. Ties go to the earlier token and to the earlier group.

    Raises:
        TypeError: inputs that are not floating, groups that are not int64; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, a negative ``slack``; on CPU tensors also NaN,
            infinity, or more groups with members than K.
    """
    budget = require_budget(budget)
    require_weights(slack=slack)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        size = _sizes(group, groups, tokens)
        if tokens <= budget:
            return everything(saliency)
        if size.device.type == "cpu" and int((size > 0).sum()) > budget:
            raise ValueError(f"{int((size > 0).sum())} groups have members: too many for a budget of {budget}")
        order = descending(saliency)[1]
        group = group.index_select(0, order)
        likeness, mean = _likeness(unit.index_select(0, order))
        survives = _survivors(likeness, group, groups, max(slack * budget / tokens, 1.0) * mean, budget)
    share = _shares(size, size.new_zeros(groups).scatter_add(0, group, survives.long()), budget)
    # From the last to the first that counts: by saliency, survivors before others, group by group.
    first = (~survives).to(torch.uint8).sort(stable=True).indices
    ranked = first.index_select(0, group.index_select(0, first).sort(stable=True).indices)
    of = group.index_select(0, ranked)
    place = torch.arange(tokens, device=of.device) - (size.cumsum(0) - size).index_select(0, of)
    inside = place < share.index_select(0, of)
    kept = ranked.index_select(0, (~inside).to(torch.uint8).sort(stable=True).indices[:budget])
    return order.index_select(0, kept).sort().values


def _sizes(group: Tensor, groups: int, tokens: int) -> Tensor:
    """(G,) int64 how many members each group has."""
    if group.dtype != torch.int64:
        raise TypeError(f"group must be int64, got {group.dtype}")
    if group.shape != (tokens,):
        raise ValueError(f"group must have one value for each of the {tokens} tokens, got {shape_of(group)}")
    if groups < 1:
        raise ValueError(f"groups must be >= 1, got {groups!r}")
    return group.new_zeros(groups).scatter_add(0, group, torch.ones_like(group))


def _likeness(unit: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) cosines, and their mean over all pairs."""
    exact = unit.to(accumulator(unit.device))
    total = exact.sum(dim=0).square().sum() - exact.square().sum()
    return unit @ unit.T, total / (len(unit) * (len(unit) - 1))


def _survivors(likeness: Tensor, group: Tensor, groups: int, threshold: Tensor, rounds: int) -> Tensor:
    """(N,) bool: non-maximum suppression in every group at once, tokens in descending saliency."""
    tokens = len(group)
    here = torch.arange(tokens, device=group.device)
    left = torch.ones(tokens, dtype=torch.bool, device=group.device)
    survives = torch.zeros_like(left)
    start = here * tokens

    def step(best: Tensor) -> bool:
        if may_look(left) and not bool(left.any()):
            return True
        best.fill_(tokens)
        firsts = best[0].scatter_reduce_(0, group, here.masked_fill(~left, tokens), "amin")
        first = firsts.index_select(0, group)
        itself = here == first
        cosine = likeness.take(start + first.clamp(max=tokens - 1)).to(threshold.dtype)
        survives.logical_or_(itself)
        left.logical_and_(~(itself | ((first < tokens) & (cosine > threshold))))
        return False

    repeat(step, rounds, group.new_empty(rounds, groups))
    return survives


def _shares(size: Tensor, survivors: Tensor, budget: int) -> Tensor:
    """(G,) int64 tokens of each group, K in all."""
    least = size.clamp(max=1)
    most = torch.minimum(survivors, size.new_full((), 5 * math.ceil(budget / 64)))
    raised = torch.minimum(most.unsqueeze(-1) + torch.arange(budget + 1, device=size.device), size.unsqueeze(-1))
    enough = (raised.sum(dim=0) < budget).sum(dim=0, keepdim=True)
    most = raised.index_select(1, enough).squeeze(1)
    real = accumulator(size.device)
    part = survivors.to(real) / survivors.sum()
    until = (part.cumsum(0) * (budget - least.sum())).round().long()
    share = torch.minimum(until - until.roll(1).index_fill(0, until.new_zeros(1), 0) + least, most)
    order = descending(survivors)[1]
    room = (most - share).index_select(0, order)
    over = (budget - share.sum() - (room.cumsum(0) - room)).clamp(min=0)
    return share.scatter_add(0, order, torch.minimum(over, room))
