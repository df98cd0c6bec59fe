"""A whole page in one file: question, answers, pictures, figures and code. It opens offline and fetches nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from foveate.looking_ahead import Pointing
from foveate.tokens import Selection
from foveate.webpage.figure import asset, figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What browsers let the page load: nothing from anywhere."""

STYLE = """
body { font-family: system-ui, sans-serif; margin: 0 auto; padding: 1.2rem; max-width: 1280px; color: #1a1a1a;
  background: #fff; line-height: 1.45; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .3rem; }
.about { color: #555; margin: 0 0 1rem; font-size: .9rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.4rem; }
.answer { border-left: 4px solid #1d4ed8; padding: .3rem .7rem; margin: .3rem 0 .7rem; white-space: pre-wrap;
  overflow-wrap: anywhere; background: #f3f5fb; }
table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0; }
th { font-weight: 400; text-align: left; color: #555; padding: .1rem 1rem .1rem 0; }
td { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; font-size: .82rem; }
.fv-figure { margin-bottom: .8rem; }
"""


@dataclass(frozen=True)
class Column:
    """One way in which the question was answered.

    Args:
        title: how: the method and its budget.
        selections: one per picture; none: it is not told what was kept.
        answer: the model's; None: it was not asked.
        pointings: one per picture, or none.
        figures: by name, what was counted and measured, as it is to be read.
        note: a sentence more, such as what went wrong.
    """

    title: str
    selections: Sequence[Selection] = ()
    answer: str | None = None
    pointings: Sequence[Pointing] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def document(
    question: str,
    pictures: Sequence[Image.Image],
    columns: Sequence[Column],
    *,
    model: str,
    code: Mapping[str, str] | None = None,
) -> str:
    """The page as text.

    Args:
        question: as asked.
        pictures: upright, as they were given.
        columns: what stands beside each other.
        model: its name.
        code: by heading, what brings this about without the page.

    Raises:
        ValueError: a column with another number of selections or pointings than there are pictures.
    """
    from foveate import __version__

    written = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        for name, text in (code or {}).items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(question)}</title><link rel="icon" href="data:,">'
        f"<style>{asset('figure.css')}{STYLE}</style></head><body>"
        f'<h1>{escape(question)}</h1><p class="about">{escape(model)} · Foveate {__version__}</p>'
        f'<main class="columns">{"".join(_column(one, pictures) for one in columns)}</main>'
        f"{written}<script>{asset('figure.js')}</script></body></html>\n"
    )


def save(path: str | os.PathLike[str], page: str) -> None:
    """Writes what ``document`` gave."""
    Path(path).write_text(page, encoding="utf-8")


def check_path(path: str | os.PathLike[str]) -> None:
    """Says before anything is computed what would keep a page from being written.

    Raises:
        ValueError: another suffix than .html or .htm.
        FileNotFoundError: the folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"cannot write a page to {target}: give it the suffix .html")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")


def _column(column: Column, pictures: Sequence[Image.Image]) -> str:
    for name, given in (("selections", column.selections), ("pointings", column.pointings)):
        if given and len(given) != len(pictures):
            raise ValueError(f"{len(given)} {name} for {len(pictures)} pictures in {column.title!r}")
    pointings: Sequence[Pointing | None] = column.pointings or [None] * len(pictures)
    answer = "" if column.answer is None else f'<div class="answer">{escape(column.answer or "(empty)")}</div>'
    note = f"<p>{escape(column.note)}</p>" if column.note else ""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(told)}</td></tr>" for name, told in column.figures.items())
    shown = "".join(
        figure(picture, selection, pointing, label=f"Picture {number}" if len(pictures) > 1 else "")
        for number, (picture, selection, pointing) in enumerate(
            zip(pictures, column.selections, pointings, strict=False), 1
        )
    )
    table = f"<table>{rows}</table>" if rows else ""
    return f"<section><h2>{escape(column.title)}</h2>{answer}{note}{shown}{table}</section>"
