"""From answers to figures: accuracy per group of questions with 95 % intervals, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from foveate.evaluation.blind import NAME as BLIND
from foveate.evaluation.cropped import Spelled, is_cropped
from foveate.evaluation.drawn import World
from foveate.evaluation.metrics import EXACT, Metric
from foveate.evaluation.over_budget import MEANING, marked
from foveate.evaluation.runner import ALL, Row
from foveate.evaluation.statistics import (
    Design,
    Difference,
    Estimate,
    bootstrap,
    combine,
    holm,
    paired_difference,
    wilson,
)
from foveate.keep import keep_label
from foveate.resizing import NAME as RESIZE


@dataclass(frozen=True)
class Stratum:
    """Questions that count as one proportion.

    Args:
        name: unique within its group.
        holds: whether an item belongs.
        weight: of its proportion in the group's mean.
    """

    name: str
    holds: Callable[[Any], bool]
    weight: float = 1.0


@dataclass(frozen=True)
class Group:
    """What one figure is about: the weighted mean over its strata; strata without questions are left out."""

    name: str
    strata: tuple[Stratum, ...]

    def within(self, name: str, holds: Callable[[Any], bool]) -> Group:
        """The same figure over part of the items."""

        def both(stratum: Stratum) -> Callable[[Any], bool]:
            return lambda item: stratum.holds(item) and holds(item)

        return Group(name, tuple(Stratum(part.name, both(part), part.weight) for part in self.strata))

    def stratum_of(self, item: Any) -> Stratum | None:
        """The first stratum an item belongs to."""
        return next((stratum for stratum in self.strata if stratum.holds(item)), None)


@dataclass(frozen=True)
class Cell:
    """One figure of the table: a method at a budget on a group."""

    method: str
    keep: float | int
    group: str
    estimate: Estimate
    relative: float
    """Accuracy over that of all tokens; NaN where that is 0 or missing."""
    extras: Mapping[str, float] = field(default_factory=dict)
    """The metric's further figures, by name."""


@dataclass(frozen=True)
class Pair:
    """Two runs compared on the same questions of a group.

    Args:
        first, second: methods.
        keep: that of both, unless the second is all tokens.
        group: of questions.
        difference: first minus second, and its p-value alone.
        p_corrected: the p-value by Holm's correction for all comparisons of the first method on that group, at every
            budget.
    """

    first: str
    second: str
    keep: float | int
    group: str
    difference: Difference
    p_corrected: float = math.nan


@dataclass(frozen=True)
class Run:
    """What a method at a budget sent and took: means over its answers, tokens and milliseconds; ``encoded`` are the
    patch tokens that the vision tower encoded. Where the time goes are medians, None where it was not measured.
    ``over_budget`` counts answers, see ``runner.Row``."""

    method: str
    keep: float | int
    kept: float
    total: float
    latency_ms: float
    count: int
    encoded: float
    encoder_ms: float | None = None
    selection_ms: float | None = None
    prefill_ms: float | None = None
    over_budget: int = 0

    @property
    def title(self) -> str:
        """What tables call it: see ``method_title``; behind it stands where it exceeds its budget."""
        return marked(method_title(self.method), self.over_budget, self.count)

    @property
    def share_encoded(self) -> float:
        """Of the patch tokens there were, the part that was encoded."""
        return self.encoded / self.total

    def milliseconds(self, stage: Stage) -> float | None:
        """Of a stage, the median."""
        found: float | None = getattr(self, f"{stage}_ms")
        return found


Stage = Literal["encoder", "selection", "prefill"]
STAGES: tuple[Stage, ...] = get_args(Stage)

NOTE = (
    "accuracy: the metric's figure, with 95 % intervals: {intervals}. "
    "paired: first minus second on the same questions, 95 % bootstrap over pictures; p_value: two-sided, {test}; "
    "p_corrected: Holm's correction for all comparisons of the first method on that group. latency_ms: from picture to "
    "answer, vision tower included, per question; questions asked as one batch share its time. encoder_ms, "
    "selection_ms, prefill_ms: of it, medians: the vision tower and what reads it; choosing and shortening; from there "
    "to the logits of the first token. encoded: patch tokens that the vision "
    "tower encoded. over_budget: answers of resize that exceed the budget: {meaning}. "
    "not guessed: questions that are not answered rightly without the picture. group A: "
    "what all tokens answer rightly, and the picture made smaller to the same budget does not. resize_in_same_time: "
    "what smaller pictures reach in the milliseconds of that run, on the line through their own runs and all tokens'."
)
WILSON = "Wilson's of proportions, combined by variance recovery for means of groups"
BOOTSTRAP = "percentiles of 2000 bootstrap samples of pictures; where these are all alike, Wilson's of so many pictures"
BOTH = "percentiles of 2000 bootstrap samples of pictures, or Wilson's where it is wider"


