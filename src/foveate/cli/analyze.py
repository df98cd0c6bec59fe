"""``foveate analyze``: does a score depend on the place in the prompt, does it find what is asked about, and where in
the picture do the tokens lie that methods keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from foveate.cli.console import load_model, note, parse_keeps, print_json, progress_bar, stdout
from foveate.cli.evaluate import open_suite, parse_methods, warn_of_words
from foveate.cli.settling import check_source
from foveate.cli.tables import interval, print_table
from foveate.evaluation import analysis
from foveate.evaluation.kept import BASE, CROPS, EVERY, UNIFORM, Kept, Lying
from foveate.evaluation.processes import ALONE
from foveate.evaluation.runner import factory
from foveate.evaluation.suites import Source
from foveate.evaluation.worlds import WORLDS
from foveate.keep import keep_label


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
    methods: str
    keep: str


def run(request: Request) -> None:
    """Draws the pictures, reads all scores, prints the tables and writes JSON and plots.

    Raises:
        ValueError: bad input, pictures that are not drawn, or an output folder made with other settings.
    """
    world = request.source.world
    if world is not None and world.filmed:
        from foveate.cli import recall

        given = request.out, request.model, request.as_json, request.dtype, request.batch_size
        recall.run(request.source, request.methods, request.keep, *given)
        return
    if world is None:
        raise ValueError(
            f"--suite {request.source.suite}: it takes drawn pictures, where it is known what lies where: "
            f"{', '.join(WORLDS)}"
        )
    names = list(dict.fromkeys([UNIFORM, *parse_methods(request.methods)]))
    keeps = parse_keeps(request.keep)
    kept = Kept({name: factory(name) for name in names}, keeps)
    out = request.out or Path("build") / "analyze" / request.source.slug()
    check_source(request.model, request.dtype)
    suite = open_suite(request.source, out, ALONE)
    warn_of_words(request.source.suite, request.model)
    model, processor = load_model(request.model, request.dtype)
    with progress_bar("reading scores") as progress:
        found = analysis.analyse(
            model,
            processor,
            suite.items,
            suite.folder,
            layer=request.layer,
            batch=request.batch_size,
            located=world.located,
            kept=kept,
            progress=progress,
        )
    maps = kept.summarise()
    title = f"Where kept tokens lie: {world.name}, {found.questions} questions about {found.pictures} pictures"
    files = analysis.save(found, out, maps, title)
    settings: dict[str, Any] = {**request.source.settings(), "model_name": request.model or "bundled"}
    if request.as_json:
        told = {**found.as_dict(), "kept": [one.as_dict() for one in maps]}
        print_json({"settings": settings, **told, "files": [str(file) for file in files]})
        return
    console = stdout()
    print_table(console, _bias(found))
    console.print()
    print_table(console, _alignment(found), labels=3)
    console.print()
    print_table(console, _paired(found), labels=3)
    console.print()
    print_table(console, _lying(maps), labels=2)
    note(f"written: {', '.join(str(file) for file in files)}")


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
        shown = map(interval, (one.first, one.last, one.base, one.slope))
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
        recalls = (interval(recall, 100, 1) for recall in one.recall.values())
        table.add_row(*head, analysis.TITLES[one.score], interval(one.auc, 1, 3), *recalls, f"{100 * one.share:.1f} %")
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


def _lying(maps: Sequence[Lying]) -> Table:
    """One line for each method and budget: which part of the tokens stays, by where in the picture they lie."""
    views = [view for view in (BASE, CROPS) if any(one.view == view for one in maps)]
    title = "which part of the tokens stays, %, by where in the picture they lie [95 %]"
    table = _table(title, "keep", "method", "kept", "edge", "centre", *views)
    table.columns[1].justify = "left"
    found = {(one.method, repr(one.keep), one.view): one for one in maps}
    for one in maps:
        if one.view == EVERY:
            others = (found.get((one.method, repr(one.keep), view)) for view in views)
            parts = [one.edge, one.centre, *(other.share if other else None for other in others)]
            shown = ["" if part is None or not part.count else interval(part, 100, 1) for part in parts]
            table.add_row(keep_label(one.keep), one.method, f"{100 * one.share.value:.1f}", *shown)
    return table
