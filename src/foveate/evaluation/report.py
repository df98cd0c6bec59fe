"""From answers to figures: accuracy per group of questions with 95 % intervals, paired tests, one JSON and one plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.evaluation.metrics import EXACT, Metric
from foveate.evaluation.runner import ALL, Row
from foveate.evaluation.statistics import Design, Difference, Estimate, bootstrap, combine, paired_difference, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    """Two runs compared on the same questions of a group; ``keep`` is that of both, unless the second is all tokens."""

    first: str
    second: str
    keep: float | int
    group: str
    difference: Difference


@dataclass(frozen=True)
class Run:
    """What a method at a budget sent and took: means over its answers, tokens and milliseconds."""

    method: str
    keep: float | int
    kept: float
    total: float
    latency_ms: float
    count: int


NOTE = (
    "accuracy: the metric's figure, with 95 % intervals: {intervals}. "
    "paired: first minus second on the same questions, 95 % bootstrap over pictures; p_value: two-sided, {test}, not "
    "corrected for the number of comparisons. latency_ms: from picture to answer, vision tower included, per question; "
    "questions asked as one batch share its time."
)
WILSON = "Wilson's of proportions, combined by variance recovery for means of groups"
BOOTSTRAP = "percentiles of 2000 bootstrap samples of pictures"


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

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        test = "exact McNemar" if self.metric.binary else "methods swapped picture by picture at random, 5000 times"
        return {
            "metric": self.metric.name,
            "runs": [asdict(run) for run in self.runs],
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
                }
                for pair in self.pairs
            ],
            "note": NOTE.format(intervals=self.intervals, test=test),
        }


CORE = ("presence", "attribute", "reading", "biggest")
"""Kinds of scenes questions that the bundled model answers well."""


def scenes_groups() -> tuple[Group, ...]:
    """The figures of the scenes suite.

    ``overall`` is the mean over presence (yes and no weighted equally), attribute, reading and biggest, each kind
    counting alike; ``pooled`` counts each of their questions alike, so that presence, asked most often, weighs most.
    ``small`` and ``large`` pool presence (yes), attribute and reading by the size of what is asked about. Biggest is
    asked in sparse pictures only, so ``clutter`` is the mean over the other three.
    """

    def kind(name: str, weight: float = 1.0) -> Stratum:
        return Stratum(name, lambda item: item.kind == name, weight)

    def presence(answer: str, weight: float) -> Stratum:
        return Stratum(
            f"presence {answer}",
            lambda item: item.kind == "presence" and item.answers[0] == answer,
            weight,
        )

    yes, no = presence("yes", 0.5), presence("no", 0.5)
    overall = Group("overall", (yes, no, kind("attribute"), kind("reading"), kind("biggest")))
    sized = Group("sized", (Stratum("sized", lambda item: _asks_of_a_thing(item)),))
    return (
        overall,
        Group("pooled", (Stratum("pooled", lambda item: item.kind in CORE),)),
        overall.within("sparse", lambda item: not item.clutter),
        overall.within("clutter", lambda item: item.clutter),
        sized.within("small", lambda item: item.size == "small"),
        sized.within("large", lambda item: item.size == "large"),
        sized.within("small in clutter", lambda item: item.size == "small" and item.clutter),
        Group("presence", (yes, no)),
        Group("presence yes", (yes,)),
        Group("presence no", (no,)),
        *(
            Group(name, (kind(name),))
            for name in ("attribute", "reading", "biggest", "counting", "position", "relation")
        ),
    )


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


SCENES_PAIRED_GROUPS = ("overall", "pooled", "small in clutter")


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
        bootstrapped: whether intervals come from resampled pictures rather than from Wilson's formula, which is for
            metrics that are proportions.
    """
    assert bootstrapped or metric.binary
    known = {str(getattr(item, "id", place)): item for place, item in enumerate(items)}
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.method, repr(row.keep)), []).append(row)
    groups = [group for group in groups if any(group.stratum_of(item) for item in items)]

    cells: list[Cell] = []
    for group in groups:
        figures = {
            run: _estimate(_grouped(answered, known, group, metric), group, metric, bootstrapped)
            for run, answered in runs.items()
        }
        whole = figures.get((ALL, "1.0"))
        for run, (estimate, extras) in figures.items():
            relative = estimate.value / whole[0].value if whole and whole[0].count and whole[0].value else math.nan
            cells.append(Cell(runs[run][0].method, runs[run][0].keep, group.name, estimate, relative, extras))

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
        tuple(group.name for group in groups),
        tuple(cells),
        tuple(compared),
        metric,
        BOOTSTRAP if bootstrapped else WILSON,
    )