@dataclass(frozen=True)
class Report:
    """All figures of an evaluation."""

    runs: tuple[Run, ...]
    groups: tuple[str, ...]
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    metric: Metric = EXACT
    intervals: str = WILSON

    def cell(self, method: str, keep: float | int, group: str) -> Cell:
        """One figure. Raises KeyError when there is none."""
        for cell in self.cells:
            if (cell.method, repr(cell.keep), cell.group) == (method, repr(keep), group):
                return cell
        raise KeyError(f"no figure for {method} at keep {keep} on {group}")

    @property
    def cropped(self) -> bool:
        """Whether some run left crops out."""
        return any(is_cropped(run.method) for run in self.runs)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where the time goes, as far as any run says."""
        return tuple(name for name in STAGES if any(run.milliseconds(name) is not None for run in self.runs))

    @property
    def resized(self) -> bool:
        """Whether pictures were made smaller in some runs."""
        return any(run.method == RESIZE for run in self.runs)

    def run(self, method: str, keep: float | int) -> Run:
        """One run, that with all tokens at any budget. Raises KeyError when there is none."""
        for run in self.runs:
            if run.method == method and (method == ALL or repr(run.keep) == repr(keep)):
                return run
        raise KeyError(f"{method} was not run at keep {keep}")

    @property
    def legend(self) -> str:
        """What stands below tables in which downsampling exceeds a budget: at which, how often, and with how many
        tokens; nothing where none does."""
        over = [run for run in self.runs if run.over_budget]
        if not over:
            return ""
        text = f"over budget: {MEANING}. " + "; ".join(
            f"{run.method} at {keep_label(run.keep)}: {run.over_budget} of {run.count} questions, "
            f"{run.kept:.1f} of {run.total:.1f} tokens on average"
            for run in over
        )
        if any(run.kept == run.total for run in over):
            text += (
                f". Where it sends all of them, no smaller size has fewer tokens: {RESIZE} is all tokens there, and "
                "leaves group A no question"
            )
        return f"{text}."

    def resized_in_time_of(self, run: Run, group: str) -> float:
        """What downsampling reaches on a group in the time that another run takes per question: read off the line
        through its own runs and that with all tokens, accuracy over milliseconds.

        NaN where no downsampling was run, or none took less or more; of downsampling itself, and of all tokens.
        """
        if not self.resized or run.method in (RESIZE, ALL, BLIND) or group == GROUP_A:
            return math.nan
        points = sorted(
            (one.latency_ms, self.cell(one.method, one.keep, group).estimate.value)
            for one in self.runs
            if one.method in (RESIZE, ALL)
        )
        times, values = (np.array(side) for side in zip(*points, strict=True))
        return float(np.interp(run.latency_ms, times, values, left=math.nan, right=math.nan))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        test = "exact McNemar" if self.metric.binary else "methods swapped picture by picture at random, 5000 times"
        return {
            "metric": self.metric.name,
            "runs": [
                {**asdict(run), **({"resize_in_same_time": self._in_same_time(run)} if self.resized else {})}
                for run in self.runs
            ],
            "accuracy": [
                {
                    "method": cell.method,
                    "keep": cell.keep,
                    "group": cell.group,
                    **{name: _number(value) for name, value in asdict(cell.estimate).items()},
                    "relative": _number(cell.relative),
                    **({"extras": dict(cell.extras)} if cell.extras else {}),
                }
                for cell in self.cells
            ],
            "paired": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "keep": pair.keep,
                    "group": pair.group,
                    **asdict(pair.difference),
                    "p_corrected": _number(pair.p_corrected),
                }
                for pair in self.pairs
            ],
            "note": NOTE.format(intervals=self.intervals, test=test, meaning=MEANING),
        }

    def _in_same_time(self, run: Run) -> dict[str, float | None]:
        return {group: _number(self.resized_in_time_of(run, group)) for group in self.groups}


TITLES = {"pooled": "per question", "overall": "mean of kinds", "unguessed": "not guessed", "group A": "group A"}
UNGUESSED, GROUP_A = "unguessed", "group A"
RIGHT = 0.5
"""An answer that is worth more than this counts as right where right and wrong ones are told apart."""


def group_title(name: str) -> str:
    """What tables and plots call a group whose name says less."""
    return TITLES.get(name, name)


def method_title(name: str) -> str:
    """What tables call a method: that of the run with all tokens is no name, and crops stand behind."""
    if is_cropped(name):
        return Spelled.read(name).title
    return {ALL: "all tokens", BLIND: "no picture"}.get(name, name)


def world_groups(world: World) -> tuple[Group, ...]:
    """The figures of a drawn world's questions.

    ``overall`` is the mean over the core kinds, each counting alike; ``pooled`` counts each of their questions alike,
    so that kinds asked most often weigh most. ``sparse`` and ``clutter`` are ``overall`` in part of the pictures.
    ``small`` and ``large`` pool the kinds that tell them apart, by the size of what is asked about. Every kind stands
    by itself too.
    """

    def kind(name: str) -> tuple[Stratum, ...]:
        if name not in world.halves:
            return (Stratum(name, lambda item: item.kind == name),)
        answers = world.halves[name]
        return tuple(half(name, answer, 1 / len(answers)) for answer in answers)

    def half(name: str, answer: str, weight: float) -> Stratum:
        return Stratum(f"{name} {answer}", lambda item: item.kind == name and item.answers[0] == answer, weight)

    overall = Group("overall", tuple(stratum for name in world.core for stratum in kind(name)))
    sized = Group("sized", (Stratum("sized", lambda item: item.kind in world.sized),))
    groups = [
        overall,
        Group("pooled", (Stratum("pooled", lambda item: item.kind in world.core),)),
        overall.within("sparse", lambda item: not item.clutter),
        overall.within("clutter", lambda item: item.clutter),
        sized.within("small", lambda item: item.size == "small"),
        sized.within("large", lambda item: item.size == "large"),
        sized.within("small in clutter", lambda item: item.size == "small" and item.clutter),
    ]
    for name in (*world.core, *(name for name in world.kinds if name not in world.core)):
        strata = kind(name)
        groups.append(Group(name, strata))
        groups += [Group(one.name, (one,)) for one in strata if len(strata) > 1]
    return tuple(groups)


def salience_groups(items: Sequence[Any], salience: Mapping[tuple[str, str], float]) -> tuple[Group, ...]:
    """Questions of things in thirds: those that saliency ranks best, and those it ranks worst.

    Args:
        items: questions of the scenes suite.
        salience: ROC-AUC of saliency by (image, question), see ``analysis.read_salience``.

    Raises:
        ValueError: fewer than three questions have one.
    """

    def of(item: Any) -> float:
        return salience.get((item.image, item.question), math.nan) if _asks_of_a_thing(item) else math.nan

    known = sorted(value for item in items if not math.isnan(value := of(item)))
    if len(known) < 3:
        raise ValueError("the analysis is of other questions: give it the same --count, --seed and --split")
    low, high = known[len(known) // 3 - 1], known[-(len(known) // 3)]
    return (
        Group("salient", (Stratum("salient", lambda item: of(item) >= high),)),
        Group("not salient", (Stratum("not salient", lambda item: of(item) <= low),)),
    )


def _asks_of_a_thing(item: Any) -> bool:
    return item.kind in ("attribute", "reading") or (item.kind == "presence" and item.answers[0] == "yes")


def plain_groups(items: Sequence[Any]) -> tuple[Group, ...]:
    """All questions, and those of each of the items' own groups, if there are several."""
    names = list(dict.fromkeys(item.group for item in items))
    whole = Group("all", (Stratum("all", lambda item: True),))

    def within(name: str) -> Group:
        return Group(name, (Stratum(name, lambda item: item.group == name),))

    return (whole, *(within(name) for name in names if len(names) > 1 and name not in ("", "all")))


