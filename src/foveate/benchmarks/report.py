"""Tables of a benchmark, for the terminal and as Markdown, and its files: JSON, Markdown, plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.benchmarks.accuracy import NAMES, Accuracies
from foveate.benchmarks.accuracy import plot as plot_accuracy
from foveate.benchmarks.prefill import Report, Result
from foveate.benchmarks.tap import TapCost
from foveate.keep import keep_label
from foveate.stopwatch import STAGES, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[list[str], list[list[str]]]
"""Heads and rows; the first column is text, the others are figures."""

COLOURS = {
    "foveate": "#d1495b", "bound": "#333333", "lean-bound": "#66a182", "crops-bound": "#edae49",
    "resize": "#8c6bb1", "baseline": "#8d96a3", "stock": "#2e86ab",
}  # fmt: skip
STAGE_COLOURS: Mapping[Stage, str] = {
    "encoder": "#2e86ab", "selection": "#d1495b", "prefill": "#edae49", "decode": "#66a182", "rest": "#c9ced6",
}  # fmt: skip


def _title(one: Result) -> str:
    name = one.kind if not one.method else f"{one.kind} {one.method}"
    return f"{name}, crops {one.crops}" if one.crops else name


def results_table(report: Report, accuracies: Accuracies | None = None) -> Table:
    """One row per way of answering; with an evaluation's figures, one more column."""
    lean = any(one.over_lean is not None for one in report.results)
    cut = any(one.over_crops is not None for one in report.results)
    heads = [
        "",
        "keep",
        "prompt, tokens",
        "first token, ms",
        "over bound",
        "over stock",
        *(["over lean bound"] if lean else []),
        *(["over crops bound"] if cut else []),
        "peak memory, MiB",
        "KV cache, MiB",
        "GFLOPs",
    ]
    decoded = report.new_tokens > 1
    heads += ["decode, tokens/s", f"answer of {report.new_tokens}, ms"] if decoded else []
    heads += [] if accuracies is None else [f"accuracy, %, {NAMES.get(accuracies.groups[0], accuracies.groups[0])}"]
    rows = []
    for one in report.results:
        row = [
            _title(one),
            keep_label(one.keep),
            f"{one.prompt_tokens}",
            f"{one.ttft_ms:.1f}",
            "" if one.over_bound is None else f"{one.over_bound:.3f}",
            f"{one.over_stock:.3f}",
            *([] if not lean else ["" if one.over_lean is None else f"{one.over_lean:.3f}"]),
            *([] if not cut else ["" if one.over_crops is None else f"{one.over_crops:.3f}"]),
            f"{one.peak_bytes / 2**20:.1f}",
            f"{one.cache_bytes / 2**20:.2f}",
            f"{one.flops / 1e9:.2f}",
        ]
        if one.decode_rate is not None and one.total_ms is not None:
            row += [f"{one.decode_rate:.1f}", f"{one.total_ms:.1f}"]
        if accuracies is not None:
            found = accuracies.of(one, accuracies.groups[0])
            row.append("" if found is None else f"{100 * found.value:.1f}")
        rows.append(row)
    return heads, rows


def stages_table(report: Report) -> Table:
    """One row per way of answering whose stages were timed."""
    heads = [
        "where the time goes",
        "keep",
        *(f"{stage}, ms" for stage in STAGES),
        "answer, ms",
        "encoder, % of first token",
    ]
    rows = [
        [
            _title(one), keep_label(one.keep), *(f"{one.stages.of(stage):.1f}" for stage in STAGES),
            f"{one.stages.total_ms:.1f}", f"{100 * one.stages.encoder_share:.0f}",
        ]
        for one in report.results
        if one.stages is not None
    ]  # fmt: skip
    return heads, rows


def targets_table(report: Report) -> Table:
    """One row per figure that has a target."""
    rows = [
        [one.name, f"{one.value:.3f}", f"{'at most' if one.at_most else 'at least'} {one.limit:g}", _yes(one.holds)]
        for one in report.targets()
    ]
    return ["target", "measured", "wanted", "holds"], rows


