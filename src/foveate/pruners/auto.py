"""As many tokens as the image and the question need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from foveate.functional import effective_tokens, least_reaching, top_k
from foveate.functional.budgets import require_share
from foveate.pruners.base import Choice, Pruner, Scorer
from foveate.pruners.wrapper import Wrapper
from foveate.tokens import Keep, TextTokens, VisualTokens


@runtime_checkable
class Ranking(Protocol):
    """A method that knows how much the tokens it takes first tell of the image."""

    def ranked(
        self, visual: VisualTokens, text: TextTokens | None, budget: int, enough: float = 1.0, least: int = 1
    ) -> tuple[Choice, Tensor]:
        """The choice in the order in which it is made, and (K,) what its first k reach, ascending to 1 for all.

        It may end where ``least`` tokens or more reach ``enough``, for whoever wants no more.
        """


@dataclass
class Auto(Wrapper):
    """As many of a method's first tokens as the image and the question need, by what is known before the LLM runs.

    Of a method that covers (``cover``), the fewest whose F is at least ``share`` of F of all tokens, F being what it
    maximises; of one that scores, ``share`` of the number of tokens that the scores speak of, exp of their entropy. How
    many that are is known only once the image is encoded: transformers waits for it once per image, and a server, which
    lays the prompt out before, cannot run it. What was measured stands in docs/choosing.md: on the bundled model the
    mean number of tokens does as well spent alike on every question.

    Args:
        method: as for ``Wrapper``: one that ranks, ``cover`` or a ``Scorer`` (``saliency``, ``text``).
        keep: the most that stays, as for ``Pruner``. Default 0.25; 1.0 sets no limit.
        floor: the least that stays, likewise. Default 0.02.
        share: in (0, 1], see above. Default 0.8.

    Raises:
        TypeError, ValueError: as for ``Wrapper``; a method that does not rank; a floor above the ceiling; a share
            outside (0, 1].
    """

    keep: Any = field(default=0.25, kw_only=True)
    floor: float | int = 0.02
    share: float = 0.8

    name: ClassVar[str] = "auto"
    adaptive: ClassVar[bool] = True
    example: ClassVar[str] = "cover"
    budgets: ClassVar[tuple[str, ...]] = ("floor",)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.floor = Keep(self.floor).value
        except (TypeError, ValueError) as error:
            raise type(error)(f"floor is the least that stays, a budget like keep: {error}") from None
        require_share(self.share)
        if type(self.floor) is type(self.keep) and Keep(self.floor).exceeds(Keep(self.keep)):
            raise ValueError(f"floor={self.floor} is above the ceiling, keep={self.keep}")

    def refuse(self, method: Pruner) -> str | None:
        """Only what ranks has a first token and a next one."""
        if method.adaptive:
            return "it chooses its own number of tokens already"
        if isinstance(method, (Ranking, Scorer)):
            return None
        if isinstance(method, Wrapper):
            return f"put it inside instead, as in {method.name}:{self.name}:{self.example}"
        return (
            "it neither scores tokens one by one nor says how much of the image its first ones cover, so nothing tells "
            "how many would do; cover does, and whatever scores (saliency, text, any foveate.Scorer)"
        )

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The held method's first tokens, between the floor and ``budget``."""
        held, least = self.method, visual.budget(Keep(self.floor))

        def between(count: Tensor) -> int:
            # The one wait for an accelerator: how many stay decides how long the prompt is.
            return min(max(int(count), least), budget)

        if isinstance(held, Ranking):
            choice, covered = held.ranked(visual, text, budget, self.share, least)
            count = between(least_reaching(covered, self.share))
            return Choice(choice.indices[:count].sort().values, choice.scores)
        scores, ranking = held.ranking(visual, text)
        return Choice(top_k(ranking, between((effective_tokens(ranking) * self.share - 1e-9).ceil())), scores)
