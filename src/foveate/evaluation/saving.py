"""What an evaluation leaves on disk: one JSON, tables in Markdown, and one plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from foveate.evaluation.over_budget import marked
from foveate.evaluation.plots import plot
from foveate.evaluation.plots_of_crops import over_crops
from foveate.evaluation.report import Report, Run, group_title, method_title
from foveate.evaluation.runner import ALL
from foveate.keep import keep_label


def tables(report: Report, groups: Sequence[str], title: str = "") -> str:
    """The figures as Markdown: the runs, the best first at every budget, and the comparisons.

    Args:
        report: of an evaluation.
        groups: columns; the first is the one that ranks, and has its interval beside it.
        title: heading.
    """
    groups = [name for name in groups if name in report.groups]
    extras = list(report.metric.extras)
    encoded = ["encoded, %"] if report.cropped else []
    in_time = ["resize, same ms"] if report.resized else []
    stages = report.stages
    figures = [*(group_title(name) for name in groups), *extras, "of all tokens", *in_time, "ms"]
    figures += [f"{name} ms" for name in stages]
    heads = ["method", "keep", *encoded, "visual tokens", *figures]
    lines = [f"# {title}", ""] if title else []
    told = f"; {', '.join(stages)}: medians" if stages else ""
    lines += [f"Accuracy in %, with 95 % intervals; tokens and milliseconds per question{told}.", ""]
    lines += [_line(heads), _line(["---"] * len(heads))]
    order = {repr(run.keep): place for place, run in enumerate(report.runs)}

    def rank(place: int) -> tuple[int, float]:
        run = report.runs[place]
        value = report.cell(run.method, run.keep, groups[0]).estimate.value
        return (-1 if run.method == ALL else min(n for k, n in order.items() if k == repr(run.keep)), -value)

    for place in sorted(range(len(report.runs)), key=rank):
        run = report.runs[place]
        cells = [report.cell(run.method, run.keep, name) for name in groups]
        shown = [percent(cell.estimate.value) for cell in cells]
        first = cells[0].estimate
        shown[0] += f" [{', '.join(bounds(first.low, first.high, 1))}]"
        name = _code(run)
        more = [f"{100 * cells[0].extras[extra]:.1f}" for extra in extras]
        relative = "" if run.method == ALL else f"{100 * cells[0].relative:.1f}"
        spent = [*(f"{100 * run.share_encoded:.0f}" for _ in encoded), f"{run.kept:.0f}"]
        timed = [percent(report.resized_in_time_of(run, groups[0])) for _ in in_time]
        took = [f"{run.latency_ms:.0f}", *(milliseconds(run.milliseconds(stage)) for stage in stages)]
        lines.append(_line([name, keep_label(run.keep), *spent, *shown, *more, relative, *timed, *took]))
    if report.legend:
        lines += ["", f"{report.legend[0].upper()}{report.legend[1:]}"]
    if not report.pairs:
        return "\n".join(lines) + "\n"
    heads = ["group", "keep", "first", "second", "difference", "won:lost", "p", "p, Holm"]
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
        difference = f"{100 * one.value:+.1f} [{', '.join(bounds(one.low, one.high, 1, '+'))}]"
        won = f"{one.first_only}:{one.second_only}"
        lines.append(
            _line([
                group_title(pair.group), keep_label(pair.keep), _code(report.run(pair.first, pair.keep)),
                _code(report.run(pair.second, pair.keep)), difference,
                won, f"{one.p_value:.2g}", f"{pair.p_corrected:.2g}",
            ])
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def percent(share: float) -> str:
    """A share in %, nothing where there is none."""
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def bounds(low: float, high: float, digits: int, sign: str = "") -> tuple[str, str]:
    """The ends of an interval in %, with as many digits more as it takes to tell them apart."""
    for more in range(digits, digits + 4):
        ends = f"{100 * low:{sign}.{more}f}", f"{100 * high:{sign}.{more}f}"
        if float(ends[0]) != float(ends[1]):
            break
    return ends


def milliseconds(value: float | None) -> str:
    """With two digits that count, nothing where it was not measured."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def _code(run: Run) -> str:
    if run.method == ALL:
        return method_title(run.method)
    return marked(f"`{run.method}`", run.over_budget, run.count)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def save(report: Report, out: Path, plotted: Sequence[str], columns: Sequence[str], title: str = "") -> list[Path]:
    """Writes ``report.json``, ``report.md`` and, where matplotlib is installed, ``accuracy.png`` into a folder; where a
    method was run under several choices of crops, ``crops.png`` as well.

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
    crops = over_crops(report, plotted, title)
    if crops is not None:
        files.append(out / "crops.png")
        crops.savefig(files[3], dpi=150)
    return files
