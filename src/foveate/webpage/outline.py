"""The line around what stays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def outline(clear: np.ndarray) -> str:
    """The edges of an area as an SVG path, (0, 0) being its upper left corner.

    Args:
        clear: (height, width) bool.
    """
    around = np.pad(clear, 1)
    level = "".join(f"M{begin} {at}H{end}" for at, begin, end in _runs(around[1:, 1:-1] != around[:-1, 1:-1]))
    upright = "".join(f"M{at} {begin}V{end}" for at, begin, end in _runs((around[1:-1, 1:] != around[1:-1, :-1]).T))
    return level + upright


def _runs(edges: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Of every line of (lines, length) bool: its number, and where each run of True begins and ends."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    begins, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    for (line, begin), (_, end) in zip(begins.tolist(), ends.tolist(), strict=True):
        yield line, begin, end
