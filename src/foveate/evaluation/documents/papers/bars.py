"""Bar charts, upright or lying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.papers.chart import Chart
from foveate.evaluation.documents.papers.paper import Ask, Paper, reading
from foveate.evaluation.documents.words import Supply

#: Where labels come from: words in no order that anybody knows.
_POOLS = ("goods", "names", "towns")


@dataclass(frozen=True)
class Bars(Chart):
    """``lying`` bars begin at the left, the first one at the top."""

    name = "bar chart"
    one = "bar"
    sparse = (3, 4)
    dense = (5, 7)

    lying: bool

    @classmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        pools = [pool for pool in _POOLS if supply.room(pool) >= 3]
        pool = str(supply.rng.choice(pools))
        labels = supply.take(pool, min(entries, supply.room(pool)))
        return cls.valued(supply, labels, lying=bool(supply.rng.random() < 0.5))

    def lay(self, panel: Panel) -> None:
        (self._lying if self.lying else self._upright)(panel)

    def _upright(self, panel: Panel) -> None:
        em, rng = panel.em, panel.rng
        pad = round(em * rng.uniform(0.5, 1.2))
        height = self.heights(panel)
        told = [str(value) for value in self.values]
        pitch = panel.length(*self.labels, *([] if self.step else told)) + round(em * rng.uniform(0.6, 1.2))
        wide = max(4, round(pitch * rng.uniform(0.4, 0.75)))
        left = pad + (panel.length(str(self.top)) + em // 2 if self.step else 0)
        right = left + pitch * len(self.labels)
        bottom = pad + (em // 2 if self.step else round(1.3 * em)) + height
        if self.step:
            self.scale(panel, left - em // 2, right, bottom, height)
        for i, (label, value) in enumerate(zip(self.labels, self.values, strict=True)):
            middle = left + pitch * i + pitch // 2
            top = bottom - max(2, round(height * value / self.top))
            panel.rectangle(
                f"drawn:{i}", (middle - wide // 2, top, middle - wide // 2 + wide, bottom), panel.look.accent
            )
            if not self.step:
                panel.word(f"value:{i}", told[i], middle, top - round(0.75 * em), align="middle")
            panel.word(f"label:{i}", label, middle, bottom + em, align="middle")
        panel.rectangle("", (left, bottom, right, bottom + 1), panel.look.ink)
        panel.close(right + pad, bottom + round(1.6 * em) + pad)

    def _lying(self, panel: Panel) -> None:
        em, rng = panel.em, panel.rng
        pad = round(em * rng.uniform(0.5, 1.2))
        told = [str(value) for value in self.values]
        reach = self.heights(panel)
        if self.step:
            reach = max(reach, (panel.length(str(self.top)) + em // 2) * self.lines)
        pitch = max(panel.row, round(em * rng.uniform(1.5, 2.2)))
        wide = max(4, round(pitch * rng.uniform(0.4, 0.75)))
        left = pad + panel.length(*self.labels) + em // 2
        right = left + reach + (panel.length(str(self.top)) // 2 if self.step else panel.length(*told) + em // 2)
        bottom = pad + pitch * len(self.labels)
        for k in range(self.lines + 1 if self.step else 0):
            x = left + round(reach * k / self.lines)
            panel.word(f"scale:{k}", str(k * self.step), x, bottom + em, align="middle")
            panel.rule(x, pad, x + 1, bottom + em // 4)
        for i, (label, value) in enumerate(zip(self.labels, self.values, strict=True)):
            y = pad + pitch * i + pitch // 2
            end = left + max(2, round(reach * value / self.top))
            panel.rectangle(f"drawn:{i}", (left, y - wide // 2, end, y - wide // 2 + wide), panel.look.accent)
            if not self.step:
                panel.word(f"value:{i}", told[i], end + em // 2, y)
            panel.word(f"label:{i}", label, left - em // 2, y, align="right")
        panel.rectangle("", (left, pad, left + 1, bottom), panel.look.ink)
        panel.close(right + pad, bottom + (round(1.6 * em) if self.step else 0) + pad)

    def at(self, label: str) -> str:
        return f"of the {label} bar"

    def places(self, rng: np.random.Generator) -> Iterator[Ask]:
        before, after = ("above", "below") if self.lying else ("left of", "right of")
        i = int(rng.integers(len(self.labels) - 1))
        forward = bool(rng.random() < 0.5)
        asked, answer = (i, i + 1) if forward else (i + 1, i)
        text = f"Which bar is just {after if forward else before} {self.labels[asked]}?"
        yield reading("place", text, self.labels[answer], f"label:{answer}", f"label:{asked}")
        last = bool(rng.random() < 0.5)
        ends = ("top", "bottom") if self.lying else ("left", "right")
        i = len(self.labels) - 1 if last else 0
        text = f"Which bar is {'at the' if self.lying else 'on the far'} {ends[last]}?"
        yield reading("place", text, self.labels[i], f"label:{i}", f"drawn:{i}")
