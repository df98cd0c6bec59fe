"""Salient tokens, and others that are no duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import important_and_diverse
from foveate.pruners.base import SALIENCY, Choice, Pruner, require_count
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class VisPruner(Pruner):
    """Half by saliency, half what remains of the others without their duplicates: VisPruner (arXiv 2412.01818).

    That is the second version of the paper; the first is FasterVLM, here ``saliency``. Where the paper prunes every
    view on its own, all views of the image compete at once, and duplicates are found among projected tokens, not among
    those before the projector. The order in which tokens are paired is the released code's.

    Args:
        keep: as for ``Pruner``.
        important: part of the budget for salient tokens, in [0, 1]. Default 0.5.
        step: duplicates removed in a round, >= 1. Default 8.

    Raises:
        ValueError: ``important`` outside [0, 1], ``step`` < 1.
        TypeError: ``step`` is no int.
    """

    important: float = 0.5
    step: int = 8

    name: ClassVar[str] = "vispruner"
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.important <= 1.0:  # NaN fails too
            raise ValueError(f"important must be in [0, 1], got {self.important!r}")
        require_count(step=self.step)

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The most salient, then rounds of duplicate removal; ``similarity`` is the largest cosine to another."""
        assert visual.saliency is not None  # Pruner.select has refused tokens without
        score = visual.saliency.detach()
        kept, similarity = important_and_diverse(visual.features.detach(), score, budget, self.important, self.step)
        return Choice(kept, {SALIENCY: score, "similarity": similarity})
