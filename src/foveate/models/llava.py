"""LLaVA-1.5: one view, one run of placeholders; and Pixtral, which stock transformers loads as the same class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.attention import recording
from foveate.models.encoded import STAYS, EncodedImage, Kept, Kind, Request, grid_geometry, read_tokens
from foveate.models.pixtral import encode_packed, row_marks
from foveate.models.squares import stacked
from foveate.models.stock import accepted
from foveate.models.towers import PIXTRAL, TOWERS, Reading, Tower, TowerFamily
from foveate.tokens import Geometry


class Llava(TowerFamily):
    """``LlavaForConditionalGeneration`` with a CLIP, SigLIP or Pixtral tower."""

    title = "LLaVA-1.5"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    checkpoints = {"llava": "llava-hf/llava-1.5-7b-hf"}
    image_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
    )  # sizes with a Pixtral tower only
    saliency = "CLS row (CLIP), mean received attention (SigLIP, Pixtral)"

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, {**TOWERS, **PIXTRAL})

    @property
    def fixed_resolution(self) -> bool:
        return self.tower.kind not in PIXTRAL

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        name = self.image_inputs[0]
        pixels = inputs[name]
        if self.tower.kind in PIXTRAL:
            if inputs.get("image_sizes") is None and torch.is_tensor(pixels):  # as stock: every image fills its plane
                inputs = {**inputs, "image_sizes": [tuple(pixels.shape[-2:])] * len(pixels)}
            return encode_packed(self.tower, inputs, request, side=1)
        if not torch.is_tensor(pixels) or pixels.ndim != 4:
            raise ValueError(
                f"{self.title} takes {name} as one tensor (images, channels, height, width), "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        reading = self.reading(inputs)
        settings = {name: inputs.get(name) for name in ("vision_feature_layer", "vision_feature_select_strategy")}
        with recording(self.tower.recorder(reading, request)) as record:
            output = request.features(pixels, **accepted(request.features, settings), return_dict=True)
        sends_cls = self.tower.read == "cls" and reading.strategy == "full"
        geometry = self._geometry(pixels.shape[-2], pixels.shape[-1], pixels.device)
        patches = torch.arange(len(geometry), device="cpu")
        slots = torch.cat([patches.new_tensor([STAYS]), patches]) if sends_cls else patches
        images = []
        for number, stream in enumerate(output.pooler_output):
            sources = patches + number * len(patches)
            tokens = read_tokens(record, stream[1:] if sends_cls else stream, geometry, sources)
            images.append(EncodedImage(tokens, len(slots), slots, None, stream))
        return images

    def reading(self, inputs: Mapping[str, Any]) -> Reading:
        """How a call reads the tower."""
        return self.tower.reading(inputs)

    def marks(self, ids: Tensor) -> Tensor:
        known = super().marks(ids)
        return known | row_marks(ids, self.image_token_id) if self.tower.kind in PIXTRAL else known

    def _geometry(self, height: int, width: int, device: torch.device, frames: int = 1) -> Geometry:
        size = self.config.vision_config.patch_size
        grid = (height // size, width // size)
        boxes = torch.tensor([[0, 0, grid[1] * size, grid[0] * size]], device="cpu").expand(frames, -1)
        # CLIP's image processor cuts the centre out, SigLIP's stretches the picture to a square.
        cropped = self.tower.kind == "clip_vision_model"
        return grid_geometry([grid] * frames, boxes, (height, width), device, cropped=cropped)


class VipLlava(Llava):
    """``VipLlavaForConditionalGeneration``: several layers of a CLIP tower, one behind the other, without CLS."""

    title = "ViP-LLaVA"
    model_types = ("vipllava",)
    checkpoints = {"vipllava": "llava-hf/vip-llava-7b-hf"}
    image_inputs = ("pixel_values",)
    saliency = "CLS row, the deepest layer that is read"

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, {"clip_vision_model": "cls"})

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        super().refuse(inputs)
        for name in ("vision_feature_layer", "vision_feature_layers"):
            if inputs.get(name) is not None:
                raise ValueError(
                    f"{self.title}: {name} as an argument of a call has had another name in every version of "
                    "transformers: set it in the model's config"
                )

    def reading(self, inputs: Mapping[str, Any]) -> Reading:
        return self.tower.reading({"vision_feature_select_strategy": "default"})

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        return stacked(kept)
