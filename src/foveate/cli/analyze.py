"""``foveate analyze``: does a score depend on the place in the prompt, and does it find what is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from foveate.cli.console import load_model, note, print_json, progress_bar, stdout
from foveate.cli.evaluate import open_suite
from foveate.cli.tables import print_table
from foveate.evaluation import analysis
from foveate.evaluation.processes import ALONE
from foveate.evaluation.statistics import Estimate
from foveate.evaluation.suites import Source


@dataclass(frozen=True)
class Request:
    """The command's arguments."""

    source: Source
    layer: int
    out: Path | None
    model: str | None
    as_json: bool
    dtype: str
    batch_size: int
    methods: str = "adafv,saliency,text,cover"
    keep: str = "0.1"


def run(request: Request) -> None:
    """Draws the scenes, reads all scores, prints both tables and writes JSON and plot.

    Raises:
        ValueError: bad input, or an output folder made with other settings.
    """
    if request.source.world is not None and request.source.world.filmed:
        from foveate.cli import recall

        given = request.out, request.model, request.as_json, request.dtype, request.batch_size
        recall.run(request.source, request.methods, request.keep, *given)
        return
    if request.source.suite != "scenes":
        raise ValueError(f"scenes and clips are analysed, not {request.source.suite}")
    out = request.out or Path("build") / "analyze" / request.source.slug()
    suite = open_suite(request.source, out, ALONE)
    model, processor = load_model(request.model, request.dtype)
    with progress_bar("reading scores") as progress:
        found = analysis.analyse(
            model,
            processor,
            suite.items,
            suite.folder,
            layer=request.layer,
            batch=request.batch_size,
            progress=progress,
        )
    files = analysis.save(found, out)
    settings: dict[str, Any] = {**request.source.settings(), "model_name": request.model or "bundled"}
    if request.as_json:
        print_json({"settings": settings, **found.as_dict(), "files": [str(file) for file in files]})
        return
    console = stdout()
    print_table(console, _bias(found))
    console.print()
    print_table(console, _alignment(found), labels=3)
    console.print()
    print_table(console, _paired(found), labels=3)
    note(f"written: {', '.join(str(file) for file in files)}")


def _shown(estimate: Estimate, scale: float = 1, digits: int = 2) -> str:
    value, low, high = (scale * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.{digits}f} [dim]{low:.{digits}f} to {high:.{digits}f}[/]"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _bias(found: analysis.Analysis) -> Table:
    table = _table(
        f"mean score by place among the visual tokens, 1 = even spread [95 %]; {found.questions} questions, "
        f"{found.pictures} pictures",
        "score", "first quarter", "last quarter", "base view", "rank correlation with place",
    )  # fmt: skip
    for one in found.bias:
        shown = map(_shown, (one.first, one.last, one.base, one.slope))
        table.add_row(analysis.TITLES[one.score], *shown)
    return table


def _alignment(found: analysis.Analysis) -> Table:
    table = _table(
        "ranking the tokens of what is asked about [95 %]",
        "group", "n", "score", "ROC-AUC", *(f"recall at {100 * keep:g} %" for keep in analysis.KEEPS), "of all tokens",
    )  # fmt: skip
    before = None
    for one in found.alignment:
        head = (one.group, str(one.auc.count)) if one.group != before else ("", "")
        before = one.group
        recalls = (_shown(recall, 100, 1) for recall in one.recall.values())
        table.add_row(*head, analysis.TITLES[one.score], _shown(one.auc, 1, 3), *recalls, f"{100 * one.share:.1f} %")
    table.columns[2].justify = "left"
    return table


def _paired(found: analysis.Analysis) -> Table:
    table = _table(
        "ROC-AUC, paired on the same questions [95 %]", "group", "first", "second", "difference", "p (swaps)"
    )
    for (first, second, group), difference in found.pairs.items():
        if group in ("all", "small in clutter"):  # the others stand in analysis.json
            d = difference
            interval = f"{d.value:+.3f} [dim]{d.low:+.3f} to {d.high:+.3f}[/]"
            table.add_row(group, analysis.TITLES[first], analysis.TITLES[second], interval, f"{d.p_value:.2g}")
    for column in table.columns[1:3]:
        column.justify = "left"
    return table
