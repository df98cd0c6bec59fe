"""AdaFV: saliency and the question, weighed anew for every image and question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.functional import adafv_split, released_mixture
from foveate.functional.common import require_known
from foveate.pruners.base import SALIENCY, TEXT_TO_IMAGE, Choice, Pruner
from foveate.pruners.text import ReadsText
from foveate.tokens import TextTokens, VisualTokens

VARIANTS = ("paper", "released")


@dataclass
class AdaFV(ReadsText, Pruner):
    """AdaFV (arXiv 2501.09532), AdaV in its ACL 2025 Findings version: the self-adaptive mixture.

    The budget is split between the most salient tokens and those the question points at most, so that the
    product of the two sides' masses is largest; each side has a quarter at least.

    Args:
        keep: as for ``Pruner``.
        min_share: part of the budget that each side has at least, in [0, 0.5]. Default 0.25.
        variant: ``"paper"``, or ``"released"``: what the authors' code does, with repeated tokens and a
            budget rounded down to an even number per view, for checking published numbers. It needs the full
            grid of every view and has its own floors, so ``min_share`` stays 0.25, and reads the released text, so
            ``text_span`` becomes ``"prompt"`` whatever is given.
        text_span, temperature, special_tokens: as for ``ReadsText``.

    Raises:
        ValueError: an unknown ``variant``, ``min_share`` outside [0, 0.5] or set beside
            ``variant="released"``.
    """

    min_share: float = 0.25
    variant: str = "paper"
    text_span: str = "turn"  # type: ignore[misc]
    temperature: float = 0.01
    special_tokens: bool = True

    name: ClassVar[str] = "adafv"
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(VARIANTS, variant=self.variant)
        if not 0.0 <= self.min_share <= 0.5:  # NaN fails too
            raise ValueError(f"min_share must be in [0, 0.5], got {self.min_share!r}")
        if self.variant == "released" and self.min_share != 0.25:
            raise ValueError("variant='released' has its floors fixed at a quarter: leave min_share at 0.25")
        self.exact = self.variant != "released"  # type: ignore[misc]
        if self.variant == "released":
            self.text_span = "prompt"

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The mixture of the chosen variant, and how many of the budget each side had.

        With overlapping sides the shares sum to more than the budget, since a token counts on both.

        Raises:
            ValueError: ``variant="released"`` on tokens that are not the full, equal grids of their views,
                or with a budget below two tokens per view.
        """
        assert visual.saliency is not None and text is not None  # Pruner.select has seen to both
        saliency = visual.saliency.detach()
        asked = self.text_to_image(visual, text)
        if self.variant == "released":
            _require_full_grids(visual)
            views = len(visual.geometry.grids)
            kept, k_s, k_t = released_mixture(saliency.reshape(views, -1), asked, budget)
        else:
            kept, k_s, k_t = adafv_split(saliency, asked, budget, self.min_share)
        return Choice(kept, {SALIENCY: saliency, TEXT_TO_IMAGE: asked}, {"saliency": k_s, "text": k_t})


def _require_full_grids(visual: VisualTokens) -> None:
    grids = visual.geometry.grids
    whole = sum(rows * columns for rows, columns in grids)
    if not visual.full_grid or len(set(grids)) != 1 or whole != len(visual):
        raise ValueError(
            "variant='released' needs every view's full grid, views of one size one after the other: with "
            "LLaVA-NeXT attach with layout='released', elsewhere use variant='paper'"
        )
