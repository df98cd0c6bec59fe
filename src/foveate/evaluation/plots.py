"""The plot of an evaluation: accuracy over what is kept, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foveate.evaluation.blind import NAME as BLIND
from foveate.evaluation.report import Report, group_title, method_title
from foveate.evaluation.runner import ALL
from foveate.evaluation.statistics import Estimate
from foveate.keep import keep_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "adafv": "#d1495b",
    "cover": "#7b2cbf",
    "text": "#2e86ab",
    "saliency": "#edae49",
    "fixed-mix": "#66a182",
    "random": "#8d96a3",
    "uniform": "#4a4e69",
}
"""Line colours of the methods a suite is usually run with; others get matplotlib's."""

WIDEN = 1.25
"""How far the axis of budgets goes past the smallest and the largest, as a factor."""
APART = 1.15
"""Budgets on the axis that are nearer than this factor share one label, which would else be printed over each other."""
MANY = 10
"""More methods than this are drawn below each other: so many lines and colours cannot be told apart."""


def plot(report: Report, groups: Sequence[str], title: str = "") -> Figure:
    """Accuracy over kept tokens, one panel per group, one line per method, all tokens as a dashed line.

    Many methods have a row each instead, the best first, with a point for every budget.

    Returns:
        A matplotlib figure that no global state knows of; save it with ``savefig``.
    """
    from matplotlib.figure import Figure

    groups = [name for name in groups if name in report.groups]
    methods = [method for method in dict.fromkeys(run.method for run in report.runs) if method not in (ALL, BLIND)]
    height = 4.2 if len(methods) <= MANY else 1.4 + 0.24 * len(methods)
    figure = Figure(figsize=(5.0 * max(1, len(groups)) + 1.2, height), layout="constrained")
    draw = _draw_panel if len(methods) <= MANY else _draw_rows
    for number, name in enumerate(groups):
        draw(figure.add_subplot(1, len(groups), number + 1), report, name, methods)
    if groups:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9
        )
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def _draw_panel(axes: Axes, report: Report, group: str, methods: Sequence[str]) -> None:
    ticks: set[float] = set()
    for place, method in enumerate(methods):
        points = []
        for run in report.runs:
            if run.method == method:
                share = 100 * run.kept / run.total
                ticks.add(round(share, 1))
                # A little apart, so that the intervals of two methods do not hide each other.
                points.append(
                    (share * 1.02 ** (place - (len(methods) - 1) / 2), report.cell(method, run.keep, group).estimate)
                )
        points.sort(key=lambda point: point[0])
        axes.errorbar(
            [share for share, _ in points],
            [100 * estimate.value for _, estimate in points],
            yerr=[
                [100 * (estimate.value - estimate.low) for _, estimate in points],
                [100 * (estimate.high - estimate.value) for _, estimate in points],
            ],
            label=_label(report, method), color=COLOURS.get(method), marker="o", markersize=4, linewidth=1.8,
            elinewidth=1, capsize=2, zorder=3 if method in ("adafv", "cover") else 2,
        )  # fmt: skip
    whole = whole_of(report, group)
    if whole is not None:
        axes.axhline(100 * whole.value, color="#333333", linestyle="--", linewidth=1, label="all tokens", zorder=1)
        axes.axhspan(100 * whole.low, 100 * whole.high, color="#333333", alpha=0.08, linewidth=0)
    if ticks:
        axes.set_xscale("log")
        labelled = _apart(ticks)
        axes.set_xticks(labelled, [f"{tick:g}" for tick in labelled])
        axes.xaxis.minorticks_off()
        low, high = axes.get_xlim()  # of one budget: its methods stand a little apart, not at the two ends of the axis
        axes.set_xlim(min(low, min(ticks) / WIDEN), max(high, max(ticks) * WIDEN))
    axes.set_xlabel("visual tokens kept, %")
    axes.set_ylabel("accuracy, %")
    finish(axes, group, whole)


def _apart(ticks: set[float]) -> list[float]:
    """Those that labels have room for, ascending."""
    found: list[float] = []
    for tick in sorted(ticks):
        if not found or tick >= APART * found[-1]:
            found.append(tick)
    return found


def _draw_rows(axes: Axes, report: Report, group: str, methods: Sequence[str]) -> None:
    from matplotlib import colormaps

    found = {(run.method, repr(run.keep)): report.cell(run.method, run.keep, group).estimate for run in report.runs}
    keeps = list(dict.fromkeys(repr(run.keep) for run in report.runs if run.method != ALL))

    def worth(method: str) -> float:
        values = [found[method, keep].value for keep in keeps if (method, keep) in found]
        return sum(values) / len(values)

    ranked = sorted(methods, key=worth)
    colours = colormaps["viridis"]
    for place, keep in enumerate(keeps):
        rows = [(row, found[method, keep]) for row, method in enumerate(ranked) if (method, keep) in found]
        axes.errorbar(
            [100 * one.value for _, one in rows],
            [row + 0.16 * (place - (len(keeps) - 1) / 2) for row, _ in rows],
            xerr=[
                [100 * (one.value - one.low) for _, one in rows],
                [100 * (one.high - one.value) for _, one in rows],
            ],
            label=f"keep {keep}", color=colours(0.85 * place / max(1, len(keeps) - 1)), marker="o", markersize=4,
            linestyle="", elinewidth=1,
        )  # fmt: skip
    whole = whole_of(report, group)
    if whole is not None:
        axes.axvline(100 * whole.value, color="#333333", linestyle="--", linewidth=1, label="all tokens", zorder=1)
        axes.axvspan(100 * whole.low, 100 * whole.high, color="#333333", alpha=0.08, linewidth=0)
    axes.set_yticks(range(len(ranked)), [_label(report, method) for method in ranked], fontsize=8)
    axes.set_ylim(-0.7, len(ranked) - 0.3)
    axes.set_xlabel("accuracy, %")
    finish(axes, group, whole)


def _label(report: Report, method: str) -> str:
    """A method's name, and at which of its budgets it exceeds them."""
    runs = [run for run in report.runs if run.method == method]
    over = [keep_label(run.keep) for run in runs if run.over_budget]
    if not over:
        return method_title(method)
    where = "" if len(over) == len(runs) else f" at {', '.join(over)}"
    return f"{method_title(method)} (over budget{where})"


def whole_of(report: Report, group: str) -> Estimate | None:
    """What all tokens reach."""
    cells = (cell.estimate for cell in report.cells if cell.method == ALL and cell.group == group)
    found = next(cells, None)
    return found if found is not None and found.count else None


def finish(axes: Axes, group: str, whole: Estimate | None) -> None:
    title = group_title(group)
    axes.set_title(f"{title}, n = {whole.count}" if whole else title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
