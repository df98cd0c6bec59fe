"""Gemma 4 without an encoder: squares of pixels become tokens by a linear layer, each by itself."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.attention import Recorder
from foveate.models.encoded import Request
from foveate.models.gemma4 import Gemma4
from foveate.patches import Patch

WHY = "it has no vision encoder, squares of pixels go into the language model as they are"


class Gemma4Unified(Gemma4):
    """``Gemma4UnifiedForConditionalGeneration``. Methods that read text, diversity or places work."""

    title = "Gemma 4 unified"
    model_types = ("gemma4_unified",)
    merge = "1"
    saliency = "none"
    unread = {"saliency": WHY, "keys": WHY, "encoded": WHY}
    checkpoints = {"gemma4_unified": "google/gemma-4-12B-it"}

    @property
    def side(self) -> int:
        return 1

    @property
    def patch(self) -> int:
        return int(self.config.vision_config.model_patch_size)

    def recorder(self, request: Request, lengths: Sequence[int]) -> Recorder:
        return Recorder()

    def instruments(self) -> Sequence[Patch]:
        return []
