"""What a method is that prunes between the layers of the language model. Like every method, it never sees a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from torch import Tensor

from foveate.functional import stage_budgets, top_k
from foveate.functional.common import require_known
from foveate.pruners.base import Choice, Method
from foveate.tokens import Keep, Selection, TextTokens, VisualTokens

BUDGETS = ("mean", "final")


@dataclass
class InsidePruner(Method, ABC):
    """Drops visual tokens at a few stages inside the LLM, ranked by the attention of one layer before each.

    A subclass is a dataclass of its options with a ``name``, ``layers``, and where needed ``raters`` and ``cut``.

    Args:
        keep: a fraction of each image's patch tokens, in (0, 1], or an int, tokens per image. Default 0.1.
        budget: what ``keep`` counts. ``"mean"`` (default): the mean over all layers of the LLM, so that equal ``keep``
            means equal compute with methods that prune before it. ``"final"``: what the last layers hold.

    Raises:
        TypeError, ValueError: ``keep`` is neither; an unknown ``budget``.

    After a call, ``selections`` are those of the last stage, and ``tokens_per_layer`` says how many visual tokens
    (newlines included) of each image every layer held.
    """

    budget: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(BUDGETS, budget=self.budget)
        self.tokens_per_layer: list[list[int]] = []

    @abstractmethod
    def layers(self, depth: int) -> tuple[int, ...]:
        """The stages: layers (from 0) before which tokens go, ascending, each in [1, depth).

        Args:
            depth: layers of the LLM.

        Raises:
            ValueError: the LLM is too shallow.
        """

    def schedule(self, tokens: int, depth: int) -> list[int]:
        """(depth,) how many of an image's N patch tokens every layer holds.

        Args:
            tokens: N.
            depth: layers of the LLM.

        Raises:
            ValueError: the budget cannot be met; the LLM is too shallow.
        """
        edges = [0, *self.layers(depth), depth]
        widths = [end - start for start, end in pairwise(edges)]
        try:
            counts = stage_budgets(tokens, Keep(self.keep).budget(tokens), widths, mean=self.budget == "mean")
        except ValueError as error:
            raise ValueError(
                f"{self.name} with keep={self.keep}: {error}. Give a larger keep, an earlier first stage, or "
                "budget='final', which lets keep count what the last layers hold"
            ) from None
        return [count for count, width in zip(counts, widths, strict=True) for _ in range(width)]

    def raters(self, visual: VisualTokens, text: TextTokens) -> Tensor:
        """(T,) bool: which of the text tokens after the image rate its tokens, when ``reads_text``.

        Otherwise the last token of the prompt does.
        """
        raise NotImplementedError(f"{type(self).__name__} sets reads_text and does not say who rates")

    def cut(self, score: Tensor, hidden: Tensor, budget: int) -> Choice:
        """One stage for one image: picks ``budget`` of the n tokens that are left, 1 <= budget < n.

        Args:
            score: (n,) the attention that the raters pay to each, averaged over them and over heads.
            hidden: (n, D) hidden states.
            budget: how many stay.

        Returns:
            ``budget`` distinct indices of the n, ascending, and how they are put together, if they are. No host sync,
            no loop over tokens.
        """
        return Choice(top_k(score, budget))

    if not TYPE_CHECKING:  # to a type checker they are simply not there

        def __getattr__(self, name: str) -> NoReturn:
            """Says of what only methods before the LLM have why it is not there."""
            if name in ("choose", "select"):
                raise AttributeError(
                    f"{self.name} chooses by the LLM's own attention and cannot choose from tokens alone: use it as "
                    f"`with {type(self).__name__}(...)(model): model.generate(...)`, or with a session's ask"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def mean_tokens_per_layer(self) -> list[float]:
        """Per image of the last call, the mean over layers of ``tokens_per_layer``: what to compare methods by."""
        return [sum(counts) / len(counts) for counts in self.tokens_per_layer]

    def record(self, selections: list[Selection], tokens_per_layer: Sequence[Sequence[int]] = ()) -> None:
        super().record(selections)
        self.tokens_per_layer = [list(counts) for counts in tokens_per_layer]


def stages_at(fractions: Sequence[float], depth: int) -> tuple[int, ...]:
    """Layers at fractions of the depth, rounded, within [1, depth); those that coincide are one stage.

    Raises:
        ValueError: a single layer leaves no place for a stage.
    """
    if depth < 2:
        raise ValueError("an LLM with a single layer cannot be pruned inside")
    return tuple(sorted({min(max(1, round(fraction * depth)), depth - 1) for fraction in fractions}))


def require_fractions(**options: Sequence[float]) -> None:
    """Raises ValueError unless every option is an ascending sequence of fractions in (0, 1)."""
    for name, values in options.items():
        inside = all(0.0 < value < 1.0 for value in values)  # NaN fails too
        if not values or not inside or any(a >= b for a, b in pairwise(values)):
            raise ValueError(f"{name} must be ascending fractions of the depth, each in (0, 1), got {values!r}")
