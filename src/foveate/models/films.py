"""Videos whose frames stand in the prompt as images do: which runs of placeholders are the frames of one video.

Such processors write a label before every frame that counts ("Frame1: ", "Frame2: ") or tells the time ("Frame from
00:07:"). No config names these tokens, and no argument says that there is a video; the labels do, where a tokenizer
writes numbers digit by digit with ids that follow each other, as byte-level ones do: so 1, 2, 3 can be told from other
words. Three frames are asked for, since any two sentences may look like that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.models.frame_labels import frame_labels
from foveate.models.tiles import runs_of

FEWEST = 3
"""Frames that make a video."""

SHARED = 3
"""Tokens that labels have in common: a line break, a word, a colon. Words between pictures may share one or two: the
line break that a template puts behind every picture."""

Texts = Sequence[Sequence[int]]
"""What stands before every run of placeholders, back to the run before it, without marks."""


@dataclass(frozen=True)
class Film:
    """A video among a prompt's runs of placeholders.

    Args:
        first, end: its first run, and the one past its last.
        labels: the columns of its frames' labels.
    """

    first: int
    end: int
    labels: tuple[int, ...]


def films_in(
    row: Tensor, token: int, marks: Tensor, single: Sequence[bool], told: Callable[[Texts], tuple[int, int]]
) -> list[Film]:
    """The videos of a prompt.

    Args:
        row: (S,) int64 ids on the CPU, -1 where not to be looked at.
        token: the placeholder's id.
        marks: (S,) bool: what is no text.
        single: of every run, whether it may be a frame: a picture that is not cut.
        told: the texts before some runs -> how many of these, from the first on, are frames, and how many tokens at the
            end of the first text are its label (the others are labels as a whole).
    """
    text, ids = ((row >= 0) & ~marks).tolist(), row.tolist()
    runs = runs_of(row, token)
    columns = [
        [place for place in range(before, start) if text[place]]
        for before, (start, _) in zip([0, *(end for _, end in runs)], runs, strict=False)
    ]
    texts = [[ids[place] for place in places] for places in columns]
    found, first = [], 0
    while first + FEWEST <= len(runs):
        whole = next((run for run in range(first, len(runs)) if not single[run]), len(runs))
        frames, label = told(texts[first:whole]) if whole - first >= FEWEST else (0, 0)
        if frames >= FEWEST:
            later = [place for places in columns[first + 1 : first + frames] for place in places]
            found.append(Film(first, first + frames, (*columns[first][len(columns[first]) - label :], *later)))
        first += frames if frames >= FEWEST else 1
    return found


def film_labels(
    ids: Tensor, token: int, marks: Tensor, films: Sequence[Sequence[Film]], special: Collection[int]
) -> Tensor:
    """(B, S) bool: what labels the frames of videos; in prompts where none is told, what may (see ``frame_labels``).

    Args:
        ids: (B, S) int64 on the CPU, -1 where not to be looked at.
        token: the placeholder's id.
        marks: (B, S) bool: what is no text.
        films: of every row.
        special: see ``frame_labels``.
    """
    found = frame_labels(ids, token, marks, special, shared=SHARED)
    for line, ours in zip(found, films, strict=True):
        if ours:
            line[:] = False
            line[[column for film in ours for column in film.labels]] = True
    return found


def counted(texts: Texts) -> tuple[int, int]:
    """See ``films_in``: "Frame1: ", then "\\nFrame2: " and so on: a break and a word, the number, the same end."""
    second = texts[1]
    if len(second) < 4:
        return 0, 0
    turn, word, two, *end = second
    zero = two - 2
    label = [word, zero + 1, *end]
    if list(texts[0][-len(label) :]) != label:
        return 0, 0
    frames = 1
    while frames < len(texts) and list(texts[frames]) == [turn, word, *_digits(frames + 1, zero), *end]:
        frames += 1
    return frames, len(label)


def timed(texts: Texts) -> tuple[int, int]:
    """See ``films_in``: "Frame from 00:07:": words, minutes, a colon, seconds, a colon; no time before the last."""
    head, *_ = parted = list(texts[1][:-6]), list(texts[1][-6:])
    if len(head) < 2:
        return 0, 0
    colon, digits = parted[1][-1], set(_time(parted[1]) or ())
    for front in (head, head[1:]):  # the break before the first label may be one with what stands before it
        last = _after(front, texts[0][-len(front) - 6 :], colon)
        if last is not None:
            break
    else:
        return 0, 0
    digits |= set(last)
    frames = 1
    while frames < len(texts):
        time = _after(head, texts[frames], colon)
        if time is None or (len(time), time) < (len(last), last):
            break
        digits |= set(time)
        if max(digits) - min(digits) > 9 or colon in digits:
            break
        last, frames = time, frames + 1
    return frames, len(front) + 6


def _digits(number: int, zero: int) -> list[int]:
    return [zero + int(digit) for digit in str(number)]


def _after(head: Sequence[int], text: Sequence[int], colon: int) -> tuple[int, ...] | None:
    """The digits of a time that is all that follows ``head``."""
    if list(text[: len(head)]) != list(head) or text[-1] != colon:
        return None
    return _time(text[len(head) :])


def _time(text: Sequence[int]) -> tuple[int, ...] | None:
    """The digits of "MM:SS:", two or more of minutes."""
    if len(text) < 6 or text[-1] != text[-4]:
        return None
    return (*text[:-4], *text[-3:-1])
