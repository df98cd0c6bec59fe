"""Janus, Janus-Pro: as DeepSeek-VL with an encoder class of its own, where it answers with text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from foveate.models.deepseek_vl import DeepseekVl
from foveate.models.tiles import around


class Janus(DeepseekVl):
    """``JanusForConditionalGeneration``. What draws pictures (``vqmodel``, ``generation_*``) is left alone."""

    title = "Janus"
    model_types = ("janus",)
    encoder = "janus_vision_model"
    checkpoints = {"janus": "deepseek-community/Janus-Pro-1B"}

    def refuse_generation(self, arguments: Mapping[str, Any]) -> None:
        mode = arguments.get("generation_mode", "text")
        if mode != "text":
            raise ValueError(
                f"generation_mode={mode!r}: {self.title} draws from the prompt alone and looks at no picture, so there "
                "is nothing to prune. Leave the pixels out to draw, or ask in the mode 'text'."
            )
        if arguments.get("logits_processor"):
            raise ValueError(
                f"{self.title}: its own generate passes no logits_processor on when it answers with text, so that none "
                "would ever be called (foveate.AskAgain asks with one). Leave it out."
            )

    def marks(self, ids: Tensor) -> Tensor:
        """Also the start and end of every picture, which no config names."""
        return super().marks(ids) | around(ids == self.image_token_id)
