"""The line around patches that stay."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Edge = tuple[tuple[int, int], tuple[int, int]]


def outline(boxes: np.ndarray) -> str:
    """The outer edges of boxes as an SVG path: what two of them share is no edge.

    Args:
        boxes: (K, 4) int, (x0, y0, x1, y1) of one view's grid, so that neighbours share whole edges.
    """
    seen: dict[Edge, int] = {}
    for x0, y0, x1, y1 in boxes.tolist():
        corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        for one, other in zip(corners, (*corners[1:], corners[0]), strict=True):
            edge = (min(one, other), max(one, other))
            seen[edge] = seen.get(edge, 0) + 1
    return "".join(_lines(edge for edge, times in seen.items() if times == 1))


def _lines(edges: Iterable[Edge]) -> Iterable[str]:
    """Edges that follow each other in a straight line as one."""
    straight: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for (x0, y0), (x1, y1) in edges:
        if y0 == y1:
            straight.setdefault((True, y0), []).append((x0, x1))
        else:
            straight.setdefault((False, x0), []).append((y0, y1))
    for (level, at), parts in straight.items():
        parts.sort()
        begin, end = parts[0]
        for start, stop in [*parts[1:], (-1, -1)]:
            if start == end:
                end = stop
                continue
            yield f"M{begin} {at}H{end}" if level else f"M{at} {begin}V{end}"
            begin, end = start, stop
