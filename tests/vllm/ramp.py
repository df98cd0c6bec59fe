"""A method as another package would bring it: it reads what the encoder hands to the projector, every channel of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import foveate
from foveate.tokens import VisualTokens


@dataclass
class Ramp(foveate.Scorer):
    """The larger, the later the channels that are bright."""

    name: ClassVar[str] = "ramp"
    reads_encoded: ClassVar[bool] = True

    def score(self, visual: VisualTokens, text: Any) -> Mapping[str, Tensor]:
        assert visual.encoded is not None
        with torch.autocast(visual.features.device.type, enabled=False):
            values = visual.encoded.float()
            return {"ramp": values @ torch.linspace(-1, 1, values.shape[1], device=values.device)}