PAIRED_GROUPS = ("overall", "pooled", "small in clutter")
"""Of every drawn world."""


def summarise(
    rows: Sequence[Row],
    items: Sequence[Any],
    groups: Sequence[Group],
    pairs: Iterable[tuple[str, str]] = (),
    paired_groups: Sequence[str] = (),
    metric: Metric = EXACT,
    bootstrapped: bool = False,
) -> Report:
    """Works out every figure.

    Args:
        rows: answers, as ``evaluate`` returned them.
        items: what was asked; a row's ``item`` is an item's ``id``, else its place.
        groups: what to report accuracy on; those without any question are left out.
        pairs: methods to compare with each other at every budget both ran at; each method is compared with all tokens
            besides.
        paired_groups: names of the groups to compare on.
        metric: what an answer is worth.
        bootstrapped: whether intervals come from resampled pictures rather than from Wilson's formula alone, which is
            for metrics that are proportions.
    """
    assert bootstrapped or metric.binary
    known = {str(getattr(item, "id", place)): item for place, item in enumerate(items)}
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.method, repr(row.keep)), []).append(row)
    groups = [group for group in groups if any(group.stratum_of(item) for item in items)]
    groups += _unguessed(runs, known, metric)

    cells: list[Cell] = []
    for group in groups:
        figures = {
            run: figure_of(_grouped(answered, known, group, metric), group, metric, bootstrapped)
            for run, answered in runs.items()
        }
        whole = figures.get((ALL, "1.0"))
        for run, (estimate, extras) in figures.items():
            relative = estimate.value / whole[0].value if whole and whole[0].count and whole[0].value else math.nan
            cells.append(Cell(runs[run][0].method, runs[run][0].keep, group.name, estimate, relative, extras))

    of_downsampling = _group_a(runs, known, metric, bootstrapped)
    compared: list[Pair] = []
    wanted = list(pairs)
    for group in groups:
        if group.name not in paired_groups:
            continue
        for (method, keep), answered in runs.items():
            others = [second for first, second in wanted if first == method] + ([ALL] if method != ALL else [])
            for other in others:
                against = runs.get((other, "1.0" if other == ALL else keep))
                difference = _compare(answered, against, known, group, metric) if against else None
                if difference is not None:
                    compared.append(Pair(method, other, answered[0].keep, group.name, difference))

    return Report(
        tuple(_run(answered) for answered in runs.values()),
        (*(group.name for group in groups), *([GROUP_A] if of_downsampling else [])),
        (*cells, *of_downsampling),
        _corrected(compared),
        metric,
        (BOTH if metric.binary else BOOTSTRAP) if bootstrapped else WILSON,
    )