def tap_table(costs: Sequence[TapCost]) -> Table:
    """One row per encoder."""
    heads = [
        "encoder", "read", "patches", "layers run", "stock, ms", "with saliency, ms", "without, ms", "in the tap, ms",
        "whole encoder, ms", "encode / stock", "tap on / off", "tap's own time", "bound", "holds",
    ]  # fmt: skip
    rows = [
        [
            one.shape, one.read, f"{one.patches}", f"{one.layers} of {one.whole}", f"{one.stock_ms:.0f}",
            f"{one.on_ms:.0f}", f"{one.off_ms:.0f}", f"{one.tap_ms:.1f}",
            f"{one.whole_ms:.0f}{' (scaled up)' if one.extrapolated else ''}",
            f"{one.ratio:.3f}", f"{one.tap_ratio:.3f}", f"{one.tap_share:.3f}", f"{one.bound:g}", _yes(one.holds),
        ]
        for one in costs
    ]  # fmt: skip
    return heads, rows


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def markdown(title: str, facts: Mapping[str, Any], tables: Sequence[Table], command: str) -> str:
    """A page with what was measured, on what, by which command."""
    told = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value is not None)
    parts = [f"# {title}", f"`{command}`", told]
    for heads, rows in tables:
        rule = ["---", *["---:"] * (len(heads) - 1)]
        lines = [heads, rule, *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def plot(report: Report, title: str) -> Figure:
    """Time to the first token and peak memory over the budget: methods, bound, baseline, and stock as a line.

    Returns:
        A matplotlib figure that no global state knows of; save it with ``savefig``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = (("first token, ms", lambda one: one.ttft_ms), ("peak memory, MiB", lambda one: one.peak_bytes / 2**20))
    stock = report.results[0]
    names = list(dict.fromkeys(_title(one) for one in report.results if one.kind != "stock"))
    for number, (label, value) in enumerate(panels):
        axes = figure.add_subplot(1, 2, number + 1)
        axes.axhline(value(stock), color=COLOURS["stock"], linewidth=1, label="stock")
        for name in names:
            ours = sorted((one for one in report.results if _title(one) == name), key=lambda one: one.prompt_tokens)
            kind = ours[0].kind
            alike = len([other for other in names if other.split()[0] == kind]) > 1
            axes.plot(
                [one.prompt_tokens for one in ours],
                [value(one) for one in ours],
                label=name, marker="o", markersize=4, linewidth=1.8, linestyle="--" if kind.endswith("bound") else "-",
                color=None if alike else COLOURS[kind],
            )  # fmt: skip
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylabel(label)
    finish(figure, title)
    return figure


def plot_stages(report: Report, title: str) -> Figure:
    """Where the time goes: a bar for every way of answering, its stages one after the other.

    Returns:
        A matplotlib figure that no global state knows of.
    """
    from matplotlib.figure import Figure

    timed = [(one, one.stages) for one in report.results if one.stages is not None]
    figure = Figure(figsize=(9.6, 1.4 + 0.28 * len(timed)), layout="constrained")
    axes = figure.add_subplot()
    ends = [0.0] * len(timed)
    for stage in STAGES:
        lengths = [parts.of(stage) for _, parts in timed]
        axes.barh(range(len(timed)), lengths, left=ends, label=stage, color=STAGE_COLOURS[stage], height=0.7)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    axes.set_yticks(range(len(timed)), [f"{_title(one)}, {keep_label(one.keep)}" for one, _ in timed])
    axes.invert_yaxis()
    axes.set_xlabel(f"ms, {report.new_tokens} new token{'s' * (report.new_tokens > 1)}")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def finish(figure: Any, title: str) -> None:
    """What the figures of all benchmarks share: panels from 0 upwards, one legend beside them, a title over them."""
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")


def save(
    out: Path,
    name: str,
    found: Mapping[str, Any],
    page: str,
    report: Report | None = None,
    title: str = "",
    accuracies: Accuracies | None = None,
) -> list[Path]:
    """Writes ``NAME.json``, ``NAME.md`` and, of a report and where matplotlib is installed, ``NAME.png`` and, where the
    time goes, ``NAME-stages.png``.

    With an evaluation's figures also ``NAME-accuracy.png``.

    Returns:
        The files written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.json", out / f"{name}.md"]
    files[0].write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    files[1].write_text(page, encoding="utf-8")
    if report is None:
        return files
    try:
        figure = plot(report, title)
    except ModuleNotFoundError:  # the plot is an extra; the figures are in the JSON
        return files
    figures = {name: figure, f"{name}-stages": plot_stages(report, title)}
    if accuracies is not None:
        figures[f"{name}-accuracy"] = plot_accuracy(report, accuracies, title, str(found["clock"]))
    for stem, drawn in figures.items():
        files.append(out / f"{stem}.png")
        drawn.savefig(files[-1], dpi=150)
    return files
