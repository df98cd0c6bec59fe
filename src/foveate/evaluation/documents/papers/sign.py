"""Signs: a warning in large letters, or the ways to several places and how far they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.papers.paper import Ask, Paper, extreme, pair, reading
from foveate.evaluation.documents.words import Supply, numbers

WAYS = ("left", "right", "up")


@dataclass(frozen=True)
class Sign(Paper):
    """``ways`` are (place, which way, how far); ``warning`` stands above them, or is "", and ``bus`` below, or is 0."""

    name = "sign"
    sparse = (2, 4)
    dense = (5, 7)

    warning: str
    ways: tuple[tuple[str, str, int], ...]
    bus: int

    @classmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        rng = supply.rng
        entries = min(entries, supply.room("places"))
        warning = supply.take("warnings")[0] if rng.random() < 0.5 else ""
        bus = numbers(rng, 1)[0] if rng.random() < 0.4 else 0
        far = numbers(rng, entries)
        ways = [str(way) for way in rng.choice(WAYS, entries)]
        return cls(warning, tuple(zip(supply.take("places", entries), ways, far, strict=True)), bus)

    def lay(self, panel: Panel) -> None:
        em, rng = panel.em, panel.rng
        row = max(panel.row, round(1.7 * em))
        pad = round(em * rng.uniform(0.7, 1.3))
        gap = round(em * rng.uniform(0.6, 1.6))
        heading = panel.heading_size()
        places = panel.length(*(place for place, *_ in self.ways))
        inner = em + gap + places + gap + panel.length(*(str(far) for *_, far in self.ways))
        if self.warning:
            inner = max(inner, panel.length(self.warning, size=heading, bold=True))
        if self.bus:
            inner = max(inner, panel.length("bus") + em + panel.length(str(self.bus)))
        left, right, y = pad, pad + inner, pad + row // 2
        if self.warning:
            panel.word("warning", self.warning, (left + right) // 2, y, align="middle", size=heading, bold=True)
            y += round(1.3 * row)
        first = bool(rng.random() < 0.6)  # the arrows stand before the places, or behind the numbers
        for i, (place, way, far) in enumerate(self.ways):
            _arrow(panel, f"way:{i}", left + em // 2 if first else right - em // 2, y, way)
            panel.word(f"place:{i}", place, left + em + gap if first else left, y)
            panel.word(f"far:{i}", str(far), right if first else right - em - gap, y, align="right")
            y += row
        if self.bus:
            y += row // 5
            label = panel.word("bus", "bus", left, y)
            panel.word("line", str(self.bus), label[2] + em, y)
            y += row
        width, height = right + pad, y - row // 2 + pad
        if rng.random() < 0.5 and pad >= 8:
            panel.rectangle("", (2, 2, width - 2, height - 2), None, panel.look.ink, max(1, em // 12))
        panel.close(width, height)

    def ask(self, rng: np.random.Generator) -> Iterator[Ask]:
        def chosen() -> int:
            return int(rng.integers(len(self.ways)))

        i = chosen()
        yield reading("number", f"How far is the {self.ways[i][0]}?", str(self.ways[i][2]), f"far:{i}", f"place:{i}")
        if self.bus:
            yield reading("number", "What number does the bus have?", str(self.bus), "line", "bus")
        if self.warning:
            yield reading("place", "What is at the top of the sign?", self.warning, "warning")
        i = chosen()
        yield reading("word", f"Which place is {self.ways[i][2]} away?", self.ways[i][0], f"place:{i}", f"far:{i}")
        far = [distance for *_, distance in self.ways]
        nearer = bool(rng.random() < 0.5)
        found = pair(rng, far)
        if found:
            a, b = found
            answer = a if (far[a] < far[b]) == nearer else b
            keys = [f"{what}:{i}" for i in (answer, a + b - answer) for what in ("place", "far")]
            text = f"What is {'nearer' if nearer else 'farther'}, the {self.ways[a][0]} or the {self.ways[b][0]}?"
            yield reading("comparison", text, self.ways[answer][0], *keys)
        best = extreme(far, not nearer)
        if best is not None and len(far) > 2:
            text = f"What is the {'nearest' if nearer else 'farthest'} place?"
            keys = [f"place:{best}", *(f"far:{i}" for i in range(len(far)))]
            yield reading("comparison", text, self.ways[best][0], *keys)
        i = chosen()
        text = f"Which way is the {self.ways[i][0]}, left, right or up?"
        yield reading("place", text, self.ways[i][1], f"way:{i}", f"place:{i}")
        last = bool(rng.random() < 0.5)
        i = len(self.ways) - 1 if last else 0
        yield reading(
            "place", f"What is the {'last' if last else 'first'} place on the sign?", self.ways[i][0], f"place:{i}"
        )


def _arrow(panel: Panel, key: str, x: int, y: int, way: str) -> None:
    """An arrow of about an em around (x, y)."""
    reach, wide, thin = round(0.45 * panel.em), round(0.36 * panel.em), max(1, panel.em // 12)
    right = [
        (reach, 0), (0, -wide), (0, -thin), (-reach, -thin), (-reach, thin), (0, thin), (0, wide),
    ]  # fmt: skip
    turn = {"right": lambda a, b: (a, b), "left": lambda a, b: (-a, b), "up": lambda a, b: (b, -a)}[way]
    panel.polygon(key, [(x + dx, y + dy) for dx, dy in (turn(*point) for point in right)], panel.look.ink)