def _right(rows: Iterable[Row], known: Mapping[str, Any], metric: Metric) -> set[str]:
    """The questions that a run answered rightly."""
    return {row.item for row in rows if metric.score(row.answer, known[row.item].answers) > RIGHT}


def _unguessed(runs: Mapping[tuple[str, str], Sequence[Row]], known: Mapping[str, Any], metric: Metric) -> list[Group]:
    """The questions that are not answered rightly without their picture, where that was tried."""
    blind = next((rows for (method, _), rows in runs.items() if method == BLIND), None)
    if blind is None:
        return []
    guessed = _right(blind, known, metric)
    return [_these(UNGUESSED, (known[row.item] for row in blind if row.item not in guessed))]


def _group_a(
    runs: Mapping[tuple[str, str], Sequence[Row]], known: dict[str, Any], metric: Metric, bootstrapped: bool
) -> list[Cell]:
    """Accuracy at every budget on what all tokens answer rightly, and a picture made smaller to that budget does not
    (VTC-Bench): there a method shows what downsampling cannot do. Runs at other budgets have no figure. Where a picture
    cannot be made so small, it is the one of the fewest tokens, more than the methods have, that must get it wrong."""
    if (ALL, "1.0") not in runs or not any(method == RESIZE for method, _ in runs):
        return []
    whole, cells = _right(runs[ALL, "1.0"], known, metric), []
    for (method, keep), rows in runs.items():
        small = runs.get((RESIZE, keep)) if method != RESIZE else None
        failed = whole & {row.item for row in small} - _right(small, known, metric) if small else set()
        group = _these(GROUP_A, (known[item] for item in failed))
        estimate, extras = figure_of(_grouped(rows, known, group, metric), group, metric, bootstrapped)
        cells.append(Cell(method, rows[0].keep, GROUP_A, estimate, estimate.value, extras))
    return cells


