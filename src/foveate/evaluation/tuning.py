"""The fewest tokens, and the method, that hold a share of the unpruned accuracy on somebody's own questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.evaluation.dials import SCREENED, SCREENED_MARGIN, SCREENED_SHARE, Dial, dials_of
from foveate.evaluation.metrics import Metric
from foveate.evaluation.runner import ALL, Row
from foveate.evaluation.statistics import Design, relative
from foveate.keep import keep_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCREENING_SHARE = 0.25
FINALISTS = 2

Ask = Callable[[str, float, Sequence[Any], str], list[Row]]
"""(method, keep, items, stage) to the rows of that method and of all tokens."""


@dataclass(frozen=True)
class Trial:
    """One method at one budget, against all tokens on the same questions.

    Args:
        method, keep: what was tried, the method with the options that the search turns.
        relative: its figure over that of all tokens.
        bound: what the true ratio is above, at the search's level of confidence.
        holds: whether that is the target at least.
        kept: tokens per question that reached the LLM, in all passes, mean.
        latency_ms: per question, mean.
        dial: which of the search's dials it is a run of.
        spent: ``kept`` over the tokens there were.
    """

    method: str
    keep: float
    relative: float
    bound: float
    holds: bool
    kept: float
    latency_ms: float
    dial: str = ""
    spent: float = 1.0


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Args:
        target: the share of the unpruned figure that had to be held.
        confidence: with which no budget is wrongly said to hold it, in all decisions together.
        decisions: the most that the search could have taken.
        accuracy: the figure with all tokens.
        best_bound: the bound of a method that lost nothing: with less than ``target``, there were too few questions.
        questions, pictures: that decided.
        screening: by dial: relative figure of its probe on other pictures; empty when nothing was screened.
        trials: in the order they were made.
        best: the trial that holds with the fewest tokens; None when only all tokens do.
        plain: whether budgets alone were searched.
    """

    target: float
    confidence: float
    decisions: int
    accuracy: float
    best_bound: float
    questions: int
    pictures: int
    screening: dict[str, float]
    trials: tuple[Trial, ...]
    best: Trial | None
    plain: bool = True

    @property
    def estimate(self) -> Trial | None:
        """The trial of the fewest tokens whose own figure reaches the target, sure or not."""
        reaching = [trial for trial in self.trials if trial.relative >= self.target]
        return min(reaching, key=lambda trial: (trial.keep if self.plain else trial.kept, trial.keep), default=None)

    def how(self) -> str:
        """How it was decided, for people."""
        level = 1 - (1 - self.confidence) / self.decisions
        chosen = (
            f"The {FINALISTS} methods that lost least at keep {keep_label(SCREENED)} on a quarter of the pictures went "
            "on; the others decided. "
        )
        if not self.plain:
            chosen = (
                f"On a quarter of the pictures methods were compared at keep {keep_label(SCREENED)}, auto at share "
                f"{SCREENED_SHARE:g}, and every pair of budgets of ask-again at margin {SCREENED_MARGIN:g}: what "
                f"reached the target with the fewest tokens, else what lost least, went on, of more than {FINALISTS} "
                "methods the best plain budget and the best of the others; the other pictures decided. "
            )
        return (
            f"{chosen if self.screening else ''}A budget holds when the one-sided lower bound of its accuracy over "
            f"that of all tokens, on the same {self.questions} questions, is at least {self.target:g}: a percentile of "
            f"the bootstrap over {self.pictures} pictures, at {100 * level:.2f} %, so that with "
            f"{100 * self.confidence:g} % confidence none of the at most {self.decisions} decisions wrongly says that "
            "one holds. The search is a bisection: it takes for granted that more tokens are no worse."
            f"{'' if self.plain else ' What is smallest, mean tokens per question say, those of all passes together.'}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {**asdict(self), "how": self.how()}
        return {**told, "estimate": asdict(self.estimate) if self.estimate else None}


def tune(
    ask: Ask, items: Sequence[Any], methods: Sequence[str], target: float, metric: Metric, confidence: float = 0.95
) -> Tuning:
    """Searches every method's dial by bisection; see ``Tuning.how`` for how a run is judged.

    With more than ``FINALISTS`` methods, or one that has several dials (``ask-again``, whose two budgets are to be
    chosen), a quarter of the pictures serves to choose those that go on, and only the others decide, so that the choice
    does not flatter the chosen. The first finalist's last run that holds is found by bisection. Where the next is a
    plain budget as well, it is tried right below that one, and searched further down only if it holds there; else it is
    searched too, and the one that spends fewer tokens is the best.

    Args:
        ask: answers items with a method at a budget, and with all tokens.
        items: questions with ``image`` and ``answers``; an ``id`` or the place names them in rows.
        methods: names, at least one; the first is preferred where they tie.
        target: in (0, 1].
        metric: what an answer is worth.
        confidence: in [0.5, 1).

    Raises:
        ValueError: an impossible target or confidence, no methods, too few pictures to screen with, or nothing is right
            with all tokens.
    """
    if not 0 < target <= 1:
        raise ValueError(f"the target must be a share of the unpruned accuracy, in (0, 1], got {target!r}")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"the confidence must be in [0.5, 1), got {confidence!r}")
    if not methods:
        raise ValueError("name at least one method")
    candidates = [dials_of(method) for method in dict.fromkeys(methods)]
    if not all(candidates):
        raise ValueError("ask-again: the first budget is as large as the second")
    plain = all(dial.plain for dials in candidates for dial in dials)
    screening: dict[str, float] = {}
    if len(candidates) > FINALISTS or any(len(dials) > 1 for dials in candidates):
        aside, items = _split(items)
        rated: dict[str, tuple[bool, int, float]] = {}
        for dial in (dial for dials in candidates for dial in dials):
            rows = ask(*dial.probe, aside, "screening")
            ratio = _compared(rows, aside, *dial.probe, metric, 0.5)[0]
            screening[dial.label] = ratio
            tokens = round(_mean([row.kept for row in rows if row.method == dial.probe[0]]))
            rated[dial.label] = (ratio < target, tokens if ratio >= target else 0, -ratio)
        finalists = [min(dials, key=lambda dial: rated[dial.label]) for dials in candidates]
        finalists = sorted(finalists, key=lambda dial: rated[dial.label])
        if len(finalists) > FINALISTS and not plain:
            # What is compared at one budget says little of a smaller one: the best plain budget is always searched.
            kinds = [[dial for dial in finalists if dial.plain is kind] for kind in (True, False)]
            first = [dials[0] for dials in kinds if dials]
            finalists = first + [dial for dial in finalists if dial not in first]
        finalists = finalists[:FINALISTS]
    else:
        finalists = [dials[0] for dials in candidates]
    decisions = 0
    for number, dial in enumerate(finalists):
        decisions += _steps(dial) + (number > 0 and dial.plain and finalists[0].plain)
    level = 1 - (1 - confidence) / decisions
    trials: list[Trial] = []
    whole: list[Row] = []

    def holds(dial: Dial, place: int) -> bool:
        method, keep = dial.runs[place]
        rows = ask(method, keep, items, "decisions")
        whole[:] = [row for row in rows if row.method == ALL]
        ratio, bound = _compared(rows, items, method, keep, metric, level)
        own = [row for row in rows if row.method == method]
        kept, total, latency = (
            _mean(values) for values in ([r.kept for r in own], [r.total for r in own], [r.latency_ms for r in own])
        )
        trials.append(Trial(method, keep, ratio, bound, bound >= target, kept, latency, dial.label, kept / total))
        return trials[-1].holds

    best: Trial | None = None
    reached = 0  # runs of the first dial that hold: all tokens, before its first run, do by definition
    for number, dial in enumerate(finalists):
        good, bad = 0, len(dial.runs) + 1
        if number and dial.plain and finalists[0].plain:
            if reached == len(dial.runs) or not holds(dial, reached):
                continue
            good = reached + 1
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if holds(dial, middle - 1) else (good, middle)
        if not number:
            reached = good
        found = next((one for one in trials if good and (one.method, one.keep) == dial.runs[good - 1]), None)
        if found is not None and (best is None or plain or found.kept < best.kept):
            best = found
    known = _known(items)
    tallies = metric.tallies((row.answer, known[row.item].answers) for row in whole)
    design = Design([known[row.item].image for row in whole], metric.value)
    return Tuning(
        target,
        confidence,
        decisions,
        float(metric.value(tallies.sum(0))),
        relative(tallies, tallies, design, level, _loss(metric))[1],
        len(whole),
        len(set(design.pictures)),
        screening,
        tuple(trials),
        best,
        plain,
    )


