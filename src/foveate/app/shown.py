"""A visit as text and HTML: figures, counters, code, the page that is taken home."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from foveate.app.engine import Explorer
from foveate.app.snippets import as_curl, as_python
from foveate.app.visit import Shown, Visit
from foveate.cli.console import answer_line
from foveate.inputs import warning_of_unknown
from foveate.webpage import Column, document, figure

NOTHING = '<p class="fv-nothing">What is kept is shown here, once there are a picture and a question.</p>'


def counters(visit: Visit, shown: Shown) -> dict[str, str]:
    """What was counted and measured of one side, by name, as it is to be read; as far as it is known."""
    if visit.looked is None:
        return {}
    told, chosen = shown.told, shown.chosen
    found: dict[str, str] = {}
    if chosen is not None and chosen.selections:
        kept, total = sum(map(len, chosen.selections)), sum(one.total for one in chosen.selections)
        found["patch tokens kept"] = f"{kept:,} of {total:,}"
        if any(one.encoded is not None for one in chosen.selections):
            encoded = sum(one.total if one.encoded is None else int(one.encoded.sum()) for one in chosen.selections)
            found["patch tokens encoded"] = f"{encoded:,}"
    if told is not None and told.done:
        found["visual tokens sent"] = f"{told.visual_tokens:,}"
        found["prompt, tokens"] = f"{told.prompt_tokens:,}"
    found["encoder, ms (once)"] = f"{visit.looked.encode_ms:,.0f}"
    if told is not None and told.prefill_ms is not None:
        found["prefill, ms"] = f"{told.prefill_ms:,.0f}"
        if told.cache_mib is not None:
            found["KV cache, MiB"] = f"{told.cache_mib:,.2f}"
        found["answer, tokens"] = f"{told.tokens:,}"
        if told.tokens > 1:
            found["ms per next token"] = f"{(told.total_ms - told.prefill_ms) / (told.tokens - 1):,.1f}"
    return found


def counters_html(visit: Visit, shown: Shown) -> str:
    """The same as HTML."""
    rows = counters(visit, shown)
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows.items())
    return f'<dl class="fv-counters">{cells}</dl>' if rows else ""


def figures_html(visit: Visit, shown: Shown) -> str:
    """What one side keeps of every picture."""
    note = f'<p class="fv-note">{escape(shown.note)}</p>' if shown.note else ""
    if visit.looked is None or shown.chosen is None or not shown.chosen.selections:
        return note or NOTHING
    pictures, chosen = visit.looked.pictures, shown.chosen
    many = len(pictures) > 1
    return note + "".join(
        figure(picture, selection, pointing, label=f"Picture {number}: {source.file}" if many else "")
        for number, (picture, selection, pointing, source) in enumerate(
            zip(pictures, chosen.selections, chosen.pointings, visit.sources, strict=True), 1
        )
    )


def pictures_html(visit: Visit) -> str:
    """What the visitor is asking about, in words."""
    if visit.looked is None:
        return ""
    named = [
        f"{source.file} ({picture.width} × {picture.height})"
        for source, picture in zip(visit.sources, visit.looked.pictures, strict=True)
    ]
    seen = visit.looked.session.pictures
    resized = [f"{one.width} × {one.height}" for one in seen]
    smaller = any(one.size != other.size for one, other in zip(seen, visit.looked.pictures, strict=True))
    told = "Asking about " + ", ".join(named) + (f", seen at {', '.join(resized)} pixels" if smaller else "")
    return f'<p class="fv-about">{escape(told)}.</p>'


def warnings_of(explorer: Explorer, visit: Visit) -> str:
    """What the visitor should know of the question; nothing where all is well."""
    warning = warning_of_unknown(explorer.processor.tokenizer, visit.question)
    return warning and f"{warning[0].upper()}{warning[1:]}."


def code(explorer: Explorer, visit: Visit, shown: Shown) -> Mapping[str, str]:
    """Python and curl of one side, by name; empty texts while there is nothing to ask."""
    if visit.looked is None or not visit.question.strip():
        return {"Python": "", "curl": ""}
    given = explorer, visit.sources, visit.question, shown.side
    return {"Python": as_python(*given), "curl": as_curl(*given)}


def answer_text(shown: Shown) -> str:
    """The answer, so far."""
    if shown.told is None:
        return ""
    return answer_line(shown.told.text) if shown.told.done else shown.told.text


def exported(explorer: Explorer, visit: Visit) -> str:
    """The state of the page as one HTML file.

    Raises:
        ValueError: there is nothing to show yet.
    """
    if visit.looked is None or not visit.question.strip():
        raise ValueError("there is nothing to export yet: give a picture and a question")
    columns: list[Column] = []
    written: dict[str, str] = {}
    for name, shown in zip(("left", "right"), visit.sides, strict=True):
        chosen = shown.chosen
        columns.append(
            Column(
                shown.side.title,
                [] if chosen is None else chosen.selections,
                None if shown.told is None else shown.told.text,
                [] if chosen is None else chosen.pointings,
                counters(visit, shown),
                shown.note,
            )
        )
        written |= {f"{kind}, {name}: {shown.side.title}": text for kind, text in code(explorer, visit, shown).items()}
    return document(visit.question, visit.looked.pictures, columns, model=explorer.name, code=written)
