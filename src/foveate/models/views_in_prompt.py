"""Views of several sizes, each a run of placeholders of its own in the prompt: which of them are one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from foveate.models.tiles import runs_of
from foveate.tokens import Geometry

NUMBER = 4
"""Tokens that the number of a picture may take in its prompt."""
ADJACENT, NEXT_LINE = 2, 3
"""Tokens between two views of a picture: the end of one and the start of the next, and between rows a line break."""


class Run(NamedTuple):
    """An unbroken run of placeholders: its first column, the one behind its last, and the id in front of it."""

    first: int
    end: int
    mark: int


Together = Callable[[Run, Run, Run], bool]
"""Of the first run of a prompt, a later one and the run before that: whether the latter two are of one picture."""


def marked_runs(row: Tensor, token: int) -> list[Run]:
    """The runs of ``token`` in (S,) ids; -1 is in front of one that begins them."""
    return [Run(first, end, int(row[first - 1]) if first else -1) for first, end in runs_of(row, token)]


def runs_by_prompt(title: str, prompt: Tensor | None, token: int, lengths: Sequence[int]) -> list[list[Run]]:
    """The runs of every prompt of a batch, which are those of the views.

    Args:
        title: of the family, for messages.
        prompt: (B, S) ids on the CPU, -1 where not to be looked at.
        token: the placeholder's id.
        lengths: placeholders of every view of all prompts, in order.

    Raises:
        ValueError: no prompt, or runs that are not the views'.
    """
    if prompt is None:
        raise ValueError(f"{title}: only the prompt says which views belong to one image, and there is none")
    found = [marked_runs(row, token) for row in prompt]
    standing = [run.end - run.first for runs in found for run in runs]
    if standing != list(lengths):
        raise ValueError(
            f"{title}: the prompts hold runs of {standing} image placeholders, but the views that came with them are "
            f"{list(lengths)} tokens: pass all that the processor returned, marks around every view among it"
        )
    return found


def pictures(
    title: str, prompt: Tensor | None, token: int, lengths: Sequence[int], together: Together
) -> list[list[Run]]:
    """The runs of every picture of a batch, in order; their numbers add up to those of the views.

    Args:
        title, prompt, token, lengths: see ``runs_by_prompt``.
        together: see ``Together``.
    """
    found: list[list[Run]] = []
    for runs in runs_by_prompt(title, prompt, token, lengths):
        for number, run in enumerate(runs):
            if number and together(runs[0], run, runs[number - 1]):
                found[-1].append(run)
            else:
                found.append([run])
    return found


def lines_of(crops: Sequence[Run]) -> list[int]:
    """How many crops of a picture stand in each line: one that is ``NEXT_LINE`` behind the last begins another."""
    lines = [1] if crops else []
    for before, run in pairwise(crops):
        if run.first - before.end == NEXT_LINE:
            lines.append(0)
        lines[-1] += 1
    return lines


def whole_last(geometry: Geometry) -> Geometry:
    """The same where the view that comes last is the whole picture: that is view 0, wherever it comes."""
    count = len(geometry.grids)
    grids = (geometry.grids[-1], *geometry.grids[:-1])
    return replace(geometry, view=(geometry.view + 1) % count, grids=grids)


def grid_of(title: str, lines: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of crops that stand in lines of so many.

    Raises:
        ValueError: lines of different lengths.
    """
    if len(set(lines)) > 1:
        raise ValueError(
            f"{title}: an image with rows of {list(lines)} crops. Every image must stand in its prompt as the model's "
            "own processor writes it"
        )
    return (len(lines), lines[0]) if lines else (0, 0)


def numbered(row: Tensor, start: int) -> int:
    """Where the number begins that stands before a picture ("<image_id>0</image_id>"); ``start`` where there is none.

    No config names its marks. The closing one stands right before the picture's, and in the vocabulary right behind the
    opening one.

    Args:
        row: (S,) int64 ids.
        start: the column of the picture's first mark.
    """
    for number in range(1, NUMBER + 1):
        opening = start - 2 - number
        if opening >= 0 and row[opening] >= 0 and int(row[opening]) + 1 == int(row[start - 1]):
            return opening
    return max(start, 0)
