"""What an answer is worth: the metrics of the usual suites, each as numbers that add up over answers. numpy only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

_ARTICLES = {"a", "an", "the"}
_NUMBERS = dict(
    zip(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(11), strict=True)
)


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


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalised prediction equals one of the normalised answers, else 0."""
    return float(is_correct(prediction, answers))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy (Antol et al. 2015, arXiv 1505.00468): agreement with what about ten people said, in [0, 1].

    ``min(1, m / 3)``, ``m`` of the others having said the same, averaged over leaving each person out. Texts are
    compared as ``normalise`` leaves them, number words as digits, where the official script has its own lists.

    Raises:
        ValueError: two or three answers, among which nobody could be agreed with by three. A single answer is compared
            exactly.
    """
    said = [_as_digits(answer) for answer in answers]
    if len(said) in (2, 3):
        raise ValueError(
            f"VQA accuracy needs the answers of about ten people to each question, got {len(said)} ({answers!r}): use "
            "the metric exact, which takes any of the answers"
        )
    mine = _as_digits(prediction)
    matches = said.count(mine)
    if len(said) == 1:
        return float(matches)
    without_one = matches * min(1.0, (matches - 1) / 3) + (len(said) - matches) * min(1.0, matches / 3)
    return without_one / len(said)


def _as_digits(text: str) -> str:
    return " ".join(str(_NUMBERS.get(word, word)) for word in normalise(text).split())


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity (Biten et al. 2019, arXiv 1905.13648): DocVQA's, in [0, 1].

    The largest over the answers of ``1 - distance / longer length``, in lower case, blanks as one; below 0.5 it is 0.
    """
    mine = " ".join(prediction.casefold().split())
    best = 0.0
    for answer in answers:
        other = " ".join(answer.casefold().split())
        longer = max(len(mine), len(other))
        best = max(best, 1.0 - levenshtein(mine, other) / longer if longer else 1.0)
    return best if best >= 0.5 else 0.0


def levenshtein(first: str, second: str) -> int:
    """The fewest insertions, deletions and replacements of letters that make one text of the other."""
    before = list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        now = [row]
        for column, other in enumerate(second, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != other)))
        before = now
    return before[-1]


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Relaxed accuracy (Masry et al. 2022, arXiv 2203.10244): ChartQA's, 0 or 1.

    A number may be off by 5 % of the answer; a text must equal it, normalised. ``12%`` is 0.12. Years
    count as numbers, as in the original.
    """
    mine = _number(prediction)
    for answer in answers:
        target = _number(answer)
        if mine is not None and target:
            right = abs(mine - target) / abs(target) <= 0.05
        else:
            right = (mine == target) if target is not None else is_correct(prediction, [answer])
        if right:
            return 1.0
    return 0.0


def _number(text: str) -> float | None:
    bare = text.strip().rstrip(".").replace(",", "").lstrip("$")
    try:
        value = float(bare.removesuffix("%"))
    except ValueError:
        return None
    if not np.isfinite(value):
        return None
    return value / 100 if bare.endswith("%") else value


def yes_or_no(text: str) -> bool | None:
    """Whether an answer to a yes-no question says yes: its first "yes", "no" or "not" decides; None when there is none.

    The script of POPE takes everything that holds no "no" for a yes; here an answer that says neither is wrong.
    """
    for word in normalise(text).split():
        if word in ("yes", "no", "not"):
            return word == "yes"
    return None


def _yes_counts(prediction: str, answers: Sequence[str]) -> tuple[float, ...]:
    said, true = yes_or_no(prediction), yes_or_no(answers[0])
    if true is None:
        raise ValueError(f"the metric yesno needs yes or no as the answer, got {answers[0]!r}")
    return tuple(float(fact) for fact in (said is True, true, said is True and true, said is true))


def _mean(totals: np.ndarray) -> np.ndarray:
    return _share(totals[..., 0], totals[..., -1])


def _f1(totals: np.ndarray) -> np.ndarray:
    return _share(2 * totals[..., 2], totals[..., 0] + totals[..., 1])


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(part / np.where(whole > 0, whole, 1.0))


Value = Callable[[np.ndarray], np.ndarray]
"""(..., k + 1) sums of tallies, the number of answers last, to (...) figures."""


@dataclass(frozen=True)
class Metric:
    """How answers become a figure. Tallies are summed over answers, so that any resample of them has its figure too.

    Args:
        name: for ``--metric``.
        title: for people.
        tally: what an answer adds: k numbers, the last of them its own score, in [0, 1].
        value: the figure of sums.
        binary: whether the figure is a mean of zeros and ones, a proportion.
        extras: further figures of the same sums, by name.
        lost, won: tallies of a question answered as wrongly, and as rightly, as can be.
    """

    name: str
    title: str
    tally: Callable[[str, Sequence[str]], tuple[float, ...]]
    value: Value
    binary: bool = True
    extras: Mapping[str, Value] = field(default_factory=dict)
    lost: tuple[float, ...] = (0.0,)
    won: tuple[float, ...] = (1.0,)

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """What one answer is worth, in [0, 1]."""
        return self.tally(prediction, answers)[-1]

    def tallies(self, answered: Iterable[tuple[str, Sequence[str]]]) -> np.ndarray:
        """(n, k + 1): the tallies of n answers, ones in the last column. Takes (prediction, answers) pairs."""
        return np.array([(*self.tally(*one), 1.0) for one in answered], dtype=float)


def _averaged(name: str, title: str, score: Callable[[str, Sequence[str]], float], binary: bool = True) -> Metric:
    return Metric(name, title, lambda prediction, answers: (score(prediction, answers),), _mean, binary)


EXACT = _averaged("exact", "exact match", exact_match)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        EXACT,
        _averaged("vqa", "VQA accuracy", vqa_accuracy, binary=False),
        _averaged("anls", "ANLS", anls, binary=False),
        _averaged("relaxed", "relaxed accuracy", relaxed_accuracy),
        Metric(
            "yesno",
            "F1 of yes",  # POPE: Li et al. 2023, arXiv 2305.10355
            _yes_counts,
            _f1,
            binary=False,
            extras={
                "accuracy": lambda totals: _share(totals[..., 3], totals[..., -1]),
                "precision": lambda totals: _share(totals[..., 2], totals[..., 0]),
                "recall": lambda totals: _share(totals[..., 2], totals[..., 1]),
                "yes ratio": lambda totals: _share(totals[..., 0], totals[..., -1]),
            },
            lost=_yes_counts("no", ["yes"]),
            won=_yes_counts("yes", ["yes"]),
        ),
    )
}


def get_metric(name: str) -> Metric:
    """The metric of that name. Raises ValueError, naming those known, when there is none."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]
