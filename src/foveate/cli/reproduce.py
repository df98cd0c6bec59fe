"""``foveate reproduce``: a paper's table, measured again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table

from foveate.cli.console import load_model, note, print_json, split_list, stdout
from foveate.cli.tables import print_table
from foveate.evaluation.leaderboard.result import public_name
from foveate.evaluation.reproduce.asking import Settings, plan
from foveate.evaluation.reproduce.papers import PAPERS
from foveate.evaluation.reproduce.table import Reproduced, reproduce


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed."""

    paper: str
    model: str
    tasks: str | None
    methods: str | None
    limit: int | None
    out: Path | None
    batch_size: int
    processes: int
    dtype: str
    as_json: bool


def run(request: Request) -> None:
    """Asks what has no result yet, prints the table, and writes it as ``table.json`` and ``table.md``.

    Raises:
        ValueError: an unknown paper, task or method, or an output folder made with other settings.
        ModuleNotFoundError: lmms-eval is needed and not installed.
        typer.Exit: with status 1 where lmms-eval failed on a line; the others are in the table.
    """
    if request.paper not in PAPERS:
        raise ValueError(f"unknown paper {request.paper!r}; known: {', '.join(PAPERS)}")
    paper = PAPERS[request.paper]
    out = request.out or Path("build") / "reproduce" / f"{paper.name}-{public_name(request.model)}".replace("/", "-")
    settings = Settings(request.model, request.dtype, request.limit, request.batch_size, request.processes)
    asking = plan(request.tasks and split_list(request.tasks), paper, settings, out, load_model)
    methods = request.methods and split_list(request.methods)
    told = reproduce(paper, asking, methods or None, settings, out, lambda what: note(f"asking {what}"))
    (out / "table.md").write_text(told.markdown(), encoding="utf-8")
    (out / "table.json").write_text(json.dumps(told.as_dict(), indent=2) + "\n", encoding="utf-8")
    if request.as_json:
        print_json({**told.as_dict(), "out": str(out)})
    else:
        _print(told, public_name(request.model), out)
    if told.failed:
        raise typer.Exit(1)


def _print(told: Reproduced, model: str, out: Path) -> None:
    heads, *rows = told.cells()
    table = Table(title=f"{told.paper.name}, {model}", title_justify="left", box=None, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", header_style="bold")
    for row in rows:
        table.add_row(*row)
    print_table(stdout(), table, labels=2)
    note(told.note())
    for name, reason in told.left_out.items():
        note(f"left out: {name}: {reason}")
    note(f"written: {out / 'table.md'}, {out / 'table.json'}")
