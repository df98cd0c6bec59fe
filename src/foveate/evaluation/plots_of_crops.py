"""The plot of an evaluation with crops for an axis: accuracy over what the vision tower encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveate.crops import Crops
from foveate.evaluation.cropped import Spelled, is_cropped
from foveate.evaluation.plots import COLOURS, finish, whole_of
from foveate.evaluation.report import Report, Run, method_title
from foveate.evaluation.runner import ALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {"both": "-", "random": "--", "text": ":", "saliency": "-."}
"""How the lines of crops are drawn that are chosen by one thing or the other."""
LABELS_APART = 4
"""Points of the axis that its labels keep apart."""


@dataclass(frozen=True)
class Line:
    """Runs of one method and budget, with as many crops as it may be, chosen in one way.

    Args:
        method: its name, without crops.
        keep: the budget, as text: ``1`` and ``1.0`` are equal numbers.
        way: the crops that are chosen in this way, of whatever amount.
    """

    method: str
    keep: str
    way: Crops


def over_crops(report: Report, groups: Sequence[str], title: str = "") -> Figure | None:
    """Accuracy over the part of the pictures' tokens that was encoded, a panel per group.

    A line is a method at a budget; with several methods, a line is a method, and there is a row of panels per budget.
    Its right end are all crops, where that was run too. Crops that were drawn by chance are dashed.

    Returns:
        A matplotlib figure that no global state knows of; None where no method was run under two choices of crops.
    """
    from matplotlib.figure import Figure

    lines = {line: runs for line, runs in _lines(report).items() if len(runs) > 1}
    groups = [name for name in groups if name in report.groups]
    if not lines or not groups:
        return None
    methods = list(dict.fromkeys(line.method for line in lines if line.method != ALL))
    keeps = list(dict.fromkeys(line.keep for line in lines if line.method != ALL))
    rows = [[keep] for keep in keeps] if len(methods) > 1 else [keeps]
    figure = Figure(figsize=(5.0 * len(groups) + 2.4, 0.6 + 3.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(groups), squeeze=False)
    named: dict[str, Any] = {}
    for shown, row in zip(rows, panels, strict=True):
        for name, axes in zip(groups, row, strict=True):
            own = {line: runs for line, runs in lines.items() if line.method == ALL or line.keep in shown}
            _draw(axes, report, name, own, methods, keeps)
            finish(axes, name, whole_of(report, name))
            if len(rows) > 1:
                axes.set_title(f"keep {shown[0]}", fontsize=10, loc="right")
            handles, labels = axes.get_legend_handles_labels()
            named |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in named}
    figure.legend(list(named.values()), list(named), loc="outside right center", frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def _lines(report: Report) -> dict[Line, list[Run]]:
    plain = {(run.method, repr(run.keep)): run for run in report.runs if not is_cropped(run.method)}
    lines: dict[Line, list[Run]] = {}
    for run in report.runs:
        if is_cropped(run.method):
            spelled = Spelled.read(run.method)
            if spelled.crops is None:
                continue
            way = Crops(by=spelled.crops.by, seed=spelled.crops.seed)
            lines.setdefault(Line(spelled.method, repr(run.keep), way), []).append(run)
    for line, runs in lines.items():
        if (line.method, line.keep) in plain:
            runs.append(plain[line.method, line.keep])
        runs.sort(key=lambda run: run.share_encoded)
    return lines


def _draw(
    axes: Axes,
    report: Report,
    group: str,
    lines: Mapping[Line, Sequence[Run]],
    methods: Sequence[str],
    keeps: Sequence[str],
) -> None:
    from matplotlib import colormaps

    cycle = colormaps["tab10"].colors  # type: ignore[attr-defined]
    whole = whole_of(report, group)
    if whole is not None:
        axes.axhspan(100 * whole.low, 100 * whole.high, color="#333333", alpha=0.08, linewidth=0)
        axes.axhline(100 * whole.value, color="#333333", linewidth=0.8, label="all tokens of all crops", zorder=1)
    ticks: set[float] = set()
    for place, (line, runs) in enumerate(lines.items()):
        if line.method == ALL:
            colour, label = "#333333", method_title(ALL)
        elif len(methods) > 1:
            known = COLOURS.get(line.method)
            colour, label = known or cycle[methods.index(line.method) % len(cycle)], line.method
        else:
            colour, label = cycle[keeps.index(line.keep) % len(cycle)], f"{line.method}, keep {line.keep}"
        way = str(line.way).partition(":")[2]
        estimates = [report.cell(run.method, run.keep, group).estimate for run in runs]
        shares = [100 * run.share_encoded for run in runs]
        ticks |= {float(round(share)) for share in shares}
        axes.errorbar(
            # A little apart, so that the intervals of two lines do not hide each other.
            [share + 0.5 * (place - (len(lines) - 1) / 2) for share in shares],
            [100 * one.value for one in estimates],
            yerr=[
                [100 * (one.value - one.low) for one in estimates],
                [100 * (one.high - one.value) for one in estimates],
            ],
            label=f"{label}, {way}" if way else label, color=colour, linestyle=STYLES[line.way.by], marker="o",
            markersize=4, linewidth=1.6, elinewidth=1, capsize=2,
        )  # fmt: skip
    apart: list[float] = []
    for tick in sorted(ticks):
        if not apart or tick - apart[-1] >= LABELS_APART:
            apart.append(tick)
    axes.set_xticks(apart, [f"{tick:g}" for tick in apart])
    axes.set_xlabel("encoded by the vision tower, % of the tokens")
    axes.set_ylabel("accuracy, %")
