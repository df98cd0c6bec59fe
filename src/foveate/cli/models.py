"""``foveate models``: which models can be pruned, whether one can, and the same as tables for the pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
import typer
from rich.markup import escape

from foveate.cli.console import WIDTH, print_json, print_wrapped, stdout
from foveate.coverage import SUPPORTED, checkpoint_of, coverage, in_transformers, verdict
from foveate.models import Family
from foveate.models.left_out import IDEAS, NOT_APPLICABLE, REASONS
from foveate.serving.plugin import serves

NOT_SUPPORTED = 1


def families() -> dict[type[Family], list[str]]:
    """Every adapter, and the model types that it takes."""
    found: dict[type[Family], list[str]] = {}
    for model_type, family in SUPPORTED.items():
        found.setdefault(family, []).append(model_type)
    return found


def list_models(as_json: bool) -> None:
    """Prints every family, its model types with a checkpoint each, and what can be done with them."""
    covered = coverage()
    counts = {"version": transformers.__version__, "supported": len(covered.supported)}
    counts["applicable"] = len(covered.applicable)
    if as_json:
        described_ = [
            {
                "family": family.title,
                "model_types": types,
                **family.traits(),
                "checkpoints": {name: " ".join(filter(None, checkpoint_of(name))) or None for name in types},
                "vllm": [name for name in types if serves(name)],
                "not_in_transformers": [name for name in types if not in_transformers(name)],
                "unread": dict(family.unread),
            }
            for family, types in families().items()
        ]
        left_out = [
            {"model_type": name, "reason": reason, "applicable": name not in NOT_APPLICABLE}
            for name, reason in REASONS.items()
        ]
        print_json({"models": described_, "left_out": left_out, "transformers": counts})
        return
    out = stdout()
    for family, types in families().items():
        traits = family.traits()
        can = [word for word, name in (("videos", "video"), ("crops", "crops")) if traits[name] == "yes"]
        can += ["vLLM"] if any(map(serves, types)) else []
        out.print(f"[bold]{escape(family.title)}[/]" + (f"  {', '.join(can)}" if can else ""))
        for name in types:
            lacking = "" if in_transformers(name) else f" (not in transformers {transformers.__version__})"
            line = f"  {name:<24}{checkpoint_of(name)[0]}".rstrip()
            if len(line + lacking) <= WIDTH:
                out.print(escape(line + lacking))
            else:
                out.print(escape(line))
                out.print(escape(f"{' ' * 25}{lacking}"))
    out.print()
    print_wrapped(
        f"Of the {counts['applicable']} types of transformers {counts['version']} whose pictures are tokens of a "
        f"prompt, {counts['supported']} have an adapter. `foveate models --check TYPE_OR_FOLDER` tells all of one, "
        "whether the installed transformers can do with it, and why another cannot be pruned."
    )


def check_model(source: str, as_json: bool) -> None:
    """Prints whether a model can be pruned, and what is known of it; ends with status 1 where it cannot.

    Raises:
        FileNotFoundError, ValueError: there is no such type or file.
    """
    found = verdict(source)
    if as_json:
        about = found.about or {}
        answer = {"model_type": found.model_type, "supported": found.supported, "reason": found.reason}
        print_json({**answer, "transformers": transformers.__version__, **about})
    else:
        can = "can be pruned" if found.supported else "cannot be pruned"
        out = stdout()
        out.print(f"[bold]{escape(found.model_type)}[/] {can}" + (":" if found.reason else ""))
        if found.reason:
            print_wrapped(found.reason, "  ")
        for name, value in _lines(found.about or {}):
            print_wrapped(value, f"  {name:<14}", " " * 16)
    if not found.supported:
        raise typer.Exit(NOT_SUPPORTED)


def _lines(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What ``check_model`` prints of a type with an adapter: a name and a value per line."""
    if not about:
        return
    yield "adapter", about["adapter"]
    there = "has it" if in_transformers(about["model_type"]) else "lacks it"
    yield "transformers", f"{transformers.__version__} {there}"
    if about["checkpoint"]:
        yield "checkpoint", about["checkpoint"]
    if about["note"]:
        yield "note", about["note"]
    for name in ("video", "crops", "vllm", "positions", "layouts", "saliency", "merge", "views"):
        yield {"video": "videos", "vllm": "vLLM"}.get(name, name), about[name]
    for reading, reason in about["unread"].items():
        yield f"no {reading}", reason
    if about["refused_methods"]:
        yield "not with", ", ".join(about["refused_methods"])
    if "cover" in about["refused_methods"]:
        yield "but with", "cover:saliency=0"


def write_tables(page: Path) -> None:
    """Writes the tables of a Markdown file anew, each between its two marks.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no marks, or marks of a table that does not exist.
    """
    if not page.is_file():
        raise FileNotFoundError(f"there is no {page}")
    before = page.read_text(encoding="utf-8")
    after = with_tables(before)
    if after == before and not MARKED.search(before):
        names = ", ".join(TABLES)
        raise ValueError(f"{page} has no line <!-- table: NAME --> and <!-- /table --> behind it; names: {names}")
    page.write_text(after, encoding="utf-8")
    typer.echo(page)


MARKED = re.compile(r"(<!-- table: ([a-z-]+), by `foveate models --markdown` -->\n).*?(<!-- /table -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """A page's text with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"there is no table {found[2]!r}; there are: {', '.join(TABLES)}")
        return found[1] + TABLES[found[2]]() + found[3]

    return MARKED.sub(table, text)


def _table(columns: str, rows: Iterator[tuple[str, ...]]) -> str:
    count = columns.count("|") + 1
    lines = [f"| {columns} |", "|" + "---|" * count, *("| " + " | ".join(row) + " |" for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def _yes(whether: bool) -> str:
    return "yes" if whether else ""


def types_table() -> str:
    """Every supported type with a checkpoint and what it can do. Made of the adapters alone, whatever is installed."""

    def rows() -> Iterator[tuple[str, ...]]:
        for family, types in families().items():
            for name in types:
                checkpoint, note = checkpoint_of(name)
                yield (
                    family.title,
                    f"`{name}`",
                    checkpoint + (f" ({note})" if note else ""),
                    _yes(family.traits()["video"] == "yes"),
                    _yes(family.crops),
                    _yes(serves(name)),
                    ", ".join(family.positions),
                    ", ".join(family.unread),
                )

    return _table("family | `model_type` | a checkpoint | videos | crops | vLLM | positions | cannot be read", rows())


def families_table() -> str:
    """Every family, its types, how its tokens are made and which saliency is read."""

    def rows() -> Iterator[tuple[str, ...]]:
        for family, types in families().items():
            kinds = "images and videos" if family.traits()["video"] == "yes" else "images"
            saliency = "none" if "saliency" in family.unread else family.saliency
            yield family.title, ", ".join(f"`{name}`" for name in types), kinds, family.merge, saliency

    return _table("family | `model_type` | of | patches in a token | saliency", rows())


def left_out_table() -> str:
    """Every type that is left out, and why."""
    return _table(
        "why | `model_type` | reason",
        ((idea.title, f"`{name}`", f"{what}: {idea.because}") for idea in IDEAS for name, what in idea.types.items()),
    )


TABLES: dict[str, Callable[[], str]] = {
    "types": types_table,
    "families": families_table,
    "left-out": left_out_table,
}
