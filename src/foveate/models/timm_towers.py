"""Families whose encoder comes from timm: no attention behind transformers' functions, so no saliency and no keys.

timm itself is not needed to import this: a model that has such an encoder has brought it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.attention import Recorder, projecting, recording, skippable
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Kept, Kind, Request, grid_geometry, read_tokens, recorder_for
from foveate.models.squares import stacked
from foveate.models.tiles import Cut, TiledFamily
from foveate.patches import Patch

REASON = "its vision encoder comes from timm, outside transformers' attention functions"
TOWERS = ("timm_wrapper", "gemma3n_vision")


class TimmFamily(Family):
    """What they share: what the projector reads is all there is to read."""

    unread = {"saliency": REASON, "keys": REASON}
    saliency = "none: encoder from timm"

    def check(self) -> None:
        kind = self.config.vision_config.model_type
        if kind not in TOWERS:
            raise ValueError(
                f"vision tower {kind!r} is not supported in a {self.config.model_type!r} model; known: "
                f"{', '.join(TOWERS)}"
            )

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """What reads the encoder's features, a row per patch."""

    def instruments(self) -> Sequence[Patch]:
        patches = [Patch(self.projector, "forward", projecting(self.projector))]
        return [*patches, *(Patch(part, "forward", skippable(part)) for part in self.skipped)]

    @property
    def skipped(self) -> Sequence[nn.Module]:
        """Parts of the encoder whose output nobody reads."""
        return ()

    def recorder_of(self, request: Request) -> Recorder:
        """A recorder that taps no attention, whatever is asked for."""
        request = dataclasses.replace(request, saliency=False, keys=False)
        return recorder_for(request, "received", self.projector, project=self.projector, skip=self.skipped)

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        return stacked(kept)


class TimmSquare(TimmFamily):
    """Those that see every picture as one square, of which each cell of the encoder's last map is a token."""

    cropped: ClassVar[bool] = False
    """Whether that square is the centre of the picture, or all of it, stretched."""

    @property
    def fixed_resolution(self) -> bool:
        return True

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels = inputs["pixel_values"]
        if not torch.is_tensor(pixels) or pixels.ndim != 4 or pixels.shape[-1] != pixels.shape[-2]:
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (images, channels, side, side), "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        with recording(self.recorder_of(request)) as record:
            output = request.features(pixel_values=pixels, return_dict=True)
        features = output.pooler_output
        side, size = math.isqrt(features.shape[1]), pixels.shape[-1]
        if side**2 != features.shape[1]:
            raise ValueError(
                f"{self.title}: the vision encoder makes {features.shape[1]} tokens of a square of {size} pixels, "
                "which are no square themselves: where they lie is not known"
            )
        box = torch.tensor([[0, 0, size, size]], device="cpu")
        geometry = grid_geometry([(side, side)], box, (size, size), pixels.device, cropped=self.cropped)
        sources = torch.arange(side**2, device="cpu")
        return [
            EncodedImage.of_patches(read_tokens(record, stream, geometry, sources + number * side**2))
            for number, stream in enumerate(features)
        ]


class FastVlm(TimmSquare):
    """``FastVlmForConditionalGeneration``: FastViTHD, a convolution's 16 x 16 cells of 64 pixels as released."""

    title = "FastVLM"
    model_types = ("fast_vlm",)
    checkpoints = {"fast_vlm": "KamilaMila/FastVLM-0.5B"}
    cropped = True

    @property
    def projector(self) -> nn.Module:
        module: nn.Module = self.base.multi_modal_projector
        return module

    @property
    def skipped(self) -> Sequence[nn.Module]:
        """The head, which pools for a classifier."""
        head = getattr(self.base.vision_tower.timm_model, "head", None)
        return [head] if isinstance(head, nn.Module) else []

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        super().refuse(inputs)
        for name, only in (("vision_feature_layer", -1), ("vision_feature_select_strategy", "full")):
            if inputs.get(name) not in (None, only):
                raise ValueError(f"{self.title}: {name}={inputs[name]!r} is not supported by the model: {only!r} is")


class Gemma3n(TimmSquare):
    """``Gemma3nForConditionalGeneration``: MobileNet-V5. What is heard stays as it is."""

    title = "Gemma 3n"
    model_types = ("gemma3n",)
    checkpoints = {"gemma3n": "google/gemma-3n-E4B-it"}

    @property
    def projector(self) -> nn.Module:
        module: nn.Module = self.base.embed_vision
        return module

    @property
    def structure_token_ids(self) -> frozenset[int]:
        """Also what stands for sound and marks it."""
        names = ("audio_token_id", "boa_token_id", "eoa_token_id")
        return super().structure_token_ids | {int(getattr(self.config, name)) for name in names}


class PerceptionLm(TimmFamily, TiledFamily):
    """``PerceptionLMForConditionalGeneration``: the whole picture, then tiles, all pictures of a call as many."""

    title = "PerceptionLM"
    model_types = ("perception_lm",)
    checkpoints = {"perception_lm": "facebook/Perception-LM-1B"}
    views = "1 + crops"
    crops = False
    whole_first = True

    @property
    def projector(self) -> nn.Module:
        module: nn.Module = self.base.multi_modal_projector
        return module

    @property
    def factor(self) -> int:
        return int(self.config.projector_pooling_ratio)

    @property
    def first_block(self) -> None:
        """Not known."""
        return None

    def recorder(self, inputs: Mapping[str, Any], request: Request) -> Recorder:
        return self.recorder_of(request)

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels = inputs["pixel_values"]
        if not torch.is_tensor(pixels) or pixels.ndim != 5:
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (images, tiles, channels, side, side), "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )

        def features(tiles: Tensor, **more: Any) -> Any:
            return request.features(tiles[None], **more)

        cuts = [Cut(pixels.shape[1])] * len(pixels)
        flat = {**inputs, "pixel_values": pixels.flatten(0, 1)}
        return self.encode_cuts(flat, dataclasses.replace(request, features=features), cuts)

    @property
    def patch(self) -> int:
        tower: Any = self.base.vision_tower.timm_model
        size = getattr(getattr(tower, "patch_embed", None), "patch_size", None)
        if size is None:
            raise ValueError(f"{self.title}: {type(tower).__name__} does not say how large its patches are")
        return int(size if isinstance(size, int) else size[0])

    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        raise NotImplementedError(f"{self.title}: pixel_values say how many tiles a picture has")

    def marks(self, ids: Tensor) -> Tensor:
        """Nothing stands around its pictures."""
        return Family.marks(self, ids)
