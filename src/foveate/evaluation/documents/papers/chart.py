"""What bar and line charts share: labelled values, told by numbers beside them or by a scale, and questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.papers.paper import Ask, Paper, extreme, pair, reading
from foveate.evaluation.documents.words import Supply, numbers

#: Distances between two numbers of a scale, whose last one is ``LARGEST`` at most.
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)
#: With numbers beside them, values are asked for as they stand; without, they are drawn exactly on lines of the scale.
_LINES = (3, 6)


@dataclass(frozen=True)
class Chart(Paper):
    """``step`` is the distance between two numbers of the scale, which begins with 0 and has ``lines`` more; with 0
    there is no scale, and every value stands beside what is drawn for it."""

    one: ClassVar[str]
    """What a label is called in a question."""

    labels: tuple[str, ...]
    values: tuple[int, ...]
    step: int
    lines: int

    @classmethod
    def valued(cls, supply: Supply, labels: list[str], **more: bool) -> Paper:
        """The chart of these labels."""
        rng = supply.rng
        if rng.random() < 0.5:
            return cls(tuple(labels), tuple(numbers(rng, len(labels))), 0, 0, **more)
        lines = int(rng.integers(_LINES[0], _LINES[1] + 1))
        step = int(rng.choice(STEPS))
        heights = rng.integers(1, lines + 1, len(labels))
        while len(set(heights)) == 1:  # nothing could be asked about
            heights = rng.integers(1, lines + 1, len(labels))
        return cls(tuple(labels), tuple(int(step * height) for height in heights), step, lines, **more)

    @property
    def top(self) -> int:
        """The value at the end of the scale."""
        return self.step * self.lines if self.step else max(self.values)

    def told(self, i: int) -> str:
        """The key of the number that tells value ``i``."""
        return f"scale:{self.values[i] // self.step}" if self.step else f"value:{i}"

    def seen(self, i: int) -> tuple[str, ...]:
        """Keys of what shows how large value ``i`` is."""
        return (f"drawn:{i}", f"label:{i}", *(() if self.step else (f"value:{i}",)))

    def scale(self, panel: Panel, x: int, right: int, bottom: int, height: int) -> None:
        """Numbers ending at ``x`` and faint lines as far as ``right``; ``bottom`` is that of 0."""
        for k in range(self.lines + 1):
            y = bottom - round(height * k / self.lines)
            panel.word(f"scale:{k}", str(k * self.step), x, y, align="right")
            panel.rule(x + panel.em // 4, y, right, y + 1)

    def heights(self, panel: Panel, least: float = 5, most: float = 9) -> int:
        """How high the largest value is drawn, pixels."""
        height = round(panel.em * panel.rng.uniform(least, most))
        height = min(max(height, 60), 240)
        return max(height, round(1.35 * panel.em * self.lines))

    def ask(self, rng: np.random.Generator) -> Iterator[Ask]:
        def chosen() -> int:
            return int(rng.integers(len(self.labels)))

        i = chosen()
        yield reading(
            "number",
            f"What is the value {self.at(self.labels[i])}?",
            str(self.values[i]),
            self.told(i),
            f"drawn:{i}",
            f"label:{i}",
        )
        i = chosen()
        if self.values.count(self.values[i]) == 1:
            text = f"Which {self.one} has the value {self.values[i]}?"
            yield reading("word", text, self.labels[i], f"label:{i}", f"drawn:{i}", self.told(i))
        found = pair(rng, self.values)
        more = bool(rng.random() < 0.5)
        if found:
            a, b = found
            answer = a if (self.values[a] > self.values[b]) == more else b
            keys = [key for i in (answer, a + b - answer) for key in reversed(self.seen(i))]
            text = f"Which {self.one} is {'higher' if more else 'lower'}, {self.labels[a]} or {self.labels[b]}?"
            yield Ask("comparison", text, reading("", "", self.labels[answer]).answers, (f"label:{answer}", *keys))
        best = extreme(self.values, more)
        if best is not None and len(self.values) > 2:
            keys = [
                f"label:{best}",
                *(key for i in range(len(self.labels)) for key in self.seen(i) if "label" not in key),
            ]
            yield reading(
                "comparison", f"Which {self.one} is the {'highest' if more else 'lowest'}?", self.labels[best], *keys
            )
        yield from self.places(rng)

    def at(self, label: str) -> str:
        """How a question says where a value is."""
        raise NotImplementedError

    def places(self, rng: np.random.Generator) -> Iterator[Ask]:
        """Questions of place."""
        raise NotImplementedError
