"""How sure a figure is: intervals of proportions, the bootstrap over pictures, paired tests. Needs numpy only.

Intervals are 95 % throughout. Questions about one picture are not independent, so what resamples draws whole pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

RESAMPLES = 2000
FLIPS = 5000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Args:
        value: a proportion, or another metric's figure; NaN when nothing was counted.
        low, high: the interval's ends.
        count: how many answers it rests on.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Two methods on the same questions.

    Args:
        value: first minus second, in [-1, 1].
        low, high: 95 % bootstrap interval over pictures.
        first_only, second_only: questions on which one of them scored higher than the other.
        p_value: two-sided. Of right and wrong answers: exact McNemar on those questions. Of other scores: the two
            methods' answers swapped, picture by picture, at random (Monte Carlo, 5000 times).
        count: questions both were asked.
    """

    value: float
    low: float
    high: float
    first_only: int
    second_only: int
    p_value: float
    count: int


def wilson(correct: float, count: int) -> Estimate:
    """Proportion with Wilson's score interval (Wilson 1927), which holds for few answers and near 0 and 1 as well.

    Raises:
        ValueError: not 0 <= correct <= count.
    """
    if not 0 <= correct <= count:
        raise ValueError(f"{correct} correct out of {count} is impossible")
    if count == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    share = correct / count
    scale = 1 + Z**2 / count
    middle = (share + Z**2 / (2 * count)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    # At the ends one limit equals the share exactly; rounding must not put it on the wrong side.
    return Estimate(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)), count)


def combine(parts: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Weighted mean of independent proportions; parts without answers are left out.

    The interval combines those of the parts by the method of variance estimates recovery (Zou and Donner 2008), so it
    stays sensible where a part is at 0 or 1.

    Args:
        parts: what to average.
        weights: one per part, default equal.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.count]
    total = sum(weight for _, weight in used)
    if not used or total <= 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    value = sum(weight * part.value for part, weight in used) / total
    below = math.sqrt(sum((weight * (part.value - part.low)) ** 2 for part, weight in used)) / total
    above = math.sqrt(sum((weight * (part.high - part.value)) ** 2 for part, weight in used)) / total
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), sum(part.count for part, _ in used))


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p-value that a question is as often won by the first as by the second (McNemar 1947)."""
    trials = first_only + second_only
    if trials == 0:
        return 1.0
    tail = sum(math.comb(trials, wins) for wins in range(min(first_only, second_only) + 1))
    return min(1.0, 2 * tail / 2**trials)  # exact integers until the last division


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are, by steps from the smallest (Holm 1979).

    Whatever depends on what: below 0.05, all of them together are wrong in at most 5 of 100 families.
    """
    found, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = least
    return found


@dataclass(frozen=True)
class Design:
    """How the answers to n questions are put together into one figure, and which of them are drawn together.

    Args:
        pictures: (n,) which picture each question is about: pictures are resampled whole.
        value: (..., k) sums of tallies to (...) figures; default the mean, for tallies of a score and a one.
        strata: (n,) the stratum of each question; the figure is the weighted mean of the strata's. Default: one.
        weights: of the strata, default equal.
    """

    pictures: Sequence[str]
    value: Callable[[np.ndarray], np.ndarray] = lambda totals: totals[..., 0] / np.maximum(totals[..., -1], 1.0)
    strata: Sequence[str] | None = None
    weights: dict[str, float] | None = None

    def cells(self, tallies: np.ndarray) -> np.ndarray:
        """(pictures, strata, k): sums of (n, k) tallies: ones in the last column, each answer's own score before it.

        Raises:
            ValueError: lengths differ, or there is no question.
        """
        count = len(tallies)
        strata = [""] * count if self.strata is None else self.strata
        if not count or not count == len(self.pictures) == len(strata):
            raise ValueError(
                f"questions must be as many as their pictures and strata, at least one; got {count}, "
                f"{len(self.pictures)} pictures, {len(strata)} strata"
            )
        _, picture = np.unique(np.asarray(self.pictures), return_inverse=True)
        names, stratum = np.unique(np.asarray(strata), return_inverse=True)
        sums = np.zeros((int(picture.max()) + 1, len(names), tallies.shape[1]))
        np.add.at(sums, (picture, stratum), tallies)
        return sums

    def figure(self, totals: np.ndarray) -> np.ndarray:
        """(..., strata, k) sums to (...) figures; a stratum that a resample missed is left out of its mean."""
        share = np.ones(totals.shape[-2])
        if self.strata is not None and self.weights is not None:
            share = np.array([self.weights[name] for name in np.unique(np.asarray(self.strata)).tolist()])
        present = np.where(totals[..., -1] > 0, share, 0.0)
        weight = present.sum(-1)
        return np.asarray((present * self.value(totals)).sum(-1) / np.where(weight > 0, weight, 1.0))


def tallied(scores: Sequence[bool] | Sequence[float] | np.ndarray) -> np.ndarray:
    """(n, 2) tallies of n scores: the score, and a one."""
    values = np.asarray(scores, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=1)


def bootstrap(design: Design, tallies: np.ndarray, seed: int = 0) -> Estimate:
    """A figure and its percentile interval over resampled pictures (Efron 1979).

    Where every answer is alike the interval has no width, however few they are.
    """
    cells = design.cells(tallies)
    low, high = np.quantile(
        np.concatenate([design.figure(sums) for (sums,) in resampled([cells], seed)]), [0.025, 0.975]
    )
    return Estimate(float(design.figure(cells.sum(0))), float(low), float(high), len(tallies))


