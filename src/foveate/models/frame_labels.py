"""What processors write before a video's frames ("Frame3: ", "Frame from 00:07:", "<4.5 seconds>"), known by ids alone.

No config names these tokens. They are told by their repetition: between three or more equally long runs of placeholders
stands the same text each time, but for a few tokens in one place (a number, a time). Two frames repeat once, which any
two sentences may, so their label stays text. Nor does a label reach from one turn of a conversation into the next,
whose questions may differ in a word.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from foveate.models.tiles import runs_of

COUNTER = 6
"""Tokens that may differ from one label to the next: "00:59" to "01:00" are five."""


def frame_labels(
    ids: Tensor, token: int, marks: Tensor, special: Collection[int], equal: bool = True, shared: int = 1
) -> Tensor:
    """(B, S) bool: text that labels the frames of a video, the first one's label among it.

    Args:
        ids: (B, S) int64 on the CPU, -1 where not to be looked at.
        token: the placeholder's id.
        marks: (B, S) bool: what is known to be no text.
        special: ids that no label holds: what ends a text, or a turn.
        equal: whether all frames of a video have as many tokens.
        shared: least tokens that all labels have in common.
    """
    found = torch.zeros_like(marks)
    for row, known, line in zip(ids, marks, found, strict=True):
        runs = runs_of(row, token)
        text = (row >= 0) & ~known
        places = [(text[a[1] : b[0]].nonzero()[:, 0] + a[1]).tolist() for a, b in pairwise(runs)]
        gaps = [row[place].tolist() for place in places]
        lengths = [end - first for first, end in runs]
        start = 0
        while start < len(gaps):
            end = start + 1
            while (
                end < len(gaps)
                and (not equal or len({*lengths[start : end + 2]}) == 1)
                and _alike(gaps[start : end + 1], shared)
                and not any(token in special for gap in gaps[start : end + 1] for token in gap)
            ):
                end += 1
            if end - start > 1:
                line[[place for gap in places[start:end] for place in gap]] = True
                before = text[: runs[start][0]].nonzero()[:, 0]
                line[before[len(before) - _first_label(row[before].tolist(), gaps[start:end]) :]] = True
            start = end
    return found


def _alike(gaps: Sequence[Sequence[int]], shared: int) -> bool:
    """Whether texts are the same but for a counter."""
    head, tail = _common(gaps)
    return head + tail >= shared and max(map(len, gaps)) - head - tail <= COUNTER


def _common(gaps: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many tokens at the front and, apart from these, at the end are the same in all texts."""
    shortest = min(map(len, gaps))
    head = next((n for n in range(shortest) if len({gap[n] for gap in gaps}) > 1), shortest)
    tail = next((n for n in range(shortest - head) if len({gap[-1 - n] for gap in gaps}) > 1), shortest - head)
    return head, tail


def _first_label(before: Sequence[int], gaps: Sequence[Sequence[int]]) -> int:
    """How many of the tokens before the first run are its label; its first token may be another (a line break less)."""
    head, tail = _common(gaps)
    front, back = list(gaps[0][:head]), list(gaps[0][len(gaps[0]) - tail :])
    most = max(map(len, gaps)) - head - tail
    if not head or not tail or not most or list(before[-tail:]) != back:
        return 0
    for wanted in [front, front[1:]] if head > 1 else [front]:
        for counter in range(1, most + 1):
            stop = len(before) - tail - counter
            if stop >= len(wanted) and list(before[stop - len(wanted) : stop]) == wanted:
                return len(wanted) + counter + tail
    return 0
