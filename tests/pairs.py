"""Fewer combinations that still hold every pair of values: what rows of the matrix go through that share an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations


def covering(rows: Sequence[tuple[object, ...]]) -> list[int]:
    """Which of some combinations to take so that each pair of values that occurs in any is in one that is taken.

    The one with the most new pairs first; of equals the first: the same choice every time.

    Args:
        rows: combinations, a value for every axis each.
    """
    held = [{((a, row[a]), (b, row[b])) for a, b in combinations(range(len(row)), 2)} for row in rows]
    missing = set().union(*held)
    taken = []
    while missing:
        best = max(range(len(rows)), key=lambda number: len(held[number] & missing))
        taken.append(best)
        missing -= held[best]
    return sorted(taken)
