"""DeepStack: features of the encoder's earlier layers, which join deeper layers of the LLM at a token's place."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from foveate.modelling_files import beside
from foveate.models.encoded import Kept, Kind
from foveate.models.packed import PackedFamily


class DeepStackFamily(PackedFamily):
    """What families share whose ``get_image_features`` gives such planes: they are shortened with the tokens."""

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        depth = len(self.tower.deepstack_visual_indexes)
        planes: list[Any] = [[one.planes[level] for one in kept] for level in range(depth)]
        # Since 5.18, which takes encoded images from outside, a plane is a list of one tensor per image.
        if "mm_encoder_outputs" not in inspect.signature(self.base.forward).parameters:
            planes = [torch.cat(plane) for plane in planes]
        output = beside(self.base, "BaseModelOutputWithDeepstackFeatures")
        return output(pooler_output=[one.features for one in kept], deepstack_features=planes)
