"""The words of the documents' world: small and closed, so that a small model can learn to read all of them.

No word stands in two pools, and a picture holds no word twice: what a question names is in one place only. Numbers have
one or two digits, and of three where prices are summed up.
"""

from __future__ import annotations

import numpy as np

from foveate.evaluation.scenes.world import COLORS

POOLS: dict[str, tuple[str, ...]] = {
    "goods": (
        "tea", "milk", "soup", "rice", "bread", "cake", "juice", "fish", "salad", "pasta", "eggs", "corn", "beans",
        "honey", "sugar", "salt",
    ),
    "names": ("anna", "ben", "carl", "dora", "emma", "finn", "gina", "hugo", "ida", "jack", "kim", "leo"),
    "towns": ("rome", "oslo", "paris", "lima", "cairo", "delhi", "tokyo", "berlin", "bern", "seoul"),
    "places": ("bank", "park", "zoo", "hotel", "museum", "school", "beach", "market", "station", "harbor"),
    "subjects": ("math", "art", "sport", "latin", "drama", "chess"),
    "warnings": ("stop", "exit", "danger", "push", "pull", "closed", "slow", "wait"),
    "shops": ("cafe", "bakery", "kiosk", "diner", "grill", "bistro"),
    "apps": ("mail", "music", "photos", "maps", "notes", "files", "games", "news"),
    "buttons": ("save", "open", "send", "print", "copy", "back", "next", "help", "edit", "share", "delete", "search"),
    "settings": ("volume", "light", "speed", "battery", "heat", "zoom"),
    "drinks": ("water", "coffee", "cocoa", "lemonade", "cola", "cider"),
    "days": ("mon", "tue", "wed", "thu", "fri", "sat", "sun"),
    "months": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
}  # fmt: skip

#: Words that label what stands beside them, each on one kind of document only.
LABELS = ("total", "name", "town", "day", "age", "room", "seat", "gate", "floor", "drink")

_LONG = {
    "mon": "monday", "tue": "tuesday", "wed": "wednesday", "thu": "thursday", "fri": "friday", "sat": "saturday",
    "sun": "sunday", "jan": "january", "feb": "february", "mar": "march", "apr": "april", "jun": "june",
    "jul": "july", "aug": "august", "sep": "september", "oct": "october", "nov": "november", "dec": "december",
}  # fmt: skip

#: No number that is written down is larger; sums are. A small model does not learn to read three digits of 12 px.
LARGEST = 99

#: How a word on a document may be written.
CASES = {"title": str.title, "upper": str.upper, "lower": str.lower}

#: Every word that can be on a document or be an answer; numbers aside.
VOCABULARY: tuple[str, ...] = (
    *(word for pool in POOLS.values() for word in pool), *LABELS, *COLORS, "left", "right", "up",
)  # fmt: skip

#: Every other word that questions are made of.
QUESTION_WORDS: tuple[str, ...] = (
    "a", "above", "app", "at", "away", "bar", "begin", "below", "bottom", "bus", "button", "cost", "costs",
    "does", "end", "far", "farther", "farthest", "field", "first", "for", "form", "from", "has", "have",
    "higher", "highest", "how", "in", "is", "just", "larger", "largest", "last", "least", "less", "line",
    "lower", "lowest", "more", "most", "much", "nearer", "nearest", "number", "of", "on", "or", "place",
    "point", "receipt", "row", "screen", "second", "set", "sign", "smaller", "smallest", "table", "the",
    "thing", "third", "tick", "to", "top", "value", "way", "what", "where", "which", "who", "written",
)  # fmt: skip


def accepted(word: str) -> tuple[str, ...]:
    """What counts as right where a word is the answer: days and months may be written out."""
    return (word, _LONG[word]) if word in _LONG else (word,)


class Supply:
    """Hands out words for one picture, none of them twice."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._left = {name: [str(word) for word in rng.permutation(pool)] for name, pool in POOLS.items()}

    def room(self, pool: str) -> int:
        """How many words of a pool are left."""
        return len(self._left[pool])

    def take(self, pool: str, count: int = 1) -> list[str]:
        """So many words of a pool."""
        taken, self._left[pool] = self._left[pool][:count], self._left[pool][count:]
        assert len(taken) == count, f"no {count} words left in {pool}"
        return taken

    def run(self, pool: str, count: int) -> list[str]:
        """So many words of a pool whose order is known, one after the other from anywhere, round the end: what comes
        first or last on a document cannot be guessed. The whole pool is used up."""
        start = int(self.rng.integers(len(POOLS[pool])))
        self._left[pool] = []
        return [POOLS[pool][(start + i) % len(POOLS[pool])] for i in range(count)]


def numbers(rng: np.random.Generator, count: int) -> list[int]:
    """Distinct numbers of 1 to ``LARGEST``: of one digit, of two, or mixed, as there is room for."""
    scales = [(1, 9), (10, LARGEST), (1, LARGEST)]
    fitting = [(low, high) for low, high in scales if high - low + 1 >= count]
    low, high = fitting[rng.choice(len(fitting))]
    return [int(low + value) for value in rng.choice(high - low + 1, count, replace=False)]
