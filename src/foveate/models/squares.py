"""Square views: squares of patches that become one token, and families that see every image stretched to one square."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.attention import recording
from foveate.models.encoded import EncodedImage, Kept, Kind, Request, grid_geometry, read_tokens
from foveate.models.towers import Reading, Tower, TowerFamily
from foveate.tokens import Geometry


def square_sources(grid: tuple[int, int], factor: int) -> Tensor:
    """(n, m) int64: the patches of every token where squares of ``factor`` x ``factor`` of them become one, row by row.

    Args:
        grid: (rows, columns) of patches. What does not fill a square at the right and lower edge is in none.
        factor: patches per side of a token.
    """
    places = torch.arange(grid[0] * grid[1], device="cpu").view(grid)
    return places.unfold(0, factor, factor).unfold(1, factor, factor).reshape(-1, factor**2)


def packed_squares(grids: Sequence[tuple[int, int, int]], factor: int) -> Tensor:
    """(n, m) int64: the same for frames of several grids, packed one behind the other with their patches row by row.

    Args:
        grids: (frames, rows, columns) of patches.
        factor: patches per side of a token.
    """
    found, first = [], 0
    for frames, rows, columns in grids:
        starts = first + rows * columns * torch.arange(frames, device="cpu")
        found.append((starts[:, None, None] + square_sources((rows, columns), factor)).flatten(0, 1))
        first += frames * rows * columns
    return torch.cat(found)


def clipped(geometry: Geometry) -> Geometry:
    """The same where boxes end at the picture's edges, and those of padding, beyond them, are empty."""
    boxes = geometry.boxes
    height, width = geometry.image_size
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
    empty = (inside[:, 2:] <= inside[:, :2]).any(dim=1, keepdim=True)
    return dataclasses.replace(geometry, boxes=torch.where(empty, inside[:, 2:].repeat(1, 2), inside))


def stacked(kept: Sequence[Kept]) -> Any:
    """The kept tokens (m in all) as (m, 1, D), for models that expect one tensor (tiles, tokens, D) for all images.

    Tiles of one token each: images that keep different numbers of them still make one tensor, and beam search, which
    repeats whole tiles, still finds the border between prompts.
    """
    together = torch.cat([one.features for one in kept])[:, None]
    return BaseModelOutputWithPooling(pooler_output=together)  # type: ignore[arg-type]


class SquareFamily(TowerFamily):
    """Families whose SigLIP tower sees every image stretched to one square, and is read at its last layer."""

    saliency = "mean received attention, last layer"

    @property
    def fixed_resolution(self) -> bool:
        return True

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, {"siglip_vision_model": "received"})

    @property
    def factor(self) -> int:
        """Patches per side of the square that is pooled to one token."""
        return 1

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels = inputs["pixel_values"]
        size = self.config.vision_config.image_size
        if not torch.is_tensor(pixels) or pixels.ndim != 4 or pixels.shape[-2:] != (size, size):
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (images, channels, {size}, {size}), "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        reading = Reading(len(self.tower.layers) - 1, "full", normed=True)
        with recording(self.tower.recorder(reading, request)) as record:
            output = request.features(**{name: inputs[name] for name in self.image_inputs}, return_dict=True)
        sources = square_sources((self.tower.side,) * 2, self.factor)
        images = []
        geometries = self.geometries(inputs)
        for number, stream in enumerate(output.pooler_output):
            ours = sources + number * self.tower.side**2
            tokens = read_tokens(record, stream, geometries[number], ours)
            images.append(EncodedImage.of_patches(tokens))
        return images

    def geometries(self, inputs: Mapping[str, Any]) -> list[Geometry]:
        """Where the tokens of every image lie: in its square, all of which is the picture."""
        pixels = inputs["pixel_values"]
        size, side = pixels.shape[-1], self.tower.side // self.factor
        seen = side * self.factor * self.config.vision_config.patch_size
        boxes = torch.tensor([[0, 0, seen, seen]], device="cpu")
        return [grid_geometry([(side, side)], boxes, (size, size), pixels.device)] * len(pixels)

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        return stacked(kept)