def _these(name: str, items: Iterable[Any]) -> Group:
    """A group of certain questions."""
    ids = {id(item) for item in items}
    return Group(name, (Stratum(name, lambda item: id(item) in ids),))


def _corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    families: dict[tuple[str, str], list[int]] = {}
    for place, pair in enumerate(pairs):
        families.setdefault((pair.first, pair.group), []).append(place)
    told = {
        place: p_value
        for places in families.values()
        for place, p_value in zip(places, holm([pairs[n].difference.p_value for n in places]), strict=True)
    }
    return tuple(replace(pair, p_corrected=told[place]) for place, pair in enumerate(pairs))


def _run(rows: Sequence[Row]) -> Run:
    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(rows)

    def median(name: str) -> float | None:
        known = [value for row in rows if (value := getattr(row, name)) is not None]
        return float(np.median(known)) if known else None

    return Run(
        rows[0].method,
        rows[0].keep,
        mean(row.kept for row in rows),
        mean(row.total for row in rows),
        mean(row.latency_ms for row in rows),
        len(rows),
        mean(row.tokens_encoded for row in rows),
        **{name: median(name) for name in (f"{stage}_ms" for stage in STAGES)},
        over_budget=sum(row.over_budget for row in rows),
    )


@dataclass(frozen=True)
class Grouped:
    """A run's answers to the questions of a group: by question, (tallies, picture, stratum)."""

    answers: dict[str, tuple[np.ndarray, str, str]]

    def tallies(self, of: Iterable[str] | None = None) -> np.ndarray:
        return np.stack([self.answers[item][0] for item in (self.answers if of is None else of)])

    def design(self, group: Group, metric: Metric, of: Iterable[str] | None = None) -> Design:
        answers = [self.answers[item] for item in (self.answers if of is None else of)]
        weights = {part.name: part.weight for part in group.strata}
        return Design([picture for _, picture, _ in answers], metric.value, [part for *_, part in answers], weights)


def _grouped(rows: Sequence[Row], known: dict[str, Any], group: Group, metric: Metric) -> Grouped:
    found = {}
    for row in rows:
        item = known[row.item]
        stratum = group.stratum_of(item)
        if stratum is not None:
            found[row.item] = (metric.tallies([(row.answer, item.answers)])[0], item.image, stratum.name)
    return Grouped(found)


def figure_of(
    grouped: Grouped, group: Group, metric: Metric, bootstrapped: bool
) -> tuple[Estimate, Mapping[str, float]]:
    """A group's figure of a run with its interval, and the metric's further ones; see ``summarise``."""
    if not grouped.answers:
        return Estimate(math.nan, 0.0, 1.0, 0), {}
    tallies = grouped.tallies()
    totals = tallies.sum(0)
    extras = {name: float(value(totals)) for name, value in metric.extras.items()}
    if bootstrapped:
        design = grouped.design(group, metric)
        found = _never_sure(bootstrap(design, tallies), design)
        if metric.binary:
            alone = wilson(found.value * found.count, found.count)
            found = replace(found, low=min(found.low, alone.low), high=max(found.high, alone.high))
        return found, extras
    scores: dict[str, list[float]] = {stratum.name: [] for stratum in group.strata}
    for one, _, stratum in grouped.answers.values():
        scores[stratum].append(one[0])
    parts = [wilson(round(sum(answers)), len(answers)) for answers in scores.values()]
    return combine(parts, [stratum.weight for stratum in group.strata]), extras


def _compare(
    first: Sequence[Row], second: Sequence[Row], known: dict[str, Any], group: Group, metric: Metric
) -> Difference | None:
    one, two = (_grouped(rows, known, group, metric) for rows in (first, second))
    shared = [item for item in one.answers if item in two.answers]
    if not shared:
        return None
    design = one.design(group, metric, shared)
    return _never_sure(paired_difference(one.tallies(shared), two.tallies(shared), design), design, -1.0)


_Figure = TypeVar("_Figure", Estimate, Difference)


def _never_sure(found: _Figure, design: Design, least: float = 0.0) -> _Figure:
    """A figure whose interval has a width: where all pictures are alike, resampling them says nothing of how many
    others there may be, and Wilson's limit for none of so many does. ``least`` is the smallest figure there can be."""
    if found.high > found.low:
        return found
    others = wilson(0, len(set(design.pictures))).high
    return replace(found, low=max(least, found.value - others), high=min(1.0, found.value + others))


def _number(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value
