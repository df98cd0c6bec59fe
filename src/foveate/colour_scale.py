"""The colour scale of a map of scores: where it begins and ends, and the numbers beside it. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLAT = 0.1
"""A map whose values differ by less than this part of the largest is not stretched over the whole colour scale."""


def scale(values: np.ndarray) -> tuple[float, float, list[float]]:
    """The ends of a map's colour scale, and what is marked on it.

    Args:
        values: what the map shows, none of it NaN.

    Returns:
        The least and the largest value; of values that differ by less than ``FLAT`` of their size, a range that wide
        around them, so that a map which says nothing looks as if. Marks: the least value, a quarter of the way, and the
        largest; of equal values one.
    """
    least, most = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    size = max(abs(least), abs(most))
    wide = max(most - least, FLAT * size) or 1.0
    low = least if wide == most - least else (least + most - wide) / 2
    if most - least <= 1e-6 * size:  # rounding
        return low, low + wide, [least]
    return low, low + wide, [least, least + (most - least) / 4, most]


def told_apart(numbers: Sequence[float]) -> list[str]:
    """Numbers as short as they can be without two of them looking alike."""
    for digits in range(1, 9):
        labels = [f"{number:.{digits}g}" for number in numbers]
        if len(set(labels)) == len(numbers):
            break
    return labels
