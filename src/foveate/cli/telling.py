"""What ``foveate ask`` prints: the answer, what was kept, and a picture of it, which never costs the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from PIL.Image import Image
from rich.table import Table

from foveate import webpage
from foveate.cli.console import FAILED, answer_line, note, print_json, stderr, stdout, told, working
from foveate.cli.tables import print_table
from foveate.compare import Comparison, Side
from foveate.config import Config
from foveate.crops import encoded_tokens
from foveate.keep import Keep
from foveate.method_names import AUTO
from foveate.tokens import Selection

ENCODED = "tokens encoded"


@dataclass(frozen=True)
class Told:
    """What was asked, and what came of it.

    Args:
        images: the pictures' names.
        question: as asked.
        model: as named.
        config: how it was pruned.
        show: where a picture of it goes, if anywhere.
        again: whether a second pass was allowed; ``unsure`` is its margin.
        pictures: as given.
        seen: as the processor saw them.
        selections: one per picture.
        result: for JSON.
        compared: what ``--compare`` measured.
    """

    images: Sequence[str]
    question: str
    model: str | None
    config: Config
    show: Path | None
    again: bool
    unsure: float
    pictures: Sequence[Image]
    seen: Sequence[Image]
    selections: Sequence[Selection]
    result: dict[str, Any]
    compared: Comparison | None = None

    @property
    def method(self) -> str:
        """The method's name, which says so where the budget makes it another one."""
        return method_of(self.config)


def method_of(config: Config) -> str:
    """The method's name, which says so where the budget makes it another one."""
    wraps = config.keep == AUTO and config.method.split(":")[0] != AUTO
    return f"{AUTO}:{config.method}" if wraps else config.method


@dataclass(frozen=True)
class Piece:
    """A file that goes with an answer.

    Args:
        name: its key in JSON.
        what: it is, for people.
        path: where it goes.
        doing: what is said meanwhile.
        write: writes it there.
    """

    name: str
    what: str
    path: Path
    doing: str
    write: Callable[[], Any]


def tell(answered: Told, as_json: bool, html: Path | None = None, page: Callable[[], str] | None = None) -> None:
    """Prints, and writes the picture and the page if there are to be any.

    Args:
        html, page: where a page goes, and what makes it.

    Raises:
        typer.Exit: with status 1, after the answer, where one of them could not be written.
    """
    pieces = []
    if answered.show is not None:
        pieces.append(Piece("show", "picture", answered.show, "drawing", partial(_draw, answered, answered.show)))
    if html is not None and page is not None:
        pieces.append(Piece("html", "page", html, "writing", lambda: webpage.save(html, page())))
    if not as_json:
        _print(answered)
    write_all(pieces, _described(answered) if as_json else None)


def write_all(pieces: Sequence[Piece], described: dict[str, Any] | None) -> None:
    """Writes the files that go with an answer, and prints the JSON, or of each where it is.

    Args:
        pieces: to write.
        described: the answer for JSON, which says of the files, too; None: people have been told it.

    Raises:
        typer.Exit: with status 1 where one of them could not be written.
    """
    written = [(piece, _tried(piece.doing, piece.write)) for piece in pieces]
    if described is not None:
        print_json({**described, **_shown(written)})
    failed = False
    for piece, failure in written:
        if failure is not None:
            line = f"foveate: error: the {piece.what} {piece.path} could not be written: {failure}"
            stderr().print(line, style="red", markup=False, soft_wrap=True)
            failed = True
        elif described is None:
            note(f"what was kept: {piece.path}")
    if failed:
        raise typer.Exit(FAILED)


def _tried(doing: str, write: Callable[[], Any]) -> str | None:
    """Writes; says why where it cannot be done."""
    try:
        with working(doing):
            write()
    except Exception as error:  # a full disk, a font, a codec: whatever it is, the answer is there
        return told(error)
    return None


def _draw(answered: Told, path: Path) -> None:
    from foveate import show

    show.save(
        path,
        answered.pictures,
        answered.selections,
        question=answered.question,
        answer=answered.result["answer"],
        method=answered.method,
    )


