"""What commands print: tables whose figures are whole and whose lines fit, and how far long work is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from foveate.cli import console
from foveate.cli.tables import print_table

HEADS = ("method", "keep", *(f"figure {number}, ms" for number in range(9)))
ROWS = [
    (f"method-{row}" + "-of-a-long-name" * (row == 2), f"0.{row}", *(f"{row}{number}.12 3-4" for number in range(9)))
    for row in range(1, 4)
]


def printed(width: int, labels: int = 2) -> list[str]:
    table = Table(title="what", title_justify="left", box=None, pad_edge=False)
    for number, head in enumerate(HEADS):
        table.add_column(head, justify="right" if number else "left")
    for row in ROWS:
        table.add_row(*row)
    stream = io.StringIO()
    print_table(Console(file=stream, width=width, color_system=None), table, labels)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_figure_is_cut_and_no_line_is_too_long(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text and text.count("what") == 1
    for row in ROWS:
        assert all(text.count(figure) == 1 for figure in row[2:])


def test_every_part_says_whose_figures_they_are() -> None:
    for row in (ROWS[0], ROWS[2]):
        lines = [line for line in printed(80) if line.startswith(row[0])]
        assert len(lines) > 1 and all(line.split()[1] == row[1] for line in lines)
        assert sum(figure in line for line in lines for figure in row[2:]) == 9


def test_a_table_that_fits_is_one() -> None:
    lines = printed(240)
    assert len([line for line in lines if line.startswith(ROWS[0][0])]) == 1


def test_long_work_in_a_pipe_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress_bar("asking") as update:
        update(1, 9)
        monkeypatch.setattr(console, "QUIET", 0.0)
        update(2, 9)
    out, err = capsys.readouterr()
    assert not out and "1 of 9" not in err and "foveate: asking: 2 of 9" in err
