"""Accuracy over the time to the first token: an evaluation's figures beside a benchmark's, of one model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.benchmarks.prefill import Report, Result
from foveate.evaluation.plots import COLOURS
from foveate.evaluation.runner import ALL, SETTINGS_FILE, fingerprint
from foveate.evaluation.statistics import Estimate
from foveate.keep import keep_label
from foveate.resizing import NAME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = (("pooled", "small in clutter"), ("all",))
"""What is shown of the scenes, and of other suites."""
NAMES = {"pooled": "all questions", "all": "all questions"}
MARKERS = "os^Dv<>P"
"""By budget, the largest first."""


@dataclass(frozen=True)
class Accuracies:
    """What ``foveate eval`` found.

    Args:
        groups: names of what is shown, the first of them in tables.
        figures: by (method, budget as Python writes it, group).
    """

    groups: Sequence[str]
    figures: Mapping[tuple[str, str, str], Estimate]

    def of(self, result: Result, group: str) -> Estimate | None:
        """The accuracy of one way of answering; None of bounds and baselines, and of what was not evaluated."""
        cut = f"crops:amount={result.crops}:" if result.crops else ""
        names = {"stock": ALL, "foveate": f"{cut}{result.method}", "resize": NAME}
        keep = 1.0 if result.kind == "stock" else result.keep
        return self.figures.get((names.get(result.kind, ""), repr(keep), group))

    def as_dict(self, report: Report) -> list[dict[str, Any]]:
        """For JSON: of every result that has one."""
        return [
            {"kind": one.kind, "method": one.method, "keep": one.keep, "group": group, **vars(found)}
            for one in report.results
            for group in self.groups
            if (found := self.of(one, group)) is not None
        ]


def read(folder: Path, model: Any) -> Accuracies:
    """The figures of a results folder of ``foveate eval``, but those of downsampling that exceeded its budget.

    Args:
        folder: what was its ``--out``.
        model: what is measured.

    Raises:
        ValueError: no results there, or those of another model or of resized pictures.
    """
    try:
        settings, report = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (SETTINGS_FILE, "report.json")
        )
    except OSError as error:
        raise ValueError(f"{folder} holds no results of foveate eval: {error}") from None
    if settings["model"] != fingerprint(model):
        raise ValueError(f"the results in {folder} are of another model ({settings.get('model_name')})")
    if "pixels" in settings:
        raise ValueError(
            f"the results in {folder} are of pictures resized by pixels={settings['pixels']}, and times are measured "
            "without: evaluate without --pixels"
        )
    # Times are measured of pictures within the budget, or not at all.
    over = {(run["method"], repr(run["keep"])) for run in report["runs"] if run.get("over_budget")}
    figures = {
        (one["method"], repr(one["keep"]), one["group"]): Estimate(
            *(one[key] for key in ("value", "low", "high", "count"))
        )
        for one in report["accuracy"]
        if one["count"] and (one["method"], repr(one["keep"])) not in over
    }
    known = {group for *_, group in figures}
    groups = next(tuple(name for name in names if name in known) for names in GROUPS if names[0] in known)
    return Accuracies(groups, figures)


def plot(report: Report, accuracies: Accuracies, title: str, clock: str) -> Figure:
    """One panel per group: every method a line through its budgets, all tokens as a star.

    Args:
        report: times.
        accuracies: of the same model.
        title: above all.
        clock: what the times were taken by, for the axis.

    Returns:
        A matplotlib figure that no global state knows of; save it with ``savefig``.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    keeps = sorted((keep for keep in report.keeps if keep != 1.0), reverse=True)
    figure = Figure(figsize=(5.2 * len(accuracies.groups) + 1.8, 5.0), layout="constrained")
    for number, group in enumerate(accuracies.groups):
        axes = figure.add_subplot(1, len(accuracies.groups), number + 1)
        _draw(axes, report, accuracies, group, keeps)
        axes.set_xlabel(f"time to the first token, ms ({'elapsed' if clock == 'wall' else 'processor'} time)")
        axes.set_ylabel("accuracy, %")
    lines, names = figure.axes[0].get_legend_handles_labels()
    for keep, marker in zip(keeps, MARKERS, strict=False):
        lines.append(Line2D([], [], color="#555555", marker=marker, linestyle="", markersize=5))
        names.append(f"keep {keep_label(keep)}")
    figure.legend(lines, names, loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def _draw(axes: Axes, report: Report, accuracies: Accuracies, group: str, keeps: Sequence[float | int]) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    counted = ""
    for number, method in enumerate([*report.methods, NAME]):
        points = [
            (one.ttft_ms, found.value, MARKERS[place % len(MARKERS)])
            for place, keep in enumerate(keeps)
            if (one := report.find("resize", keep) if method == NAME else report.find("foveate", keep, method))
            and (found := accuracies.of(one, group))
        ]
        if not points:
            continue
        ours = method in ("adafv", "cover")
        style: dict[str, Any] = {
            "color": COLOURS[method] if ours else colours[number % len(colours)],
            "linestyle": "-" if number < len(colours) else "--",  # colours come again
            "linewidth": 2.2 if ours else 1.0,
            "zorder": 3 if ours else 2,
        }
        axes.plot([x for x, *_ in points], [100 * y for _, y, _ in points], label=method, **style)
        for x, y, marker in points:
            axes.plot(x, 100 * y, marker=marker, markersize=5, **style)
    stock = report.results[0]
    whole = accuracies.of(stock, group)
    if whole is not None:
        axes.plot(stock.ttft_ms, 100 * whole.value, "*", color="#333333", markersize=11, label="all tokens", zorder=4)
        axes.axhline(100 * whole.value, color="#333333", linestyle=":", linewidth=0.8, zorder=1)
        counted = f", n = {whole.count}"
    axes.set_title(f"{NAMES.get(group, group)}{counted}", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
