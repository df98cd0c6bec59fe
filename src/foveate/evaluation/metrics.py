"""Right or wrong, and how sure: exact match, intervals of proportions, paired tests. Needs numpy only.

Intervals are 95 % throughout. Questions about one picture are not independent, so what resamples
(``paired_difference``) draws whole pictures.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Estimate:
    """A proportion or a mean of proportions, with its 95 % interval.

    Args:
        value: in [0, 1]; NaN when nothing was counted.
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
        first_only, second_only: questions that only one of them answered rightly.
        p_value: exact McNemar test on those, two-sided.
        count: questions both were asked.
    """

    value: float
    low: float
    high: float
    first_only: int
    second_only: int
    p_value: float
    count: int


def normalise(text: str) -> str:
    """Lower case, no punctuation, single blanks, no articles (an answer that is nothing but an article stays)."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d)[.,](?=\d)", lambda mark: "" if mark[0] == "," else "\0", text)  # 3.5 and 1,000 are numbers
    text = text.replace("'", "").replace("\u2019", "")
    kept = (" " if unicodedata.category(letter).startswith("P") else letter for letter in text)
    words = "".join(kept).replace("\0", ".").split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_correct(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the normalised prediction equals one of the normalised answers."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


def wilson(correct: int, count: int) -> Estimate:
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


def paired_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    pictures: Sequence[str],
    strata: Sequence[str] | None = None,
    weights: dict[str, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compares two methods on the same questions.

    Args:
        first, second: (n,) whether each question was answered rightly.
        pictures: (n,) which picture each question is about: pictures are resampled whole.
        strata: (n,) the stratum of each question; the difference is the weighted mean of the strata's. Default: one.
        weights: of the strata, default equal.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ, or there is no question.
    """
    count = len(first)
    strata = [""] * count if strata is None else strata
    if not count or not count == len(second) == len(pictures) == len(strata):
        raise ValueError(
            f"paired questions must be as many on both sides, at least one; got {count}, {len(second)}, "
            f"{len(pictures)} pictures, {len(strata)} strata"
        )
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    _, picture = np.unique(np.asarray(pictures), return_inverse=True)
    names, stratum = np.unique(np.asarray(strata), return_inverse=True)
    share = np.array([1.0 if weights is None else weights[str(name)] for name in names])
    cells = (int(picture.max()) + 1, len(names))
    gains, asked = np.zeros(cells), np.zeros(cells)
    np.add.at(gains, (picture, stratum), one.astype(float) - two)
    np.add.at(asked, (picture, stratum), 1.0)

    def difference(draws: np.ndarray) -> np.ndarray:
        total = draws @ asked
        present = np.where(total > 0, share, 0.0)  # a resample may miss a rare stratum
        means = draws @ gains / np.maximum(total, 1.0)
        return np.asarray((present * means).sum(-1) / present.sum(-1))

    rng = np.random.default_rng(seed)
    draws = rng.multinomial(cells[0], np.full(cells[0], 1 / cells[0]), size=resamples).astype(float)
    low, high = np.quantile(difference(draws), [0.025, 0.975])
    wins, losses = int((one & ~two).sum()), int((two & ~one).sum())
    return Difference(
        float(difference(np.ones(cells[0]))), float(low), float(high), wins, losses, mcnemar(wins, losses), count
    )
