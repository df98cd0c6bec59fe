"""LLaVA-1.5: one view, one run of placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from foveate.attention import recording
from foveate.models.base import STAYS, EncodedImage, Layout
from foveate.models.towers import TowerFamily
from foveate.tokens import Geometry, VisualTokens


class Llava(TowerFamily):
    """``LlavaForConditionalGeneration`` with a CLIP or SigLIP tower."""

    title = "LLaVA-1.5"
    model_types = ("llava",)
    views = "1"

    def encode(
        self, inputs: Mapping[str, Any], *, saliency: bool, layout: Layout, features: Callable[..., Any]
    ) -> list[EncodedImage]:
        pixels = inputs["pixel_values"]
        if not torch.is_tensor(pixels) or pixels.ndim != 4:
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (images, channels, height, width), "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        reading = self.tower.reading(inputs)
        with recording(self.tower.recorder(reading, saliency)) as record:
            output = features(
                pixel_values=pixels,
                vision_feature_layer=inputs.get("vision_feature_layer"),
                vision_feature_select_strategy=inputs.get("vision_feature_select_strategy"),
                return_dict=True,
            )
        sends_cls = self.tower.read == "cls" and reading.strategy == "full"
        geometry = self._geometry(pixels.shape[-2], pixels.shape[-1], pixels.device)
        patches = torch.arange(len(geometry))
        slots = torch.cat([torch.tensor([STAYS]), patches]) if sends_cls else patches
        images = []
        for number, stream in enumerate(output.pooler_output):
            tokens = VisualTokens(
                features=stream[1:] if sends_cls else stream,
                geometry=geometry,
                saliency=record.attention[number].to(stream.device) if saliency else None,
                full_grid=True,
            )
            images.append(EncodedImage(tokens, len(slots), slots, None, stream))
        return images

    def _geometry(self, height: int, width: int, device: torch.device) -> Geometry:
        size = self.config.vision_config.patch_size
        rows, columns = height // size, width // size
        row, column = torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
        )
        row, column = row.flatten(), column.flatten()
        boxes = torch.stack([column, row, column + 1, row + 1], dim=1).float() * size
        return Geometry(torch.zeros_like(row), row, column, boxes, (height, width), ((rows, columns),), cropped=True)
