"""Line charts over days or months."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.papers.chart import Chart
from foveate.evaluation.documents.papers.paper import Ask, Paper, reading
from foveate.evaluation.documents.words import POOLS, Supply


@dataclass(frozen=True)
class Line(Chart):
    """Days or months one after the other, beginning anywhere."""

    name = "line chart"
    one = "point"
    sparse = (3, 4)
    dense = (5, 7)

    @classmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        # Days may stand on another document already: the months are left then.
        whole = [pool for pool in ("days", "months") if supply.room(pool) == len(POOLS[pool])]
        return cls.valued(supply, supply.run(str(supply.rng.choice(whole)), entries))

    def lay(self, panel: Panel) -> None:
        em, rng = panel.em, panel.rng
        pad = round(em * rng.uniform(0.5, 1.2))
        height = self.heights(panel)
        told = [str(value) for value in self.values]
        pitch = panel.length(*self.labels, *([] if self.step else told)) + round(em * rng.uniform(0.7, 1.5))
        left = pad + (panel.length(str(self.top)) + em // 2 if self.step else 0)
        right = left + pitch * len(self.labels)
        top = pad + (em // 2 if self.step else round(1.4 * em))
        # A number may stand below the lowest point.
        bottom = top + height + (0 if self.step else round(1.4 * em))
        zero = top + height
        if self.step:
            self.scale(panel, left - em // 2, right, zero, height)
        points = [
            (left + pitch * i + pitch // 2, zero - round(height * value / self.top))
            for i, value in enumerate(self.values)
        ]
        thick = max(1, em // 9)
        panel.lines(points, panel.look.accent, thick)
        for i, (x, y) in enumerate(points):
            panel.dot(f"drawn:{i}", x, y, max(2, em // 6), panel.look.accent)
        panel.rectangle("", (left, bottom, right, bottom + 1), panel.look.ink)
        for i, (x, y) in enumerate(points):
            if not self.step:
                # On the side the line leaves free, on a patch of paper that interrupts it.
                beside = [points[j][1] for j in (i - 1, i + 1) if 0 <= j < len(points)]
                above = y <= sum(beside) / len(beside)
                middle = y - em if above else y + em
                half = panel.length(told[i]) // 2 + max(1, em // 8)
                tall = round(0.45 * em)
                panel.rectangle("", (x - half, middle - tall, x + half + 1, middle + tall + 1), panel.look.paper)
                panel.word(f"value:{i}", told[i], x, middle, align="middle")
            panel.word(f"label:{i}", self.labels[i], x, bottom + em, align="middle")
        panel.close(right + pad, bottom + round(1.6 * em) + pad)

    def at(self, label: str) -> str:
        return f"of the line at {label}"

    def places(self, rng: np.random.Generator) -> Iterator[Ask]:
        last = bool(rng.random() < 0.5)
        i = len(self.labels) - 1 if last else 0
        text = f"Where does the line {'end' if last else 'begin'}?"
        yield reading("place", text, self.labels[i], f"label:{i}", f"drawn:{i}")
