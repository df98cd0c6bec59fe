"""Fewer combinations of values than their product: what most rows of the matrix go through."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations


def covering(rows: Sequence[tuple[object, ...]], strength: int, first: int = 0) -> list[int]:
    """Which of some combinations to take so that each value that occurs in any (``strength`` 1), or each pair of values
    (2), is in one that is taken.

    The one with the most that is new before the others; of equals the next from ``first`` on: the same choice every
    time, and another one for every ``first``.

    Args:
        rows: combinations, a value for every axis each.
        strength: how many values are to be seen together.
        first: where to begin to look.
    """
    held = [
        {tuple((axis, row[axis]) for axis in axes) for axes in combinations(range(len(row)), strength)} for row in rows
    ]
    order = [(first + number) % len(rows) for number in range(len(rows))]
    missing = set().union(*held)
    taken = []
    while missing:
        best = max(order, key=lambda number: len(held[number] & missing))
        taken.append(best)
        missing -= held[best]
    return sorted(taken)
