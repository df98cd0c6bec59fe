"""Pruning inside the LLM: the pure functions against loops in float64 that follow the equations to the letter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.functional import (
    attention_of_queries,
    density_peaks,
    keep_and_recycle,
    stage_budgets,
    text_raters,
)


def peaks_by_loops(points: Tensor, clusters: int) -> tuple[list[int], list[int]]:
    """Density peaks, with the logarithm of the density only where it is compared."""
    count, width = points.shape
    if clusters == count:
        return list(range(count)), list(range(count))
    distance = [[float((a - b).square().sum().sqrt()) / math.sqrt(width) for b in points] for a in points]
    density = []
    for n in range(count):
        nearest = sorted(distance[n][m] for m in range(count) if m != n)[:clusters]
        density.append(-sum(d * d for d in nearest) / len(nearest))
    peak = []
    for n in range(count):
        denser = [m for m in range(count) if density[m] > density[n] or (density[m] == density[n] and m < n)]
        delta = min((distance[n][m] for m in denser), default=max(map(max, distance)))
        peak.append(density[n] + (math.log(delta) if delta > 0 else -math.inf))
    centres = sorted(sorted(range(count), key=lambda n: (-peak[n], n))[:clusters])
    member = []
    for n in range(count):
        near = min(range(clusters), key=lambda c: (distance[n][centres[c]], c))
        member.append(centres.index(n) if n in centres else near)
    return centres, member


def recycle_by_loops(
    score: Tensor, hidden: Tensor, budget: int, recycled: float, clusters: float
) -> tuple[list[int], list[list[float]]]:
    """Kept tokens and, for each, how much of every token it is made of."""
    tokens = len(score)
    merged = min(math.ceil(clusters * recycled * (tokens - budget) - 1e-9), budget // 2)
    order = sorted(range(tokens), key=lambda n: (-float(score[n]), n))
    whole, rest = order[: budget - merged], order[budget - merged :]
    made = {n: [float(m == n) for m in range(tokens)] for n in whole}
    if merged:
        pool = sorted(rest[: max(merged, math.ceil(recycled * len(rest) - 1e-9))])
        centres, member = peaks_by_loops(hidden[pool], merged)
        for number, centre in enumerate(centres):
            group = [pool[n] for n in range(len(pool)) if member[n] == number]
            made[pool[centre]] = [1 / len(group) if n in group else 0.0 for n in range(tokens)]
    return sorted(made), [made[n] for n in sorted(made)]
