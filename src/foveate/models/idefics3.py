"""Idefics3 and SmolVLM: the tiles of an image and then the image as a whole, each a run of placeholders of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import projecting, recording, tapped_config
from foveate.models.base import Family
from foveate.models.encoded import (
    EncodedImage,
    Kept,
    Kind,
    Request,
    grid_geometry,
    read_tokens,
    recorder_for,
    tile_boxes,
)
from foveate.models.squares import square_sources, stacked
from foveate.models.tile_marks import tile_grids, tile_marks
from foveate.patches import Patch
from foveate.tokens import Geometry


@dataclass(frozen=True)
class View:
    """What of one tile, or of the whole image, is not padding: height and width in pixels, and which tile of all, those
    that are padding included."""

    height: int
    width: int
    place: int


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration``."""

    title = "Idefics3"
    model_types = ("idefics3",)
    checkpoints = {"idefics3": "HuggingFaceM4/Idefics3-8B-Llama3"}
    image_inputs = ("pixel_values", "pixel_attention_mask")
    merge = "pixel shuffle, scale_factor per side"
    views = "tiles + 1"
    crops = True
    saliency = "mean received attention, last layer"

    def check(self) -> None:
        self.attention = self.base.vision_model.encoder.layers[-1].self_attn
        self.patch = int(self.config.vision_config.patch_size)
        self.factor = int(self.base.connector.scale_factor)

    @property
    def first_block(self) -> nn.Module:
        block: nn.Module = self.base.vision_model.encoder.layers[0]
        return block

    def instruments(self) -> Sequence[Patch]:
        connector = self.base.connector
        return [
            Patch(self.attention, "config", tapped_config(self.attention)),
            Patch(connector, "forward", projecting(connector)),
        ]

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        return stacked(kept)

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
        size = self._tile_size(pixels, mask)
        side = size // self.patch
        views = self._views(pixels, mask)
        per_tile = (side // self.factor) ** 2
        grids = self._grids(request.prompt, per_tile, len(views))
        if request.views is not None:  # as one prompt of the tiles that are wanted
            places = torch.tensor([view.place for view in views], device="cpu")
            some = request.pick(places).to(pixels.device)
            pixels = pixels.flatten(0, 1)[some][None]
            mask = None if mask is None else mask.flatten(0, 1)[some.to(mask.device)][None]
        with recording(recorder_for(request, "received", self.attention, project=self.base.connector)) as record:
            output = request.features(pixels, pixel_attention_mask=mask, return_dict=True)
        tiles = output.pooler_output
        if not torch.is_tensor(tiles):  # in 5.23 an entry per prompt, its tiles one after the other
            tiles = torch.cat(list(tiles)).unflatten(0, (-1, per_tile))
        tiles = request.put(record, tiles)
        sources = square_sources((side, side), self.factor)
        counts = [rows * columns + 1 for rows, columns in grids]
        # Where some views are encoded after others, frames are pictures of one view each: none of them is a crop.
        prompt = request.prompt if request.views is None or request.views.whole else None
        films = [1] * len(grids) if prompt is None else self.films(prompt, grids)
        images, number, first = [], 0, 0
        for frames in films:
            grid, count = grids[number], sum(counts[number : number + frames])
            numbers = torch.arange(first, first + count, device="cpu")
            stream, ours = tiles[first : first + count].flatten(0, 1), views[first : first + count]
            geometry = self._geometry(grid if frames == 1 else (0, 0), size, ours, stream.device)
            geometry = geometry if frames == 1 else geometry.as_frames()
            patches = (sources + numbers[:, None, None] * side**2).flatten(0, 1)
            images.append(EncodedImage.of_patches(read_tokens(record, stream, geometry, patches)))
            number, first = number + frames, first + count
        return images

    def films(self, prompt: Tensor, grids: Sequence[tuple[int, int]]) -> list[int]:
        """How many of a call's pictures, one after the other, make up one: 1, or a video's frames. Here 1.

        Args:
            prompt: see ``Request``.
            grids: (rows, columns) of tiles of every picture.
        """
        return [1] * len(grids)

    def views_of(self, inputs: Mapping[str, Any], prompt: Tensor | None) -> list[tuple[int, ...]]:
        pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
        per_tile = (self._tile_size(pixels, mask) // self.patch // self.factor) ** 2
        found: list[tuple[int, ...]] = []
        first = 0
        for rows, columns in self._grids(prompt, per_tile, len(self._views(pixels, mask))):
            last = first + rows * columns
            found.append((last, *range(first, last)))
            first = last + 1
        return found

    def pixels_of(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
        places = torch.tensor([view.place for view in self._views(pixels, mask)], dtype=torch.int64, device="cpu")
        given = (pixels,) if mask is None else (pixels, mask)
        return tuple(one.flatten(0, 1)[places.to(one.device)] for one in given)

    def tokens_of_views(self, image: tuple[int, int], tokens: int) -> list[int]:
        per_tile = (self.config.vision_config.image_size // self.patch // self.factor) ** 2
        return [per_tile] * (tokens // per_tile)

    def marks(self, ids: Tensor) -> Tensor:
        return super().marks(ids) | tile_marks(ids, self.image_token_id)

    def _tile_size(self, pixels: Any, mask: Any) -> int:
        """Pixels per side of every tile, checked."""
        if not torch.is_tensor(pixels) or pixels.ndim != 5:
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (prompts, tiles, channels, height, width), "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        height, width = pixels.shape[-2:]
        if height != width or height // self.patch % self.factor or height < self.patch:
            raise ValueError(
                f"tiles of {height}x{width} pixels are {height // self.patch}x{width // self.patch} patches: pixel "
                f"shuffle needs squares with a multiple of {self.factor} to a side. Use the processor's own "
                "max_image_size."
            )
        wanted = (*pixels.shape[:2], height, width)
        if mask is not None and tuple(mask.shape) != wanted:
            raise ValueError(f"pixel_attention_mask must be {wanted} for these pixel_values, got {tuple(mask.shape)}")
        return int(height)

    def _views(self, pixels: Tensor, mask: Tensor | None) -> list[View]:
        """Every tile that is not padding (stock transformers drops tiles that are zero throughout), in order."""
        real = (pixels != 0).flatten(2).any(dim=-1).flatten()
        if mask is None:
            height, width = pixels.shape[-2:]
            return [View(height, width, place) for place in real.nonzero()[:, 0].tolist()]
        tiles = mask.flatten(0, 1).bool()
        extents = torch.stack([real, tiles.any(dim=2).sum(dim=1), tiles.any(dim=1).sum(dim=1)], dim=1)
        rows = enumerate(extents.tolist())  # one read for all
        return [View(height, width, place) for place, (there, height, width) in rows if there]

    def _grids(self, prompt: Tensor | None, per_tile: int, tiles: int) -> list[tuple[int, int]]:
        if prompt is None:
            raise ValueError(f"{self.title}: only the prompt says which tiles belong to one image, and there is none")
        grids = [grid for row in prompt for grid in tile_grids(row, self.image_token_id, per_tile)]
        standing = sum(rows * columns + 1 for rows, columns in grids)
        if standing != tiles:
            raise ValueError(
                f"the prompts hold {standing} runs of {per_tile} image placeholders ({len(grids)} image(s)), but "
                f"pixel_values hold {tiles} tiles that are not padding: pass all that the processor returned"
            )
        return grids

    def _geometry(self, grid: tuple[int, int], size: int, views: Sequence[View], device: torch.device) -> Geometry:
        """Tiles are views 1, 2, ... of a canvas without overlap; the whole image is view 0, stretched over it.

        The views of a video are its frames, in order; all are as large as the last.

        Patches cover a tile but for a rest narrower than one (27 x 14 of 384 pixels).
        """
        rows, columns = grid
        side = size // self.patch // self.factor
        covered = side * self.factor * self.patch
        whole = views[-1]
        if rows:  # only the last row and column can be padded
            seen = ((rows - 1) * size + views[-2].height, (columns - 1) * size + views[-2].width)
        else:
            seen = (whole.height, whole.width)
        tiles = tile_boxes(grid, size, covered)
        stretched = tiles.new_tensor([[0, 0, covered * seen[1] / whole.width, covered * seen[0] / whole.height]])
        boxes = torch.cat([tiles, stretched.expand(len(views) - len(tiles), -1)])
        found = grid_geometry([(side, side)] * len(views), boxes, seen, device)
        limit = found.boxes.new_tensor([seen[1], seen[0]] * 2)
        view = (found.view + 1) % len(views) if rows else found.view
        return replace(found, view=view, boxes=found.boxes.minimum(limit))
