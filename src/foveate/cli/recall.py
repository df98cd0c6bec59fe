"""``foveate analyze --suite clips``: which part of what is asked about a clip is kept, where and when it is seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from foveate.cli.console import load_model, note, parse_keeps, print_json, progress_bar, stdout
from foveate.cli.evaluate import open_suite, parse_methods, require_videos
from foveate.cli.settling import check_source
from foveate.cli.tables import interval, print_table
from foveate.evaluation import recall
from foveate.evaluation.kept import UNIFORM
from foveate.evaluation.processes import ALONE
from foveate.evaluation.runner import factory
from foveate.evaluation.suites import Source
from foveate.keep import keep_label


def run(
    source: Source, methods: str, keep: str, out: Path | None, model: str | None, as_json: bool, dtype: str, batch: int
) -> None:
    """Draws the clips, has every method choose at every budget, prints the table and writes JSON.

    Raises:
        ValueError: bad input, a model that takes no videos, or an output folder made with other settings.
    """
    require_videos(model)
    names = list(dict.fromkeys([*parse_methods(methods), UNIFORM]))
    keeps = parse_keeps(keep)
    check_source(model, dtype)
    out = out or Path("build") / "analyze" / source.slug()
    suite = open_suite(source, out, ALONE)
    loaded, processor = load_model(model, dtype)
    items: Sequence[Any] = suite.items
    with progress_bar("watching") as progress:
        found = recall.measure(
            loaded, processor, items, suite.folder, {name: factory(name) for name in names}, keeps, batch=batch,
            progress=progress,
        )  # fmt: skip
    file = recall.save(found, out)
    if as_json:
        settings = {**source.settings(), "model_name": model}
        print_json({"settings": settings, **found.as_dict(), "files": [str(file)]})
        return
    print_table(stdout(), _table(found), labels=2)
    if found.unseen:
        note(f"{found.unseen} questions left out: no token's centre lies in what they are about")
    note(f"written: {file}")


def _table(found: recall.Recall) -> Table:
    """One line for each method and budget."""
    title = (
        f"of the tokens of what is asked about, the part that is kept, when it is seen, % [95 %]; {found.questions} "
        f"questions, {found.clips} clips; moments: those at which any of it is kept"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    groups = list(dict.fromkeys(one.group for one in found.figures))
    for name in ("keep", "method", recall.ALL, "moments", *groups[1:]):
        table.add_column(name, justify="left" if name == "method" else "right")
    runs = dict.fromkeys((repr(one.keep), one.method) for one in found.figures)
    by_run = {(repr(one.keep), one.method, one.group): one for one in found.figures}
    order = {recall_keep: number for number, recall_keep in enumerate(dict.fromkeys(keep for keep, _ in runs))}
    ranked = sorted(runs, key=lambda run: (order[run[0]], -by_run[(*run, recall.ALL)].recall.value))
    for keep, method in ranked:
        whole = by_run[keep, method, recall.ALL]
        rest = (by_run.get((keep, method, group)) for group in groups[1:])
        table.add_row(
            keep_label(whole.keep),
            method,
            interval(whole.recall, 100, 1),
            interval(whole.moments, 100, 1),
            *("" if one is None else f"{100 * one.recall.value:.1f}" for one in rest),
        )
    return table
