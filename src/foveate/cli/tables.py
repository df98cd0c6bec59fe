"""Tables on terminals of any width: no figure is cut off, columns that do not fit stand in a further part below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from foveate.evaluation.statistics import Estimate

GAP = 2
LABELS = 0.6
"""The part of a line that the columns which name a row may take before the longest is folded, between its words."""


def print_table(console: Console, table: Table, labels: int = 1) -> None:
    """Prints a table, in as many parts as the console's width needs.

    Args:
        console: where to.
        table: without box and padding at its edges.
        labels: how many of the first columns say what a row is about; every part repeats them.
    """
    whole = [_widest(column, whole_head=True) for column in table.columns]
    if _room(whole) <= console.width:
        console.print(table)
        return
    widths = [_widest(column) for column in table.columns]
    if _room(widths) > console.width:
        longest = max(range(labels), key=widths.__getitem__)
        others = _room(widths[:labels]) - widths[longest]
        words = [word for cell in table.columns[longest].cells for word in _plain(cell).plain.split()]
        folded = max([round(LABELS * console.width) - others, *map(len, words)])
        widths[longest] = min(widths[longest], folded)
    for number, places in enumerate(_groups(widths, labels, console.width)):
        if number:
            console.print()
        fits = _room([*widths[:labels], *(whole[place] for place in places[labels:])]) <= console.width
        shown = [whole[place] if fits and place >= labels else widths[place] for place in places]
        console.print(_part(table, places, shown, titled=not number))


def interval(estimate: Estimate, scale: float = 1, digits: int = 2) -> str:
    """A figure with its interval where pictures differ at all: of one, or of what is fixed, nothing says how sure it
    is."""
    if not estimate.high > estimate.low:
        return f"{scale * estimate.value:.{digits}f}"
    value, low, high = (scale * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.{digits}f} [dim]{low:.{digits}f} to {high:.{digits}f}[/]"


def _room(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _groups(widths: Sequence[int], labels: int, width: int) -> list[list[int]]:
    """The columns of each part: the labels, and as many of the others as there is room for, one at least."""
    groups: list[list[int]] = []
    for place in range(labels, len(widths)):
        if not groups or _room([widths[one] for one in [*groups[-1], place]]) > width:
            groups.append([*range(labels)])
        groups[-1].append(place)
    return groups


def _widest(column: Column, whole_head: bool = False) -> int:
    """Of its cells, which stay whole, and of its head or the words of it, between which lines may break."""
    head = _plain(column.header).plain
    texts = [*map(_plain, column.cells), *map(Text, [head] if whole_head else head.split())]
    return max((text.cell_len for text in texts), default=1)


def _plain(cell: object) -> Text:
    return Text.from_markup(str(cell))


def _part(table: Table, places: Sequence[int], widths: Sequence[int], titled: bool) -> Table:
    part = Table(
        title=table.title if titled else None,
        title_justify=table.title_justify,
        box=None,
        pad_edge=False,
        header_style=table.header_style,
    )
    for place, width in zip(places, widths, strict=True):
        column = table.columns[place]
        part.add_column(
            column.header,
            justify=column.justify,
            header_style=column.header_style,
            width=width,
            overflow="fold",
        )
    columns = [list(table.columns[place].cells) for place in places]
    for number, row in enumerate(table.rows):
        part.add_row(*(cells[number] for cells in columns), style=row.style, end_section=row.end_section)
    return part
