"""Salient tokens, and the others merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import dominant_and_contextual
from foveate.pruners.base import SALIENCY, Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class VisionZip(Pruner):
    """The most salient tokens, and a few that the others are merged into: VisionZip (arXiv 2412.04467).

    The paper merges what leaves the vision tower, view by view; here projected tokens are merged, all views of the
    image at once. A merged token is the mean of its members and stands in the place of the one they were merged into;
    the released code adds the mean of those that joined to the token they joined, and takes these tokens at equal steps
    from the first, not from the middles of equal runs.

    Args:
        keep: as for ``Pruner``.
        contextual: part of the budget for merged tokens, in [0, 1). Default 10 of 64, as in the paper.

    Raises:
        ValueError: ``contextual`` outside [0, 1).
    """

    contextual: float = 10 / 64

    name: ClassVar[str] = "visionzip"
    merges: ClassVar[bool] = True
    reads_saliency: ClassVar[bool] = True
    reads_keys: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.contextual < 1.0:  # NaN fails too
            raise ValueError(f"contextual must be in [0, 1), got {self.contextual!r}")

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Dominant tokens by saliency, contextual ones evenly among the rest, merged by the likeness of keys."""
        assert visual.saliency is not None and visual.keys is not None  # Pruner.select has seen to both
        score = visual.saliency.detach()
        kept, weights = dominant_and_contextual(score, visual.keys.detach(), budget, self.contextual)
        return Choice(kept, {SALIENCY: score}, weights=weights)
