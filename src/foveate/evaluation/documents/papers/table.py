"""Tables: a number for everyone in every column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.papers.paper import STEPS, Ask, Paper, extreme, pair, reading
from foveate.evaluation.documents.words import Supply, numbers


@dataclass(frozen=True)
class Table(Paper):
    """``cells`` by row and column; no number is there twice."""

    name = "table"
    sparse = (2, 4)
    dense = (5, 7)

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]

    @classmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        rows = min(entries, supply.room("names"))
        columns = int(supply.rng.integers(2, 4 if entries <= cls.sparse[1] else 5))
        drawn = numbers(supply.rng, rows * columns)
        cells = tuple(tuple(drawn[i * columns : (i + 1) * columns]) for i in range(rows))
        return cls(tuple(supply.take("names", rows)), tuple(supply.take("subjects", columns)), cells)

    def lay(self, panel: Panel) -> None:
        em, row, rng = panel.em, panel.row, panel.rng
        gap = round(em * rng.uniform(0.9, 1.6))
        pad = round(em * rng.uniform(0.4, 1.2))
        style = str(rng.choice(["grid", "rules", "stripes"]))
        centered = bool(rng.random() < 0.5)
        widths = [panel.length(*self.rows) + gap]
        for j, column in enumerate(self.columns):
            told = [str(line[j]) for line in self.cells]
            widths.append(max(panel.length(column, bold=True), panel.length(*told)) + gap)
        edges = [pad + sum(widths[:j]) for j in range(len(widths) + 1)]
        right, bottom = edges[-1], pad + row * (len(self.rows) + 1)
        if style == "stripes":
            for i in range(1, len(self.rows) + 1, 2):
                panel.rectangle("", (pad, pad + i * row, right, pad + (i + 1) * row), _between(panel))
        for i in range(len(self.rows) + 2):
            if style == "grid" or (style == "rules" and i == 1):
                panel.rule(pad, pad + i * row, right + 1, pad + i * row + 1)
        if style == "grid":
            for x in edges:
                panel.rule(x, pad, x + 1, bottom + 1)

        def put(key: str, word: str, j: int, i: int, bold: bool | None = None) -> None:
            y = pad + i * row + row // 2
            if j == 0:
                panel.word(key, word, edges[0] + gap // 2, y, bold=bold)
            elif centered:
                panel.word(key, word, (edges[j] + edges[j + 1]) // 2, y, align="middle", bold=bold)
            else:
                panel.word(key, word, edges[j + 1] - gap // 2, y, align="right", bold=bold)

        for j, column in enumerate(self.columns):
            put(f"column:{j}", column, j + 1, 0, True)
        for i, name in enumerate(self.rows):
            put(f"row:{i}", name, 0, i + 1)
            for j, number in enumerate(self.cells[i]):
                put(f"cell:{i}:{j}", str(number), j + 1, i + 1)
        panel.close(right + pad + 1, bottom + pad + 1)

    def ask(self, rng: np.random.Generator) -> Iterator[Ask]:
        def entry() -> tuple[int, int]:
            return int(rng.integers(len(self.rows))), int(rng.integers(len(self.columns)))

        i, j = entry()
        text = f"What number does {self.rows[i]} have for {self.columns[j]}?"
        yield reading("number", text, str(self.cells[i][j]), f"cell:{i}:{j}", f"row:{i}", f"column:{j}")
        i, j = entry()
        yield reading("word", f"Who has {self.cells[i][j]}?", self.rows[i], f"row:{i}", f"cell:{i}:{j}")
        i, j = entry()
        yield reading("word", f"What is {self.cells[i][j]} for?", self.columns[j], f"column:{j}", f"cell:{i}:{j}")
        yield from self._compare(rng)
        last = bool(rng.random() < 0.5)
        i = len(self.rows) - 1 if last else 0
        text = f"Who is in the {'last' if last else 'first'} row of the table?"
        yield reading("place", text, self.rows[i], f"row:{i}")
        word = str(rng.choice(list(STEPS)))
        down, across = STEPS[word]
        i, j = entry()
        if 0 <= i + down < len(self.rows) and 0 <= j + across < len(self.columns):
            answer = self.cells[i + down][j + across]
            keys = (f"cell:{i + down}:{j + across}", f"cell:{i}:{j}")
            yield reading("place", f"What number is just {word} {self.cells[i][j]}?", str(answer), *keys)

    def _compare(self, rng: np.random.Generator) -> Iterator[Ask]:
        j = int(rng.integers(len(self.columns)))
        values = [line[j] for line in self.cells]
        more = bool(rng.random() < 0.5)
        found = pair(rng, values)
        if found:
            a, b = found
            answer = a if (values[a] > values[b]) == more else b
            text = f"Who has {'more' if more else 'less'} for {self.columns[j]}, {self.rows[a]} or {self.rows[b]}?"
            keys = [
                f"{what}:{i}{cell}" for i in (answer, a + b - answer) for what, cell in (("row", ""), ("cell", f":{j}"))
            ]
            yield reading("comparison", text, self.rows[answer], *keys, f"column:{j}")
        best = extreme(values, more)
        if best is not None and len(values) > 2:
            text = f"Who has the {'most' if more else 'least'} for {self.columns[j]}?"
            keys = [f"row:{best}", *(f"cell:{i}:{j}" for i in range(len(values))), f"column:{j}"]
            yield reading("comparison", text, self.rows[best], *keys)


def _between(panel: Panel) -> tuple[int, int, int]:
    """A shade near the paper's."""
    red, green, blue = (
        round(0.85 * paper + 0.15 * faint) for paper, faint in zip(panel.look.paper, panel.look.faint, strict=True)
    )
    return red, green, blue