def _shown(written: Sequence[tuple[Piece, str | None]]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for piece, failure in written:
        shown[piece.name] = str(piece.path) if failure is None else None
        if failure is not None:
            shown[f"{piece.name}_error"] = f"{piece.path}: {failure}"
    return shown


def head(question: str, model: str | None, config: Config) -> dict[str, Any]:
    """What was asked, of what and how it was pruned, for JSON."""
    return {
        "question": question,
        "model": model or "bundled",
        "method": method_of(config),
        "keep": config.keep if isinstance(config.keep, str) else Keep(config.keep).written,
        **{name: value for name, value in config.as_dict().items() if name not in ("method", "keep")},
    }


def _described(answered: Told) -> dict[str, Any]:
    config = answered.config
    images = [
        {
            "path": path,
            "width": picture.width,
            "height": picture.height,
            "kept": len(selection),
            "total": selection.total,
        }
        for path, picture, selection in zip(answered.images, answered.pictures, answered.selections, strict=True)
    ]
    if config.crops is not None:
        for one, selection in zip(images, answered.selections, strict=True):
            one |= _encoded(selection)
    if config.pixels is not None:
        for one, small in zip(images, answered.seen, strict=True):
            one |= {"seen_width": small.width, "seen_height": small.height}
    return {**head(answered.question, answered.model, config), **answered.result, "images": images}


def _print(answered: Told) -> None:
    config, result, compared = answered.config, answered.result, answered.compared
    if config.pixels is not None:
        note("pictures seen at " + ", ".join(f"{small.width}x{small.height} pixels" for small in answered.seen))
    if compared is not None:
        for side, one in (("all tokens", compared.full), ("kept", compared.kept)):
            stdout().print(f"answer, {side + ':':<12}{one.answer or '(empty)'}", markup=False, soft_wrap=True)
        print_table(stdout(), _table(compared))
        note(
            f"times are medians of {compared.repeats} after a warm-up; first token is vision tower, selection and "
            f"prefill, answer is {compared.full.new_tokens} and {compared.kept.new_tokens} new tokens"
        )
        for line in _crops(answered):
            note(line)
        return
    stdout().print(answer_line(result["answer"]), markup=False, soft_wrap=True)
    kept, total = sum(map(len, answered.selections)), sum(selection.total for selection in answered.selections)
    encoded = "".join(f", {one}" for one in _crops(answered))
    prompt = f"prompt of {result['prompt_tokens']} tokens"
    note(f"{kept} of {total} visual tokens kept by {answered.method}{encoded}, {prompt}")
    if answered.again:
        note(of_again(result, answered.unsure))


def of_again(result: dict[str, Any], unsure: float) -> str:
    """Whether was asked again, and why, for people."""
    again, than = ("asked again", "below") if result["asked_again"] else ("not asked again", "not below")
    return f"{again}: margin {result['margin']:.2f}, {than} {unsure:g}; {result['tokens_spent']} visual tokens in all"


def _crops(answered: Told) -> list[str]:
    """What was encoded, for people; nothing where all was to be."""
    if answered.config.crops is None:
        return []
    found = [_encoded(selection) for selection in answered.selections]
    crops, of, tokens = (sum(one[name] for one in found) for name in ("crops_encoded", "crops", "encoded"))
    return [f"{crops} of {of} crops encoded ({tokens} tokens with the base view{'s' * (len(found) > 1)})"]


def _encoded(selection: Selection) -> dict[str, Any]:
    """``encoded_views`` are numbered as in ``Geometry``: 0 is the base view, crops follow."""
    views = selection.encoded_views
    return {
        "encoded": encoded_tokens(selection),
        "encoded_views": list(views),
        "crops_encoded": len(views) - 1,
        "crops": len(selection.geometry.grids) - 1,
    }


def rows(side: Side) -> list[tuple[str, Any, str]]:
    """What was counted and measured of one side: its name, the number, how it is written."""
    return [
        (ENCODED, side.encoded_tokens, "d"),
        ("visual tokens", side.visual_tokens, "d"),
        ("prompt, tokens", side.prompt_tokens, "d"),
        ("KV cache, MiB", side.kv_cache_mib, ".2f"),
        ("first token, ms", side.prefill_ms, ".1f"),
        ("answer, ms", side.total_ms, ".1f"),
    ]


def _table(compared: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "all tokens", "kept", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    full, kept = compared.full, compared.kept
    for (name, one, form), (_, two, _) in zip(rows(full), rows(kept), strict=True):
        if name == ENCODED and not compared.crops:
            continue
        table.add_row(name, format(one, form), format(two, form), f"{one / two:.2f}x" if two else "")
    return table
