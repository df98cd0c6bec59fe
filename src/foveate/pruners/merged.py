"""What a method drops goes into what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from foveate.functional import merge_into_nearest
from foveate.pruners.base import Choice, Pruner
from foveate.pruners.wrapper import Wrapper
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Merged(Wrapper):
    """Every token that the held method drops is merged into the kept one most like it.

    Likeness is the cosine of projected features, ties go to the earlier kept token, and a kept token becomes the mean
    of itself and what joined it. Places and scores stay the held method's. (RESTORE, ICML 2026, merges around any
    method too, and weighs attention by how many tokens one stands for: attach with ``calibrate=True`` for that.)

    Args:
        method: the held method, or its name.
        threshold: a dropped token joins only where its cosine to the nearest is at least this, in [-1, 1]. Default -1:
            all join.
        keep: as for ``Pruner``. Default: the held method's.

    Raises:
        ValueError: a method that merges by itself; ``threshold`` outside [-1, 1].
        TypeError: as for ``Wrapper``.
    """

    threshold: float = -1.0

    name: ClassVar[str] = "merged"
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1.0 <= self.threshold <= 1.0:  # NaN fails too
            raise ValueError(f"threshold must be in [-1, 1], got {self.threshold!r}")

    def refuse(self, method: Pruner) -> str | None:
        """Whoever merges by itself has merged what it drops."""
        return f"{method.name} merges what it drops by itself" if method.merges else None

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The held method's choice, with weights."""
        choice: Choice = self.method.choose(visual, text, budget)
        if choice.weights is not None:
            raise ValueError(f"{self.method.name} merges without saying so: set its merges = True")
        return replace(choice, weights=merge_into_nearest(visual.features.detach(), choice.indices, self.threshold))
