"""Receipts: what was bought, what it cost, perhaps a total."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.papers.paper import Ask, Paper, extreme, pair, reading
from foveate.evaluation.documents.words import Supply, numbers

#: Which entry a question of place is about; the last one is "last" however many there are.
ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class Receipt(Paper):
    """``rows`` are goods and prices; ``total`` tells whether their sum stands below."""

    name = "receipt"

    shop: str
    rows: tuple[tuple[str, int], ...]
    total: bool

    @classmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        total = bool(supply.rng.random() < 0.6)
        entries = min(entries, supply.room("goods"))
        prices = numbers(supply.rng, entries)
        goods = supply.take("goods", entries)
        (shop,) = supply.take("shops")
        return cls(shop, tuple(zip(goods, prices, strict=True)), total)

    def lay(self, panel: Panel) -> None:
        em, row, rng = panel.em, panel.row, panel.rng
        pad = round(em * rng.uniform(0.6, 1.4))
        gap = round(em * rng.uniform(1, 3.5))
        heading = panel.heading_size()
        summed = str(sum(price for _, price in self.rows))
        prices = [str(price) for _, price in self.rows] + ([summed] if self.total else [])
        labels = [good for good, _ in self.rows] + (["total"] if self.total else [])
        inner = max(
            panel.length(*labels, bold=True) + gap + panel.length(*prices, bold=True),
            panel.length(self.shop, size=heading, bold=True),
        )
        left, right = pad, pad + inner
        y = pad + row // 2
        align = str(rng.choice(["left", "middle"]))
        panel.word(
            "shop", self.shop, left if align == "left" else (left + right) // 2, y, align=align, size=heading, bold=True
        )
        y += round(1.4 * row)
        ruled = bool(rng.random() < 0.5)
        leaders = bool(rng.random() < 0.4)
        for i, (good, price) in enumerate(self.rows):
            label = panel.word(f"label:{i}", good, left, y)
            value = panel.word(f"value:{i}", str(price), right, y, align="right")
            if leaders:
                for x in range(label[2] + em // 2, value[0] - em // 2, max(4, em // 2)):
                    panel.rule(x, y + em // 4, x + 1, y + em // 4 + 1)
            y += row
        if self.total:
            if ruled:
                panel.rule(left, y - row // 2, right, y - row // 2 + 1)
            y += row // 4
            panel.word("total", "total", left, y, bold=True)
            panel.word("sum", summed, right, y, align="right", bold=True)
            y += row
        panel.close(right + pad, y - row // 2 + pad)

    def ask(self, rng: np.random.Generator) -> Iterator[Ask]:
        goods, prices = zip(*self.rows, strict=True)
        i = int(rng.integers(len(goods)))
        form = rng.choice(["How much is the {}?", "What does the {} cost?"])
        yield reading("number", form.format(goods[i]), str(prices[i]), f"value:{i}", f"label:{i}")
        if self.total:
            yield reading("number", "What is the total?", str(sum(prices)), "sum", "total")
        i = int(rng.integers(len(goods)))
        yield reading("word", f"What costs {prices[i]}?", goods[i], f"label:{i}", f"value:{i}")
        yield reading("word", "Where is the receipt from?", self.shop, "shop")
        found = pair(rng, prices)
        if found:
            a, b = found
            more = bool(rng.random() < 0.5)
            answer = a if (prices[a] > prices[b]) == more else b
            text = f"What costs {'more' if more else 'less'}, the {goods[a]} or the {goods[b]}?"
            other = a + b - answer
            keys = (f"label:{answer}", f"label:{other}", f"value:{answer}", f"value:{other}")
            yield reading("comparison", text, goods[answer], *keys)
        most = bool(rng.random() < 0.5)
        best = extreme(prices, most)
        if best is not None:
            others = (f"value:{j}" for j in range(len(prices)))
            text = f"What costs the {'most' if most else 'least'}?"
            yield reading("comparison", text, goods[best], f"label:{best}", *others)
        places = {word: j for j, word in enumerate(ORDINALS) if j < len(goods) - 1} | {"last": len(goods) - 1}
        word = str(rng.choice(list(places)))
        yield reading(
            "place", f"What is the {word} thing on the receipt?", goods[places[word]], f"label:{places[word]}"
        )
        i = int(rng.integers(len(goods) - 1))
        above = bool(rng.random() < 0.5)
        asked, answer = (i + 1, i) if above else (i, i + 1)
        text = f"What is just {'above' if above else 'below'} the {goods[asked]}?"
        yield reading("place", text, goods[answer], f"label:{answer}", f"label:{asked}")
