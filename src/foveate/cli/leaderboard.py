"""``foveate leaderboard``: pages made of committed results, and what is wrong with results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from foveate.cli.console import note, stdout
from foveate.evaluation.leaderboard.board import boards
from foveate.evaluation.leaderboard.checked import check, find, read_all
from foveate.evaluation.leaderboard.pages import markdown, page

COMMITTED = Path("benchmarks") / "results" / "leaderboard"
"""Where a checkout has its results, a folder each."""


@dataclass(frozen=True)
class Request:
    """The command's arguments: folders (none: the committed ones), the two pages, and whether only to check."""

    folders: Sequence[Path]
    out: Path | None
    page: Path | None
    check: bool


def run(request: Request) -> None:
    """Writes the pages, prints the Markdown where none was asked for, or prints what is wrong.

    Raises:
        ValueError: there are no results, or something is wrong with them.
    """
    if request.check and (request.out or request.page):
        raise ValueError("--check writes nothing: leave --out and --page out")
    files = find(request.folders or [COMMITTED])
    if request.check:
        results, wrong = check(files)
        for fault in wrong:
            stdout().print(fault, markup=False, soft_wrap=True)
        note(f"{len(results)} of {len(files)} results are right")
        if wrong:
            raise typer.Exit(1)
        return
    found = boards(read_all(files))
    for path, write in ((request.out, markdown), (request.page, page)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write(found), encoding="utf-8")
            note(f"written: {path}")
    if request.out is None and request.page is None:
        stdout().print(markdown(found), markup=False, soft_wrap=True, end="")
