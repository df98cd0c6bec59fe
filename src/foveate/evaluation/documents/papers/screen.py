"""Screens: the app's name, a few settings, and buttons in a row, a column or a square, some of them coloured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.documents.panel import Panel, readable_on
from foveate.evaluation.documents.papers.paper import STEPS, Ask, Paper, extreme, pair, reading
from foveate.evaluation.documents.words import Supply, numbers
from foveate.evaluation.scenes.world import COLORS


@dataclass(frozen=True)
class Screen(Paper):
    """``buttons`` are word and colour ("" for grey), row by row; ``across`` is how many stand in a row."""

    name = "screen"
    sparse = (2, 4)
    dense = (5, 6)

    app: str
    settings: tuple[tuple[str, int], ...]
    buttons: tuple[tuple[str, str], ...]
    across: int

    @classmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        rng = supply.rng
        shape = str(rng.choice(["row", "column", "square"]))
        count = 4 if shape == "square" else int(rng.integers(2, 5))
        across = {"row": count, "column": 1, "square": 2}[shape]
        settings = supply.take("settings", entries)
        values = numbers(rng, len(settings))
        colored = int(rng.integers(1, count + 1))
        colors = [str(color) for color in rng.choice(list(COLORS), colored, replace=False)] + [""] * (count - colored)
        colors = [str(color) for color in rng.permutation(colors)]
        buttons = tuple(zip(supply.take("buttons", count), colors, strict=True))
        return cls(supply.take("apps")[0], tuple(zip(settings, values, strict=True)), buttons, across)

    def lay(self, panel: Panel) -> None:
        em, row, rng = panel.em, panel.row, panel.rng
        pad = round(em * rng.uniform(0.6, 1.2))
        gap = round(em * rng.uniform(1, 3))
        between = round(em * rng.uniform(0.4, 0.9))
        heading = panel.heading_size()
        wide = panel.length(*(word for word, _ in self.buttons), bold=True) + round(1.2 * em)
        tall = round(1.9 * em)
        settings = panel.length(*(word for word, _ in self.settings)) + gap
        settings += panel.length(*(str(value) for _, value in self.settings))
        inner = max(
            wide * self.across + between * (self.across - 1), settings, panel.length(self.app, size=heading, bold=True)
        )
        left, right = pad, pad + inner
        bar = round(1.8 * heading)
        panel.rectangle("", (0, 0, right + pad, bar), panel.look.accent)
        panel.word("app", self.app, left, bar // 2, size=heading, bold=True, fill=readable_on(panel.look.accent))
        y = bar + pad // 2 + row // 2
        for i, (word, value) in enumerate(self.settings):
            panel.word(f"label:{i}", word, left, y)
            panel.word(f"value:{i}", str(value), right, y, align="right")
            y += row
        y += pad // 2 - row // 2
        down = len(self.buttons) // self.across
        start = left + (inner - wide * self.across - between * (self.across - 1)) // 2
        for i, (word, color) in enumerate(self.buttons):
            x = start + (wide + between) * (i % self.across)
            top = y + (tall + between) * (i // self.across)
            fill = COLORS[color] if color else (205, 205, 205)
            panel.rectangle(f"button:{i}", (x, top, x + wide, top + tall), fill, (90, 90, 90))
            panel.word(
                f"word:{i}", word, x + wide // 2, top + tall // 2, align="middle", bold=True, fill=readable_on(fill)
            )
        panel.close(right + pad, y + tall * down + between * (down - 1) + pad)

    def ask(self, rng: np.random.Generator) -> Iterator[Ask]:
        words, values = zip(*self.settings, strict=True)
        i = int(rng.integers(len(words)))
        yield reading("number", f"What is the {words[i]}?", str(values[i]), f"value:{i}", f"label:{i}")
        i = int(rng.integers(len(words)))
        yield reading("word", f"What is set to {values[i]}?", words[i], f"label:{i}", f"value:{i}")
        yield reading("word", "Which app is on the screen?", self.app, "app")
        i = int(rng.choice([j for j, (_, color) in enumerate(self.buttons) if color]))
        word, color = self.buttons[i]
        yield reading("word", f"Which button is {color}?", word, f"word:{i}", f"button:{i}")
        more = bool(rng.random() < 0.5)
        found = pair(rng, values)
        if found:
            a, b = found
            answer = a if (values[a] > values[b]) == more else b
            keys = [f"{what}:{i}" for i in (answer, a + b - answer) for what in ("label", "value")]
            text = f"What is set {'higher' if more else 'lower'}, the {words[a]} or the {words[b]}?"
            yield reading("comparison", text, words[answer], *keys)
        best = extreme(values, more)
        if best is not None and len(values) > 2:
            keys = [f"label:{best}", *(f"value:{i}" for i in range(len(values)))]
            yield reading("comparison", f"What is set {'highest' if more else 'lowest'}?", words[best], *keys)
        yield from self._places(rng)

    def _places(self, rng: np.random.Generator) -> Iterator[Ask]:
        count, square = len(self.buttons), 1 < self.across < len(self.buttons)
        last = bool(rng.random() < 0.5)
        if square:
            i = int(rng.integers(count))
            text = f"Which button is at the {'bottom' if i >= 2 else 'top'} {'right' if i % 2 else 'left'}?"
        else:
            i = count - 1 if last else 0
            ends = ("top", "bottom") if self.across == 1 else ("left", "right")
            text = f"Which button is {'at the' if self.across == 1 else 'on the far'} {ends[last]}?"
        yield reading("place", text, self.buttons[i][0], f"word:{i}", f"button:{i}")
        row, column = divmod(int(rng.integers(count)), self.across)
        asked = row * self.across + column
        for word in map(str, rng.permutation(list(STEPS))):
            down, right = row + STEPS[word][0], column + STEPS[word][1]
            if 0 <= down < count // self.across and 0 <= right < self.across:
                i = down * self.across + right
                text = f"Which button is just {word} {self.buttons[asked][0]}?"
                yield reading("place", text, self.buttons[i][0], f"word:{i}", f"word:{asked}")
                return
