"""PaliGemma: SigLIP patches as they are; image and question see each other in the LLM."""

from __future__ import annotations

from foveate.models.squares import SquareFamily


class PaliGemma(SquareFamily):
    """``PaliGemmaForConditionalGeneration``.

    The prompt is read in both directions where ``token_type_ids`` are 0 (the prefix); they are shortened with it.
    """

    title = "PaliGemma"
    model_types = ("paligemma",)
    checkpoints = {"paligemma": "google/paligemma2-3b-mix-448"}
    first_position = 1
    chats = False
