"""What an evaluation leaves on disk: one JSON, tables in Markdown, and one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.evaluation.report import Report
from foveate.evaluation.runner import ALL

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
            zorder=3 if method in ("adafv", "cover") else 2,
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


TITLES = {"pooled": "per question", "overall": "mean of kinds"}
"""What tables call groups whose names say less."""


def tables(report: Report, groups: Sequence[str], title: str = "") -> str:
    """The figures as Markdown: the runs, the best first at every budget, and the comparisons.

    Args:
        report: of an evaluation.
        groups: columns; the first is the one that ranks, and has its interval beside it.
        title: heading.
    """
    groups = [name for name in groups if name in report.groups]
    extras = list(report.metric.extras)
    heads = ["method", "keep", "tokens", *(TITLES.get(name, name) for name in groups), *extras, "of all tokens", "ms"]
    lines = [f"# {title}", ""] if title else []
    lines += ["Accuracy in %, with 95 % intervals; tokens and milliseconds per question.", ""]
    lines += [_line(heads), _line(["---"] * len(heads))]
    order = {repr(run.keep): place for place, run in enumerate(report.runs)}

    def rank(place: int) -> tuple[int, float]:
        run = report.runs[place]
        value = report.cell(run.method, run.keep, groups[0]).estimate.value
        return (-1 if run.method == ALL else min(n for k, n in order.items() if k == repr(run.keep)), -value)

    for place in sorted(range(len(report.runs)), key=rank):
        run = report.runs[place]
        cells = [report.cell(run.method, run.keep, name) for name in groups]
        shown = [f"{100 * cell.estimate.value:.1f}" for cell in cells]
        first = cells[0].estimate
        shown[0] += f" [{100 * first.low:.1f}, {100 * first.high:.1f}]"
        name = "all tokens" if run.method == ALL else f"`{run.method}`"
        more = [f"{100 * cells[0].extras[extra]:.1f}" for extra in extras]
        relative = "" if run.method == ALL else f"{100 * cells[0].relative:.1f}"
        lines.append(
            _line([name, f"{run.keep:g}", f"{run.kept:.0f}", *shown, *more, relative, f"{run.latency_ms:.0f}"])
        )
    if not report.pairs:
        return "\n".join(lines) + "\n"
    heads = ["group", "keep", "first", "second", "difference", "won : lost", "p", "p, Holm"]
    lines += [
        "",
        "Paired on the same questions, points; Holm's correction over the comparisons of the first method.",
        "",
    ]
    lines += [_line(heads), _line(["---"] * len(heads))]
    for pair in report.pairs:
        if pair.group != groups[0]:
            continue  # the others stand in report.json
        one = pair.difference
        difference = f"{100 * one.value:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        won = f"{one.first_only} : {one.second_only}"
        lines.append(
            _line([
                TITLES.get(pair.group, pair.group), f"{pair.keep:g}", f"`{pair.first}`", f"`{pair.second}`", difference,
                won, f"{one.p_value:.2g}", f"{pair.p_corrected:.2g}",
            ])
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def save(report: Report, out: Path, plotted: Sequence[str], columns: Sequence[str], title: str = "") -> list[Path]:
    """Writes ``report.json``, ``report.md`` and, where matplotlib is installed, ``accuracy.png`` into a folder.

    Args:
        report: of an evaluation.
        out: the folder.
        plotted: groups that have a panel.
        columns: groups that have a column.
        title: of the plot and the tables.

    Returns:
        The files written.
    """
    files = [out / "report.json", out / "report.md"]
    files[0].write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    files[1].write_text(tables(report, columns, title), encoding="utf-8")
    try:
        figure = plot(report, plotted, title)
    except ModuleNotFoundError:  # the plot is an extra; the figures are in the JSON
        return files
    files.append(out / "accuracy.png")
    figure.savefig(files[2], dpi=150)
    return files
