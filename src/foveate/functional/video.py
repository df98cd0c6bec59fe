"""What changes from frame to frame, which frames are unlike the others, and how frames share a budget.

Pure functions of one video's tokens, (N, D) without batch dimensions. A token's place is its row and column; frames are
numbered in the order of time. Likeness is the cosine, in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from foveate.functional.common import (
    accumulator,
    descending,
    everything,
    rank_in_group,
    ranks,
    require_budget,
    require_length,
    require_not_negative,
    require_positive,
    require_vectors,
    unit_rows,
)
from foveate.functional.grid import require_places

NEW = 3.0
"""The change of a token before which nothing stood in its place: more than any other's, which is at most 2."""

_BLOCK = 1 << 22  # values of tokens that are made at a time (16 MiB)
_ROUNDING = 1e-6  # a change that float32 cannot tell from none
_SCALES = tuple(2.0**power for power in range(-3, 2))  # of VidCom2's Gaussians
_LEAST = 1e-30  # of a frame's mass, so that frames of none share what is left alike


def change_in_place(visual: Tensor, frame: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """How unlike each token is the one that stood in its place before: EVS (arXiv 2510.14624).

    ``1 - cos`` to the token of the same row and column in the frame before (where tokens were left out, in the nearest
    earlier frame that has one there); :data:`NEW` in the first frame. O(N D + N log N).

    Args:
        visual: (N, D) tokens of one video.
        frame, row, column: (N,) int64 each, where they lie.

    Returns:
        (N,) float32 in [0, 2], or ``NEW``.

    Raises:
        TypeError: features that are not floating; places that are not int64.
        ValueError: shapes that do not fit, no token; on CPU tensors also NaN or infinity.
    """
    require_vectors(visual=visual)
    require_places(frame, row, column)
    require_length(len(visual), frame=frame.float())
    order = frame.sort(stable=True).indices
    for coordinate in (column, row):  # by place, within it by time
        order = order.index_select(0, coordinate.index_select(0, order).sort(stable=True).indices)
    before = order.roll(1)
    same = (row[order] == row[before]) & (column[order] == column[before])
    same = same & (frame[order] > frame[before])  # the very first one's neighbour is the last
    change = torch.full((len(visual),), NEW, device=visual.device)
    height = max(1, _BLOCK // visual.shape[1])
    with torch.autocast(visual.device.type, enabled=False):
        for now, then, there in zip(*(torch.split(one, height) for one in (order, before, same)), strict=True):
            change.index_copy_(0, now, torch.where(there, _unlike(visual, now, then), NEW))
    return change


def kept_once(
    visual: Tensor, frame: Tensor, row: Tensor, column: Tensor, threshold: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Which token stands for each: itself, or the last one in its place that it is hardly unlike.

    From frame to frame, a token whose cosine to the one that last stood for its place is at least ``threshold`` is
    stood for by that one; else it stands for itself from then on. So what drifts slowly is taken up again once it has
    gone far enough. O(N D), in steps of one frame; on an accelerator how many tokens each frame has is waited for.

    Args:
        visual: (N, D) tokens of one video.
        frame, row, column: (N,) int64 each, where they lie.
        threshold: in [-1, 1]; 1 finds only what is the same but for rounding. Default 0.9.

    Returns:
        (N,) int64, which token stands for each, ``result[result] == result``; and (N,) float32, how unlike each is the
        one that stood for its place before, as :func:`change_in_place`.

    Raises:
        TypeError, ValueError: as for :func:`change_in_place`; a ``threshold`` outside [-1, 1].
    """
    require_vectors(visual=visual)
    require_places(frame, row, column)
    require_length(len(visual), frame=frame.float())
    require_threshold(threshold)
    here = torch.arange(len(visual), device=visual.device)
    place = row * (column.amax() + 1) + column
    stands, change = here.clone(), torch.full((len(visual),), NEW, device=visual.device)
    last = here.new_full((int(place.amax()) + 1,), -1)
    order = frame.sort(stable=True).indices
    with torch.autocast(visual.device.type, enabled=False):
        for now in torch.split(order, torch.bincount(frame).tolist()):
            spots = place.index_select(0, now)
            then = last.index_select(0, spots)
            unlike = torch.where(then >= 0, _unlike(visual, now, then.clamp(min=0)), NEW)
            stand = torch.where(unlike <= 1 - threshold + _ROUNDING, then, now)
            stands.index_copy_(0, now, stand)
            change.index_copy_(0, now, unlike)
            last.index_copy_(0, spots, stand)
    return stands, change


def _unlike(visual: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """(n,) 1 - cos of pairs of tokens; 0 where that is rounding."""
    pairs = unit_rows(visual.index_select(0, now)) * unit_rows(visual.index_select(0, then))
    unlike = 1 - pairs.sum(dim=1)
    return torch.where(unlike < _ROUNDING, 0.0, unlike)


def uniqueness(visual: Tensor, frame: Tensor, frames: int, channels: float = 0.5) -> tuple[Tensor, Tensor]:
    """How unlike each token is the whole video, and how unlike its own frame: VidCom2 (arXiv 2505.14454).

    Tokens are taken in the ``channels`` of least variance over the video (the released code's first step) and
    normalised. To the mean g of all of them, or of those of a frame, a token x is alike by
    ``sum over a in {1/8, 1/4, 1/2, 1, 2} of exp(- |x - g|^2 / (2 a))``; it is unique by the negative of that. O(N D).

    Args:
        visual: (N, D) tokens of one video.
        frame: (N,) int64 in [0, ``frames``).
        frames: T.
        channels: part of the D channels, rounded down but at least one, in (0, 1]. Default 0.5.

    Returns:
        (N,) float32 each: uniqueness in the video and in the frame, in [-5, 0].

    Raises:
        TypeError: features that are not floating.
        ValueError: shapes that do not fit, no token, ``channels`` outside (0, 1]; on CPU tensors also NaN or infinity.
    """
    require_vectors(visual=visual)
    require_length(len(visual), frame=frame.float())
    require_channels(channels)
    with torch.autocast(visual.device.type, enabled=False):
        values = visual.float()
        few = max(1, math.floor(visual.shape[1] * channels))
        steady = values.var(dim=0, unbiased=False).sort(stable=True).indices[:few].sort().values
        unit = unit_rows(values.index_select(1, steady))
        order = frame.sort(stable=True).indices
        starts = torch.searchsorted(frame.index_select(0, order), torch.arange(frames, device=frame.device))
        centres = embedding_bag(order, unit, starts, mode="mean")
        whole = unit.mean(dim=0, keepdim=True)
        height = max(1, _BLOCK // few)
        parts = [
            torch.stack([_unique(some, whole), _unique(some, centres.index_select(0, where))])
            for some, where in zip(torch.split(unit, height), torch.split(frame, height), strict=True)
        ]
        in_video, in_frame = torch.cat(parts, dim=1)
    return in_video, in_frame


def _unique(unit: Tensor, centre: Tensor) -> Tensor:
    """(n,) the negative of VidCom2's likeness of (n, D) to (n, D) or (1, D)."""
    distance = (unit - centre).square().sum(dim=1)
    return -torch.stack([(distance / (-2 * scale)).exp() for scale in _SCALES]).sum(dim=0)


def frame_ratios(unique: Tensor, frame: Tensor, frames: int, ratio: float, temperature: float = 0.01) -> Tensor:
    """What part of every frame stays, more of those unlike the video: VidCom2's Frame Compression Adjustment.

    ``u`` being the mean uniqueness of a frame's tokens in the video, ``r_t = ratio * (1 + softmax(u / temperature)_t -
    1 / T)``, at most 1. T counts the frames that have tokens. O(N).

    Args:
        unique: (N,) uniqueness in the video, as :func:`uniqueness` gives it.
        frame: (N,) int64 in [0, ``frames``).
        frames: how many there may be.
        ratio: of the whole video, in (0, 1].
        temperature: > 0. Default 0.01.

    Returns:
        (``frames``,) float64 (float32 where there is none) in [0, 1]; 0 for a frame without tokens.

    Raises:
        TypeError: scores that are not floating.
        ValueError: shapes that do not fit, a temperature not positive; on CPU tensors also NaN or infinity.
    """
    require_length(len(frame), unique=unique)
    require_positive(temperature=temperature)
    count = _counted(frame, frames)
    order = frame.sort(stable=True).indices
    starts = count.cumsum(0) - count
    values = unique.to(accumulator(unique.device)).unsqueeze(1)
    means = embedding_bag(order, values, starts, mode="mean")[:, 0]
    there = count > 0
    share = torch.softmax((means / temperature).masked_fill(~there, -math.inf), dim=0)
    return torch.where(there, (ratio * (1 + share - 1 / there.sum())).clamp(max=1.0), 0.0)


def unique_in_frames(
    visual: Tensor, frame: Tensor, frames: int, budget: int, channels: float = 0.5, temperature: float = 0.01
) -> tuple[Tensor, Tensor]:
    """The tokens of every frame that are least like it and the video, more of unusual frames: VidCom2.

    Of a frame of ``M`` tokens the ``round(r_t M)`` of the largest uniqueness stay, in the video and in the frame
    together (:func:`uniqueness`), at least one, with ``r_t`` by :func:`frame_ratios` for ``ratio = K / N``. The budget
    is exact: what these are too many, the least unique of them go; what they are too few, the most unique others join.
    O(N D + N log N).

    Args:
        visual: (N, D) tokens of one video.
        frame: (N,) int64 in [0, ``frames``).
        frames: T.
        budget: K >= 1; with N <= K everything is kept.
        channels, temperature: as for :func:`uniqueness` and :func:`frame_ratios`.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the uniqueness, (N,) float32. Ties go to the earlier token.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: as for :func:`uniqueness` and :func:`frame_ratios`; ``budget`` < 1.
    """
    budget = require_budget(budget)
    in_video, in_frame = uniqueness(visual, frame, frames, channels)
    score = in_video + in_frame
    if len(visual) <= budget:
        return everything(score), score
    ratio = frame_ratios(in_video, frame, frames, budget / len(visual), temperature)
    count = _counted(frame, frames)
    some = (ratio * count).round().long().clamp(min=1)
    order = descending(score)[1]
    beyond = rank_in_group(order, frame, count) >= some.index_select(0, frame)
    first = beyond.index_select(0, order).to(torch.uint8).sort(stable=True).indices
    return order.index_select(0, first)[:budget].sort().values, score


def shared_by_frames(
    mass: Tensor, count: Tensor, most: int, budget: int, window: Tensor | None = None, floor: int = 0
) -> Tensor:
    """How many of a budget every frame gets: in proportion to its mass, none more than it has. O(T M log(T M)).

    Proportion is Webster's (Sainte-Lague): the r-th token of a frame has the quotient ``mass / (2 r - 1)``, and those
    of the K largest get one. So the budget is exact, what a full frame cannot take goes to the others, and a frame of
    little mass may get none. The ``floor`` largest quotients of every window go before all others.

    Args:
        mass: (T,) >= 0.
        count: (T,) int64, how many tokens every frame has.
        most: no frame has more than this.
        budget: K >= 1; more than there are is all there are.
        window: (T,) int64 in [0, T): which frames share a floor; None: there is none.
        floor: tokens that every window gets, as far as it has them and the budget goes.

    Returns:
        (T,) int64, summing to the budget. Ties go to the earlier frame.

    Raises:
        TypeError: a mass that is not floating; a budget that is no int.
        ValueError: shapes that do not fit, ``budget`` < 1; on CPU tensors also NaN, infinity or a negative mass.
    """
    budget = require_budget(budget)
    require_length(len(count), mass=mass)
    require_not_negative("frames share the budget by it", mass=mass)
    rank = torch.arange(most, device=mass.device)
    there = rank < count.unsqueeze(1)
    quotient = mass.to(accumulator(mass.device)).clamp(min=_LEAST).unsqueeze(1) / (2 * rank + 1)
    order = descending(torch.where(there, quotient, -1.0).flatten())[1]
    late = torch.where(there.flatten(), 1, 2)
    if window is not None and floor > 0:
        cell = window.repeat_interleave(most)
        place = rank_in_group(order, cell, _counted(cell, len(count)))
        late = torch.where(there.flatten() & (place < floor), 0, late)
    order = order.index_select(0, late.index_select(0, order).sort(stable=True).indices)
    taken = (ranks(order) < budget) & there.flatten()
    return taken.view(len(count), most).sum(dim=1)


def _counted(group: Tensor, groups: int) -> Tensor:
    """(G,) int64: how many there are of each."""
    return group.new_zeros(groups).scatter_add(0, group, torch.ones_like(group))


def require_threshold(threshold: float) -> None:
    if not -1.0 <= threshold <= 1.0:  # NaN fails too
        raise ValueError(f"threshold must be in [-1, 1], got {threshold!r}")


def require_channels(channels: float) -> None:
    if not 0.0 < channels <= 1.0:  # NaN fails too
        raise ValueError(f"channels must be in (0, 1], got {channels!r}")
