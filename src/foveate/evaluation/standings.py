"""Which methods are told apart by what they were asked, in place of ranks. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.statistics import Design, Estimate, holm, resampled, swaps, wilson


@dataclass(frozen=True)
class Standing:
    """Where a method stands among others that were asked the same questions.

    Args:
        group: 1 for the best method and all that are not told apart from it; 2 for the best of the rest and all that
            are not told apart from that one; and so on.
        difference: its figure minus that of the best method, with a 95 % bootstrap interval over pictures; where all
            of these are alike, with Wilson's limit for none of so many pictures on both sides. 0 of the best itself.
        p_corrected: of being as good as the best of its own group, by Holm's correction for all methods that were
            compared with that one; 1 of the best itself.
    """

    group: int
    difference: Estimate
    p_corrected: float


def standings(tallies: Sequence[np.ndarray], design: Design, seed: int = 0, level: float = 0.05) -> list[Standing]:
    """Which methods are told apart, in place of ranks: whoever is not significantly worse than a group's best is in it.

    The p-values are of swapping two methods' answers picture by picture at random, two-sided, with Holm's correction
    over all methods that a group's best is compared with. Nothing says that two methods of one group are alike, nor
    that the best of it is the best in truth.

    Args:
        tallies: (n, k) of each method, about the same questions.
        design: of the questions.
        seed: of the draws.
        level: below which a corrected p-value tells apart.

    Returns:
        One per method. Where figures are equal, the earlier one is the best.

    Raises:
        ValueError: there is no question, or lengths differ.
    """
    if not tallies:
        return []
    cells = np.stack([design.cells(one) for one in tallies], axis=1)
    figures = design.figure(cells.sum(0))
    drawn = np.concatenate([design.figure(sums) for (sums,) in resampled([cells], seed)])
    order = np.argsort(-figures, kind="stable")
    gaps = drawn - drawn[:, order[:1]]
    low, high = np.quantile(gaps, [0.025, 0.975], axis=0)
    # Where two methods' pictures are all alike, resampling them says nothing of how many others there may be.
    unsure = np.where((low == high) & (np.arange(len(figures)) != order[0]), wilson(0, len(cells)).high, 0.0)
    low, high = low - unsure, high + unsure
    told: dict[int, tuple[int, float]] = {}
    left, group = [int(place) for place in order], 0
    while left:
        group, best, others = group + 1, left[0], left[1:]
        told[best] = group, 1.0
        values = figures[best] - figures[others]
        p_values = holm(swaps(design, cells[:, best], cells[:, others], values, seed).tolist()) if others else []
        told |= {other: (group, p_value) for other, p_value in zip(others, p_values, strict=True) if p_value >= level}
        left = [other for other in others if other not in told]
    differences = figures - figures[order[0]]
    return [
        Standing(
            told[place][0],
            Estimate(float(differences[place]), float(low[place]), float(high[place]), len(tallies[place])),
            told[place][1],
        )
        for place in range(len(tallies))
    ]
