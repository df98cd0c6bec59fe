"""Forms: what was filled in beside the printed labels, and which box was ticked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.papers.paper import Ask, Paper, extreme, pair, reading
from foveate.evaluation.documents.words import Supply, numbers

#: Labels with a word beside them -> its pool; the others have numbers.
WORDS = {"name": "names", "town": "towns", "day": "days"}
NUMBERS = ("age", "room", "seat", "gate", "floor")


@dataclass(frozen=True)
class Form(Paper):
    """``fields`` are labels and what stands beside them; of the ``options``, ``ticked`` is ticked."""

    name = "form"
    sparse = (3, 4)
    dense = (6, 8)

    fields: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    ticked: int

    @classmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        rng = supply.rng
        labels = [label for label, pool in WORDS.items() if supply.room(pool)] + list(NUMBERS)
        labels = [str(label) for label in rng.permutation(labels)][:entries]
        drawn = iter(numbers(rng, len(labels)))
        fields = tuple(
            (label, supply.take(WORDS[label])[0] if label in WORDS else str(next(drawn))) for label in labels
        )
        options = tuple(supply.take("drinks", int(rng.integers(2, 5)))) if rng.random() < 0.5 else ()
        return cls(fields, options, int(rng.integers(len(options))) if options else -1)

    def lay(self, panel: Panel) -> None:
        em, rng = panel.em, panel.rng
        row = max(panel.row, round(1.6 * em))
        pad = round(em * rng.uniform(0.6, 1.3))
        gap = round(em * rng.uniform(0.8, 2))
        labels = panel.length(*(label for label, _ in self.fields), *(["drink"] if self.options else []))
        values = panel.length(*(value for _, value in self.fields))
        side = round(0.7 * em)
        options = panel.length(*self.options) if self.options else 0
        inner = max(labels + gap + values, side + em // 2 + options if self.options else 0)
        style = str(rng.choice(["line", "box", "plain"]))
        left, right, y = pad, pad + inner + em // 2, pad + row // 2
        for i, (label, value) in enumerate(self.fields):
            panel.word(f"label:{i}", label, left, y)
            x = left + labels + gap
            if style == "line":
                panel.rule(x - em // 4, y + round(0.68 * em), right, y + round(0.68 * em) + 1)
            elif style == "box":
                panel.rectangle(
                    "", (x - em // 3, y - round(0.7 * em), right, y + round(0.72 * em)), None, panel.look.faint
                )
            panel.word(f"value:{i}", value, x, y)
            y += row
        if self.options:
            panel.word("drink", "drink", left, y + row // 4)
            y += row + row // 4
        for i, option in enumerate(self.options):
            box = (left, y - side // 2, left + side, y - side // 2 + side)
            panel.rectangle("", box, None, panel.look.ink)
            if i == self.ticked:
                inset = max(2, side // 5)
                panel.rectangle(
                    "tick", (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), panel.look.ink
                )
            panel.word(f"option:{i}", option, left + side + em // 2, y)
            y += row
        panel.close(right + pad, y - row // 2 + pad)

    def ask(self, rng: np.random.Generator) -> Iterator[Ask]:
        filled = {label: (i, value) for i, (label, value) in enumerate(self.fields)}
        counted = [label for label in filled if label in NUMBERS]
        named = [label for label in filled if label in WORDS]
        for label in rng.permutation(counted)[:2]:
            i, value = filled[str(label)]
            yield reading("number", f"What is the {label}?", value, f"value:{i}", f"label:{i}")
        for label in rng.permutation(named)[:2]:
            i, value = filled[str(label)]
            yield reading("word", f"What is the {label}?", value, f"value:{i}", f"label:{i}")
        if self.options:
            yield reading("word", "Which drink has a tick?", self.options[self.ticked], f"option:{self.ticked}", "tick")
        values = [int(filled[label][1]) for label in counted]
        larger = bool(rng.random() < 0.5)
        found = pair(rng, values)
        if found:
            a, b = found
            answer = a if (values[a] > values[b]) == larger else b
            places = [filled[counted[which]][0] for which in (answer, a + b - answer)]
            keys = [f"{what}:{i}" for i in places for what in ("label", "value")]
            text = f"Which number is {'larger' if larger else 'smaller'}, the {counted[a]} or the {counted[b]}?"
            yield reading("comparison", text, counted[answer], *keys)
        best = extreme(values, larger)
        if best is not None and len(values) > 2:
            places = [filled[label][0] for label in counted]
            keys = [f"label:{places[best]}", *(f"value:{i}" for i in places)]
            text = f"What is the {'largest' if larger else 'smallest'} number on the form?"
            yield reading("comparison", text, str(values[best]), f"value:{places[best]}", *keys[1:])
        last = bool(rng.random() < 0.5)
        i = len(self.fields) - 1 if last else 0
        text = f"What is written in the {'last' if last else 'first'} field of the form?"
        yield reading("place", text, self.fields[i][1], f"value:{i}")
        i = int(rng.integers(len(self.fields) - 1))
        below = bool(rng.random() < 0.5)
        asked, answer = (i, i + 1) if below else (i + 1, i)
        text = f"What is written just {'below' if below else 'above'} {self.fields[asked][1]}?"
        yield reading("place", text, self.fields[answer][1], f"value:{answer}", f"value:{asked}")
