"""Gemma 3: SigLIP patches averaged to few tokens, blocks of them that see each other in the LLM."""

from __future__ import annotations

from foveate.models.squares import SquareFamily


class Gemma3(SquareFamily):
    """``Gemma3ForConditionalGeneration``. Pan-and-scan crops are images of their own, as in its prompts.

    An image's tokens see each other in both directions: ``token_type_ids`` say where, and are shortened with the
    prompt. The marks around every image (``boi``, ``eoi``) stay, so blocks never grow together.
    """

    title = "Gemma 3"
    model_types = ("gemma3", "shieldgemma2")
    checkpoints = {
        "gemma3": "google/gemma-3-4b-it",
        "shieldgemma2": "google/shieldgemma-2-4b-it (by AutoModelForImageTextToText)",
    }
    merge = "average pool to mm_tokens_per_image"

    def check(self) -> None:
        super().check()
        if self.tower.side < self.base.multi_modal_projector.tokens_per_side:
            raise ValueError(
                f"{self.title}: mm_tokens_per_image={self.config.mm_tokens_per_image} is more than the "
                f"{self.tower.side}x{self.tower.side} patches there are"
            )

    @property
    def factor(self) -> int:
        return int(self.base.multi_modal_projector.kernel_size)