def resampled(cells: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES) -> Iterator[list[np.ndarray]]:
    """Sums over resampled pictures, the same draw for all of ``cells`` (pictures, ...), in blocks of many draws."""
    kinds, counts = _kinds(cells)
    rng = np.random.default_rng(seed)
    for size in _blocks(resamples, len(counts)):
        draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=size).astype(float)
        yield [np.tensordot(draws, one, axes=1) for one in kinds]


def _kinds(cells: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Pictures that are alike in everything, put together: one cell of each kind, and how many there are of it.

    To draw how often each kind comes is to draw the pictures, and there are far fewer of them to draw.
    """
    flat = np.concatenate([one.reshape(len(one), -1) for one in cells], axis=1)
    _, first, counts = np.unique(flat, axis=0, return_index=True, return_counts=True)
    return [one[first] for one in cells], counts


def _blocks(total: int, width: int) -> Iterator[int]:
    """Sizes of blocks that take 32 MB at most."""
    block = max(1, 4_000_000 // width)
    for start in range(0, total, block):
        yield min(block, total - start)


def paired_difference(
    first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray, design: Design, seed: int = 0
) -> Difference:
    """Compares two methods on the same questions.

    Args:
        first, second: (n,) scores, or (n, k) tallies; where all are 0 or 1 the test is McNemar's.
        design: of the questions.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ, or there is no question.
    """
    if len(first) != len(second):
        raise ValueError(f"paired questions must be as many on both sides; got {len(first)} and {len(second)}")
    one, two = (np.asarray(side) if np.ndim(side) == 2 else tallied(side) for side in (first, second))
    cells = [design.cells(one), design.cells(two)]
    value = float(design.figure(cells[0].sum(0)) - design.figure(cells[1].sum(0)))
    blocks = [design.figure(a) - design.figure(b) for a, b in resampled(cells, seed)]
    low, high = np.quantile(np.concatenate(blocks), [0.025, 0.975])
    # The last but one column is what a single answer scores, whatever the metric.
    gain = one[:, -2] - two[:, -2]
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    binary = one.shape[1] == 2 and bool(np.isin([one[:, 0], two[:, 0]], (0.0, 1.0)).all())
    p_value = mcnemar(wins, losses) if binary else _swapped(design, cells[0], cells[1], value, seed)
    return Difference(value, float(low), float(high), wins, losses, p_value, len(one))


def _swapped(design: Design, first: np.ndarray, second: np.ndarray, value: float, seed: int) -> float:
    """How often swapping the methods picture by picture gives a difference at least as large; two-sided."""
    return float(swaps(design, first, second[:, None], np.array([value]), seed)[0])


def swaps(design: Design, first: np.ndarray, others: np.ndarray, values: np.ndarray, seed: int) -> np.ndarray:
    """How often swapping two methods picture by picture gives a difference at least as large; two-sided, 5000 swaps.

    Args:
        design: of the questions.
        first: (pictures, strata, k) cells of one method, see ``Design.cells``.
        others: (pictures, m, strata, k) those of the methods it is compared with, by the same swaps.
        values: (m,) the differences of their figures, of either sign.
        seed: of the swaps.

    Returns:
        (m,) p-values.
    """
    (one, many), counts = _kinds([first, others])
    gaps, seconds = one[:, None] - many, others.sum(0)
    both = first.sum(0) + seconds
    rng = np.random.default_rng(seed)
    beyond = np.zeros(len(values), dtype=int)
    for size in _blocks(FLIPS, len(counts) + gaps[0].size):
        kept = rng.binomial(counts, 0.5, size=(size, len(counts))).astype(float)
        mine = np.tensordot(kept, gaps, axes=1) + seconds
        differences = np.abs(design.figure(mine) - design.figure(both - mine))
        beyond += (differences >= np.abs(values) - 1e-12).sum(0)
    return (beyond + 1) / (FLIPS + 1)


def relative(
    first: np.ndarray, second: np.ndarray, design: Design, confidence: float, loss: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """The first method's figure over the second's on the same questions, and a value it is above, one-sided.

    The bound is a percentile of the bootstrap over pictures, the same draws for both methods, after one imaginary
    picture has joined the real ones, about which the second method answered one question rightly and the first did not.
    Losses are rare where this is asked, and the bootstrap of few losses is too sure of itself: of none, it would say
    that there never are any. With n losses, the bootstrap of n + 1 has the quantiles of the exact limit for rare
    events; with none, it gives the rule of three.

    Args:
        first, second: (n, k) tallies.
        design: of the questions, without strata.
        confidence: how often the bound is below the true ratio.
        loss: (2, k) tallies of the imaginary question: the first method's and the second's.
        seed: of the bootstrap.

    Returns:
        The ratio and its lower bound.

    Raises:
        ValueError: the second's figure is 0, lengths differ, or there are strata.
    """
    if design.strata is not None:
        raise ValueError("a relative figure is bounded over one stratum only")
    cells = [design.cells(side) for side in (first, second)]
    figures = [float(design.figure(one.sum(0))) for one in cells]
    if figures[1] <= 0:
        raise ValueError("nothing is relative to 0: with all tokens the model answers no question rightly")
    cells = [np.concatenate([one, lost[None, None]]) for one, lost in zip(cells, loss, strict=True)]
    # Far quantiles need more draws: some four hundred beyond the bound.
    resamples = max(RESAMPLES, min(200_000, math.ceil(400 / (1 - confidence))))
    blocks = []
    for one, two in resampled(cells, seed, resamples):
        whole = design.figure(two)
        blocks.append(np.where(whole > 0, design.figure(one) / np.where(whole > 0, whole, 1.0), 0.0))
    return figures[0] / figures[1], float(np.quantile(np.concatenate(blocks), 1 - confidence))
