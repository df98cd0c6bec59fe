"""Which letter is where: what a cell's text is spelled with, told slot by slot.

Whole words are too much to begin to read with: told nothing else, cells read one word in fifty after 750 steps. Letters
are seen in one place, and words are made of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from foveate.evaluation.documents.faces import face
from foveate.evaluation.documents.panel import Word
from training.dynamic.grid import Grid

SLOT_COLUMNS, SLOT_ROWS = 4, 2
"""Of a cell: slots are as wide as the narrowest letters of 12 px, and as high as such a line."""
SLOTS = SLOT_COLUMNS * SLOT_ROWS
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
NO_LETTER = len(LETTERS)

_INDEX = {letter: number for number, letter in enumerate(LETTERS)}


def spell(grid: Grid, words: Iterable[tuple[Word, int, int]]) -> np.ndarray:
    """Tells the letter at the middle of every slot.

    Args:
        grid: of a picture measured in its own pixels.
        words: those written in it, with what is to be added to their places, across and down, pixels.

    Returns:
        (cells, SLOTS) index in ``LETTERS``, a capital's as its small letter's; ``NO_LETTER`` elsewhere. A cell's slots
        stand row by row.
    """
    rows, columns = grid.rows * SLOT_ROWS, grid.columns * SLOT_COLUMNS
    found = np.full((rows, columns), NO_LETTER, np.int64)
    across, down = grid.width / columns, grid.height / rows
    for word, dx, dy in words:
        font = face(word.family, word.bold, word.size)
        _, top, _, bottom = word.box
        # Slots whose middles lie in the word's ink, at least the one that the middle of the ink lies in.
        first, last = _between(top + dy, bottom + dy, down, rows)
        ends = [word.x + dx + font.getlength(word.text[:count]) for count in range(len(word.text) + 1)]
        for letter, begin, end in zip(word.text.lower(), ends, ends[1:], strict=False):
            left, right = _between(begin, end, across, columns)
            found[first:last, left:right] = _INDEX.get(letter, NO_LETTER)
    return found.reshape(grid.rows, SLOT_ROWS, grid.columns, SLOT_COLUMNS).transpose(0, 2, 1, 3).reshape(-1, SLOTS)


def _between(begin: float, end: float, side: float, count: int) -> tuple[int, int]:
    """The slots, of so many of one length, whose middles lie between; one where none does."""
    first = int(np.ceil(begin / side - 0.5))
    last = int(np.ceil(end / side - 0.5))
    if first >= last:
        first = int((begin + end) / 2 / side)
        last = first + 1
    return max(0, min(first, count)), max(0, min(last, count))