def _run(rows: Sequence[Row]) -> Run:
    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(rows)

    return Run(
        rows[0].method,
        rows[0].keep,
        mean(row.kept for row in rows),
        mean(row.total for row in rows),
        mean(row.latency_ms for row in rows),
        len(rows),
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


def _estimate(
    grouped: Grouped, group: Group, metric: Metric, bootstrapped: bool
) -> tuple[Estimate, Mapping[str, float]]:
    if not grouped.answers:
        return Estimate(math.nan, 0.0, 1.0, 0), {}
    tallies = grouped.tallies()
    totals = tallies.sum(0)
    extras = {name: float(value(totals)) for name, value in metric.extras.items()}
    if bootstrapped:
        return bootstrap(grouped.design(group, metric), tallies), extras
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
    return paired_difference(one.tallies(shared), two.tallies(shared), one.design(group, metric, shared))


def _number(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


COLOURS = {
    "adafv": "#d1495b",
    "text": "#2e86ab",
    "saliency": "#edae49",
    "fixed-mix": "#66a182",
    "random": "#8d96a3",
    "uniform": "#4a4e69",
}
"""Line colours of the methods a suite is usually run with; others get matplotlib's."""


def plot(report: Report, groups: Sequence[str], title: str = "") -> Figure:
    """Accuracy over kept tokens, one panel per group, one line per method, all tokens as a dashed line.

    Returns:
        A matplotlib figure that no global state knows of; save it with ``savefig``.
    """
    from matplotlib.figure import Figure

    groups = [name for name in groups if name in report.groups]
    figure = Figure(figsize=(5.0 * max(1, len(groups)) + 1.2, 4.2), layout="constrained")
    for number, name in enumerate(groups):
        _draw_panel(figure.add_subplot(1, len(groups), number + 1), report, name)
    if groups:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9
        )
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def _draw_panel(axes: Axes, report: Report, group: str) -> None:
    methods = [method for method in dict.fromkeys(run.method for run in report.runs) if method != ALL]
    ticks: set[float] = set()
    for place, method in enumerate(methods):
        points = []
        for run in report.runs:
            if run.method == method:
                share = 100 * run.kept / run.total
                ticks.add(round(share, 1))
                # A little apart, so that the intervals of two methods do not hide each other.
                points.append(
                    (share * 1.02 ** (place - len(methods) / 2), report.cell(method, run.keep, group).estimate)
                )
        points.sort(key=lambda point: point[0])
        axes.errorbar(
            [share for share, _ in points],
            [100 * estimate.value for _, estimate in points],
            yerr=[
                [100 * (estimate.value - estimate.low) for _, estimate in points],
                [100 * (estimate.high - estimate.value) for _, estimate in points],
            ],
            label=method, color=COLOURS.get(method), marker="o", markersize=4, linewidth=1.8, elinewidth=1, capsize=2,
            zorder=3 if method == "adafv" else 2,
        )  # fmt: skip
    whole = next((cell.estimate for cell in report.cells if cell.method == ALL and cell.group == group), None)
    if whole is not None and whole.count:
        axes.axhline(100 * whole.value, color="#333333", linestyle="--", linewidth=1, label="all tokens", zorder=1)
        axes.axhspan(100 * whole.low, 100 * whole.high, color="#333333", alpha=0.08, linewidth=0)
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        axes.xaxis.minorticks_off()
    axes.set_title(f"{group}, n = {whole.count}" if whole else group, fontsize=10, loc="left")
    axes.set_xlabel("visual tokens kept, %")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(report: Report, out: Path, plotted: Sequence[str], title: str = "") -> list[Path]:
    """Writes ``report.json`` and, where matplotlib is installed, ``accuracy.png`` into a folder.

    Returns:
        The files written.
    """
    import json

    files = [out / "report.json"]
    files[0].write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    try:
        figure = plot(report, plotted, title)
    except ModuleNotFoundError:  # the plot is an extra; the figures are in the JSON
        return files
    files.append(out / "accuracy.png")
    figure.savefig(files[1], dpi=150)
    return files
