"""``foveate eval`` and ``foveate scenes``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from foveate.cli.console import load_model, note, parse_keep, print_json, progress_bar, stdout
from foveate.evaluation import report as reporting
from foveate.evaluation.runner import ALL, SETTINGS_FILE, evaluate, factory
from foveate.evaluation.scenes import read_items, write_scenes
from foveate.evaluation.scenes.files import QUESTIONS_FILE, Split
from foveate.pruners import METHODS

SUITES = ("scenes",)
PLOTTED = ("overall", "small in clutter")
COLUMNS = ("overall", "presence", "attribute", "reading", "biggest", "counting", "position", "relation")
TAGS = ("pooled", "sparse", "clutter", "large", "small", "small in clutter")


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed."""

    suite: str
    methods: str
    keep: str
    count: int
    seed: int
    split: str
    out: Path | None
    model: str | None
    as_json: bool
    dtype: str


def draw(out: Path, count: int, seed: int, split: str) -> Path:
    """Draws scenes with a progress bar and returns the path of their questions.

    Raises:
        ValueError: an unknown split, or what ``write_scenes`` refuses.
    """
    if split not in ("test", "style"):
        raise ValueError(f"unknown split {split!r}; known: test, style")
    assert split in get_args(Split)
    with progress_bar("drawing scenes") as progress:
        return write_scenes(out, count, seed, split, lambda done: progress(done, count))  # type: ignore[arg-type]


def run(request: Request) -> None:
    """Draws the suite, asks everything that has no answer yet, prints the tables and writes report and plot.

    Raises:
        ValueError: bad input, or an output folder made with other settings.
    """
    if request.suite not in SUITES:
        raise ValueError(f"unknown suite {request.suite!r}; known: {', '.join(SUITES)}")
    methods = list(METHODS) if request.methods == "all" else _split(request.methods)
    for name in methods:
        factory(name)  # unknown names are refused before anything is drawn
    keeps = [parse_keep(text, one_is_all=True) for text in _split(request.keep)]
    out = request.out or Path("build") / "eval" / f"scenes-{request.split}-{request.seed}-{request.count}"
    settings = {
        "suite": request.suite,
        "split": request.split,
        "count": request.count,
        "seed": request.seed,
        "model_name": request.model or "bundled",
    }
    _check_folder(out, settings)
    questions = out / "scenes" / QUESTIONS_FILE
    if not questions.is_file():  # written last, so it stands for the pictures too
        draw(questions.parent, request.count, request.seed, request.split)
    items = read_items(questions)
    model, processor = load_model(request.model, request.dtype)
    with progress_bar("asking") as progress:
        rows = evaluate(
            model, processor, items, methods, keeps, out, folder=questions.parent, settings=settings, progress=progress
        )
    report = reporting.summarise(
        rows, items, reporting.scenes_groups(), reporting.SCENES_PAIRS, reporting.SCENES_PAIRED_GROUPS
    )
    name = Path(request.model).name if request.model else "bundled model"
    title = f"scenes, split {request.split}, {request.count} pictures, {name}"
    files = reporting.save(report, out, PLOTTED, title)
    if request.as_json:
        print_json({"settings": settings, **report.as_dict(), "files": [str(file) for file in files]})
        return
    console = stdout()
    for heading, columns in (("by kind", COLUMNS), ("by size and clutter", TAGS)):
        console.print(_accuracy(report, heading, columns))
        console.print()
    if report.pairs:
        console.print(_paired(report))
        console.print()
    note(f"written: {', '.join(str(file) for file in files)}")


def _check_folder(out: Path, settings: dict[str, Any]) -> None:
    """Refuses a folder of other settings before scenes are drawn into it."""
    record = out / SETTINGS_FILE
    if not record.is_file():
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return  # the runner says what to do about it
    changed = [
        f"{name}: {before.get(name)!r} then, {value!r} now"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(f"{out} holds results of other settings ({'; '.join(changed)}): choose another --out")


def _split(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{text!r} names nothing")
    return parts


def _label(keep: float | int) -> str:
    return f"{100 * keep:g} %" if isinstance(keep, float) else f"{keep} tokens"


def _accuracy(report: reporting.Report, heading: str, columns: tuple[str, ...]) -> Table:
    """One table; ``of all`` is the first column's accuracy over that of all tokens, in %."""
    columns = tuple(name for name in columns if name in report.groups)
    table = Table(title=f"accuracy in % {heading} [95 % interval]", title_justify="left", box=None, pad_edge=False)
    for name in ("method", "keep", *columns, "of all"):
        table.add_column(name, justify="left" if name == "method" else "right", header_style="bold")
    for run in report.runs:
        cells = [report.cell(run.method, run.keep, name) for name in columns]
        shown = [
            f"{100 * c.estimate.value:.1f} [dim]{100 * c.estimate.low:.0f}-{100 * c.estimate.high:.0f}[/]"
            for c in cells
        ]
        relative = report.cell(run.method, run.keep, columns[0]).relative
        table.add_row(run.method, _label(run.keep), *shown, f"{100 * relative:.1f}")
    counts = [str(report.cell(ALL, 1.0, name).estimate.count) for name in columns]
    table.add_section()
    table.add_row("[dim]questions[/]", "", *counts, "")
    return table


def _paired(report: reporting.Report) -> Table:
    table = Table(title="paired on the same questions, points [95 %]", title_justify="left", box=None, pad_edge=False)
    for name in ("group", "keep", "first", "second", "difference", "won:lost", "p (McNemar)"):
        table.add_column(
            name, justify="right" if name in ("keep", "difference", "won:lost") else "left", header_style="bold"
        )
    for pair in report.pairs:
        if pair.first != "adafv":
            continue  # the others stand in report.json
        d = pair.difference
        table.add_row(
            pair.group,
            _label(pair.keep),
            pair.first,
            pair.second,
            f"{100 * d.value:+.1f} [dim]{100 * d.low:+.1f} to {100 * d.high:+.1f}[/]",
            f"{d.first_only}:{d.second_only}",
            f"{d.p_value:.2g}",
        )
    return table