def _steps(dial: Dial) -> int:
    """The most that a bisection over a dial's runs, and all tokens before them, takes."""
    return math.ceil(math.log2(len(dial.runs) + 1))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _known(items: Sequence[Any]) -> dict[str, Any]:
    return {str(getattr(item, "id", place)): item for place, item in enumerate(items)}


def _loss(metric: Metric) -> np.ndarray:
    return np.array([(*metric.lost, 1.0), (*metric.won, 1.0)])


def _compared(
    rows: Sequence[Row], items: Sequence[Any], method: str, keep: float, metric: Metric, level: float
) -> tuple[float, float]:
    known = _known(items)
    own = {row.item: row.answer for row in rows if (row.method, row.keep) == (method, keep)}
    whole = {row.item: row.answer for row in rows if row.method == ALL}
    mine, theirs = (metric.tallies((side[item], known[item].answers) for item in own) for side in (own, whole))
    return relative(mine, theirs, Design([known[item].image for item in own], metric.value), level, _loss(metric))


def _split(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """A quarter of the pictures, drawn with a fixed seed, and the others; each side's questions keep their order."""
    pictures = list(dict.fromkeys(item.image for item in items))
    count = round(SCREENING_SHARE * len(pictures))
    if not count:
        raise ValueError(
            f"{len(pictures)} pictures are too few to choose among methods first: name at most {FINALISTS}"
        )
    drawn = np.random.default_rng(0).permutation(len(pictures))[:count]
    aside = {pictures[place] for place in drawn}
    return [item for item in items if item.image in aside], [item for item in items if item.image not in aside]


COLOURS = ("#d1495b", "#2e86ab")


def plot(tuning: Tuning, title: str = "") -> Figure:
    """Relative accuracy over the budget, with its lower bound, the target, and the budget that was found.

    Returns:
        A matplotlib figure that no global state knows of.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    tried = dict.fromkeys(trial.dial for trial in tuning.trials)
    for place, (dial, colour) in enumerate(zip(tried, COLOURS, strict=False)):
        own = sorted((trial for trial in tuning.trials if trial.dial == dial), key=lambda trial: trial.spent)
        axes.errorbar(
            [100 * trial.spent * 1.015**place for trial in own],  # a little apart, so that no bound hides another
            [100 * trial.relative for trial in own],
            yerr=[[100 * (trial.relative - trial.bound) for trial in own], [0.0] * len(own)],
            label=dial, color=colour, marker="o", markersize=4, linewidth=1.5, elinewidth=1, capsize=3,
        )  # fmt: skip
    axes.axhline(100 * tuning.target, color="#333333", linestyle="--", linewidth=1, label=f"target {tuning.target:g}")
    found = "only all tokens"
    if tuning.best is not None:
        found = f"{tuning.best.method} at keep {keep_label(tuning.best.keep)}"
        axes.plot(
            100 * tuning.best.spent, 100 * tuning.best.relative,
            marker="o", markersize=12, markerfacecolor="none", color="#333333", linestyle="none", label="found",
        )  # fmt: skip
    ticks = sorted({round(100 * trial.spent, 1) for trial in tuning.trials})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("visual tokens spent per question, %" if not tuning.plain else "visual tokens kept, %")
    axes.set_ylabel("of the accuracy with all tokens, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    axes.set_title(f"{title or f'n = {tuning.questions}'}: {found}", fontsize=10, loc="left")
    return figure


def save(tuning: Tuning, out: Path, title: str = "") -> list[Path]:
    """Writes ``tune.json`` and, where matplotlib is installed, ``tune.png``. Returns the files written."""
    files = [out / "tune.json"]
    files[0].write_text(json.dumps(tuning.as_dict(), indent=2) + "\n", encoding="utf-8")
    try:
        figure = plot(tuning, title)
    except ModuleNotFoundError:  # the plot is an extra; the figures are in the JSON
        return files
    files.append(out / "tune.png")
    figure.savefig(files[1], dpi=150)
    return files
