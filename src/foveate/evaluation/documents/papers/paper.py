"""What every kind of document has: content that is composed, laid out, and asked about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.evaluation.documents.panel import Panel
from foveate.evaluation.documents.words import Supply, accepted


@dataclass(frozen=True)
class Ask:
    """A question: ``keys`` name the marks that must be seen to answer it, the answer's own first."""

    kind: str
    text: str
    answers: tuple[str, ...]
    keys: tuple[str, ...]


class Paper(ABC):
    """A kind of document. ``entries`` is how many a sparse and a dense one have, at least and at most."""

    name: ClassVar[str]
    sparse: ClassVar[tuple[int, int]] = (3, 5)
    dense: ClassVar[tuple[int, int]] = (6, 9)

    @classmethod
    @abstractmethod
    def compose(cls, supply: Supply, entries: int) -> Paper:
        """Content of so many entries, or fewer where the document has no room for them."""

    @abstractmethod
    def lay(self, panel: Panel) -> None:
        """Puts the content on a panel, and closes it."""

    @abstractmethod
    def ask(self, rng: np.random.Generator) -> Iterator[Ask]:
        """Every question that could be asked, each way once, about entries chosen by chance."""


def reading(kind: str, text: str, answer: str, *keys: str) -> Ask:
    """A question with one answer."""
    return Ask(kind, text, accepted(answer), keys)


#: How a question of place calls a neighbour -> how many rows down and columns to the right that is.
STEPS = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}

#: Two numbers are compared only where the larger is at least so many times the smaller.
_CLEARLY = 1.1


def clearly(first: float, second: float) -> bool:
    """Whether two numbers differ enough to be compared."""
    return max(first, second) >= _CLEARLY * min(first, second)


def pair(rng: np.random.Generator, values: Sequence[float]) -> tuple[int, int] | None:
    """The places of two values that differ clearly, in an order that says nothing; None where there are none."""
    places = [int(i) for i in rng.permutation(len(values))]
    return next(((i, j) for i in places for j in places if i != j and clearly(values[i], values[j])), None)


def extreme(values: Sequence[float], most: bool) -> int | None:
    """The place of the largest or smallest value if it is clearly that, else None."""
    order = sorted(range(len(values)), key=lambda i: -values[i] if most else values[i])
    return order[0] if len(order) > 1 and clearly(values[order[0]], values[order[1]]) else None
