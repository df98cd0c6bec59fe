"""Families that cut an image into square tiles and hand the tiles of all images over as one flat batch.

``pixel_values`` does not say which tiles are one image; the prompt does, since every image is written there with marks
of its own around or between its tiles.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from foveate.attention import Recorder, recording
from foveate.models.encoded import EncodedImage, Kept, Kind, Request, grid_geometry, read_tokens, tile_boxes
from foveate.models.squares import clipped, square_sources, stacked
from foveate.models.stock import accepted
from foveate.models.towers import TowerFamily
from foveate.tokens import Geometry

CELLS = 28
"""Cells per side of the whole view when tiles are compared with it; the tiles of known checkpoints divide by it."""


@dataclass(frozen=True)
class Cut:
    """How a prompt writes one image.

    Args:
        tiles: how many tiles it is.
        grid: (rows, columns) of the crops; None where the prompt does not say.
        film: whether it is a video, and its tiles are the frames.
    """

    tiles: int
    grid: tuple[int, int] | None = None
    film: bool = False


class TiledFamily(TowerFamily):
    """What such families share: crops row by row, and the whole image once more when there are several."""

    merge = "2x2"
    views = "crops + 1"
    crops = True
    whole_first: ClassVar[bool] = False
    """Whether the whole image comes before its crops, or after them."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """How many of the encoder's patches, along a side, make one token."""

    @abstractmethod
    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        """The images of one prompt, in order.

        Args:
            row: (S,) int64 ids on the CPU, -1 where not to be looked at.
            per_tile: tokens of one tile.

        Raises:
            ValueError: the placeholders cannot be tiles of images.
        """

    def joined(self, row: Tensor, cuts: list[Cut]) -> list[Cut]:
        """The same with all frames of a video as one. Here there are none."""
        return cuts

    def recorder(self, inputs: Mapping[str, Any], request: Request) -> Recorder:
        """What taps the encoder in one call."""
        reading = self.tower.reading(inputs)
        if self.tower.read == "cls" and reading.strategy == "full":
            raise ValueError(
                "vision_feature_select_strategy='full' sends CLS along with the patches, which stock "
                f"{self.title} cannot arrange in a square. Set it to 'default'."
            )
        return self.tower.recorder(reading, request)

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels = inputs["pixel_values"]
        side, _ = self._side(pixels)
        # Where some views are encoded after others, frames are pictures of one view each: none of them is a crop.
        cuts = self._read(request.prompt, side**2, len(pixels), films=request.views is None or request.views.whole)
        return self.encode_cuts(inputs, request, cuts)

    def encode_cuts(self, inputs: Mapping[str, Any], request: Request, cuts: Sequence[Cut]) -> list[EncodedImage]:
        """``encode`` where it is known which tiles are one image."""
        pixels = inputs["pixel_values"]
        side, covered = self._side(pixels)
        with recording(self.recorder(inputs, request)) as record:
            options = {name: inputs.get(name) for name in ("vision_feature_layer", "vision_feature_select_strategy")}
            output = request.features(request.pick(pixels), **accepted(request.features, options), return_dict=True)
        handed = request.put(record, self.handed(output))
        features = self.projected(handed)
        squares = square_sources((side * self.factor,) * 2, self.factor)
        sources = squares + torch.arange(len(pixels), device="cpu")[:, None, None] * (side * self.factor) ** 2
        tiles = [cut.tiles for cut in cuts]
        grids = self._grids(cuts, pixels.split(tiles))
        extents = self.extents(grids, pixels.split(tiles))
        images = []
        for number, (stream, squares) in enumerate(zip(features.split(tiles), sources.split(tiles), strict=True)):
            ours = squares.flatten(0, 1)
            if cuts[number].film:
                seen = torch.tensor([[0, 0, covered, covered]], device="cpu").expand(len(stream), -1)
                geometry = grid_geometry([(side, side)] * len(stream), seen, (pixels.shape[-1],) * 2, stream.device)
                geometry = geometry.as_frames()
            else:
                geometry = self._geometry(
                    grids[number], extents[number], len(stream), side, pixels.shape[-1], covered, stream.device
                )
            # rows and columns apart in older versions of Aya Vision
            tokens = read_tokens(record, stream.flatten(0, -2), geometry, ours)
            images.append(EncodedImage.of_patches(tokens))
        if handed is features:
            return images
        given = [one.flatten(0, -2) for one in handed.split(tiles)]
        return [dataclasses.replace(image, handed=one) for image, one in zip(images, given, strict=True)]

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        patch = self.config.vision_config.patch_size
        return int(patch if isinstance(patch, int) else patch[0])

    def handed(self, output: Any) -> Tensor:
        """(tiles, ..., W): of what ``get_image_features`` gives, what becomes tokens."""
        features: Tensor = output.pooler_output
        return features

    def projected(self, handed: Tensor) -> Tensor:
        """(tiles, ..., D): what the model's forward makes of that on its way into the prompt."""
        return handed

    def extents(self, grids: Sequence[tuple[int, int]], views: Sequence[Tensor]) -> list[tuple[int, int]]:
        """(height, width) in a tile's pixels of what of every image's crops, put together, is the picture: all.

        Args:
            grids: (rows, columns) of every image's crops.
            views: (tiles, channels, side, side) pixels of every image.
        """
        sides = [tiles.shape[-1] for tiles in views]
        return [(rows * side, columns * side) for (rows, columns), side in zip(grids, sides, strict=True)]

    def views_of(self, inputs: Mapping[str, Any], prompt: Tensor | None) -> list[tuple[int, ...]]:
        side, _ = self._side(inputs["pixel_values"])
        found: list[tuple[int, ...]] = []
        first = 0
        for cut in self._read(prompt, side**2, len(inputs["pixel_values"]), films=False):
            places = list(range(first, first + cut.tiles))
            first += cut.tiles
            found.append(tuple(places if self.whole_first else [places[-1], *places[:-1]]))
        return found

    def pixels_of(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return (inputs["pixel_values"],)

    def tokens_of_views(self, image: tuple[int, int], tokens: int) -> list[int]:
        per_tile = (self.tower.side // self.factor) ** 2
        return [per_tile] * (tokens // per_tile)

    def _side(self, pixels: Any) -> tuple[int, int]:
        """Tokens along a tile's side, and how many of its pixels they see; checked."""
        if not torch.is_tensor(pixels) or pixels.ndim != 4 or pixels.shape[-1] != pixels.shape[-2]:
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (tiles of all images, channels, side, side), "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        patch = self.patch
        side, rest = divmod(pixels.shape[-1] // patch, self.factor)
        if rest or not side:
            raise ValueError(
                f"{self.title}: tiles of {pixels.shape[-1]} pixels are not a whole number of {self.factor}x"
                f"{self.factor} squares of patches of {patch} pixels; use the checkpoint's own image processor"
            )
        return side, side * self.factor * patch

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        return stacked(kept)

    def marks(self, ids: Tensor) -> Tensor:
        """Also the tokens right before and after each run of placeholders: the start, end and tags of tiles."""
        return super().marks(ids) | around(ids == self.image_token_id)

    def _read(self, prompt: Tensor | None, per_tile: int, tiles: int, *, films: bool) -> list[Cut]:
        if prompt is None:
            raise ValueError(f"{self.title}: only the prompt tells which tiles are one image; encode with a prompt")
        written = [(row, self.cuts(row, per_tile)) for row in prompt]
        cuts = [cut for row, ours in written for cut in (self.joined(row, ours) if films else ours)]
        if sum(cut.tiles for cut in cuts) != tiles:
            raise ValueError(
                f"the prompts hold placeholders for {sum(cut.tiles for cut in cuts)} tiles of {len(cuts)} image(s), "
                f"but pixel_values brings {tiles} tiles. Pass every image with its prompt through the model's own "
                "processor, with one image token in the text for each image."
            )
        return cuts

    def _grids(self, cuts: Sequence[Cut], views: Sequence[Tensor]) -> list[tuple[int, int]]:
        """(rows, columns) of every image's crops. Where the prompt does not tell, the whole view does: only in the
        right arrangement do the crops look like it. (Crops that fit in any, of one colour, get the squarest.)"""
        options = [[cut.grid] if cut.grid else [(1, 1)] if cut.film else arrangements(cut.tiles) for cut in cuts]
        asked = [number for number, known in enumerate(options) if len(known) > 1]
        apart = [(views[n][1:], views[n][0]) if self.whole_first else (views[n][:-1], views[n][-1]) for n in asked]
        best = [misfits(*parts, options[number]).argmin() for number, parts in zip(asked, apart, strict=True)]
        choice = dict(zip(asked, torch.stack(best).tolist() if best else [], strict=True))  # one read for all
        return [known[choice.get(number, 0)] for number, known in enumerate(options)]

    def _geometry(
        self, grid: tuple[int, int], extent: tuple[int, int], tiles: int, side: int, pixels: int, covered: int,
        device: torch.device,
    ) -> Geometry:  # fmt: skip
        """View 0 is the whole image, wherever it comes; a tile's pixels are the unit, and ``covered`` of them seen."""
        height, width = extent
        crops = tile_boxes(grid, pixels, covered)
        seen = covered / pixels
        boxes = torch.cat([crops.new_tensor([[0, 0, width * seen, height * seen]]), crops])[-tiles:]
        geometry = grid_geometry([(side, side)] * tiles, boxes, extent, device)
        if extent != (grid[0] * pixels, grid[1] * pixels):  # the rest is padding
            geometry = clipped(geometry)
        if self.whole_first:
            return geometry
        order = torch.arange(len(geometry), device=device).roll(-(side**2))
        places = {name: getattr(geometry, name)[order] for name in ("view", "row", "column", "boxes")}
        return dataclasses.replace(geometry, **places)


def single_tiles(
    images: Sequence[Sequence[tuple[int, int]]], row: Tensor, per_tile: int, mark: str, last: str
) -> list[Cut]:
    """How a prompt writes images every tile of which is a run of its own.

    Args:
        images: (first, past the last) column of every tile, image by image.
        row: (S,) int64 ids of the prompt.
        per_tile: tokens of one tile.
        mark: what keeps tiles apart, for errors.
        last: what follows the last one, for errors.

    Raises:
        ValueError: tiles that are not apart, or a prompt that breaks off after one.
    """
    for first, end in (run for image in images for run in image):
        if end - first != per_tile:
            raise ValueError(
                f"{end - first} placeholders stand together where a tile has {per_tile}: every tile needs its {mark}, "
                "as the model's own processor writes it"
            )
        if end == len(row):
            raise ValueError(
                f"the prompt breaks off after a tile, without the {last}: pass all that the processor returned"
            )
    return [Cut(len(image)) for image in images]


def around(spots: Tensor) -> Tensor:
    """(B, S) bool: what of a prompt stands right before or after placeholders, or between two.

    Args:
        spots: (B, S) bool, where the placeholders are.
    """
    found = torch.zeros_like(spots)
    found[:, 1:] |= spots[:, :-1]
    found[:, :-1] |= spots[:, 1:]
    return found


def runs_of(row: Tensor, token: int) -> list[tuple[int, int]]:
    """(first, past the last) column of every unbroken run of ``token`` in (S,) ids."""
    steps = torch.nn.functional.pad((row == token).long(), (1, 1)).diff()
    return list(zip((steps == 1).nonzero()[:, 0].tolist(), (steps == -1).nonzero()[:, 0].tolist(), strict=True))


def arrangements(tiles: int) -> list[tuple[int, int]]:
    """(rows, columns) of crops there may be when one of ``tiles`` is the whole view, the squarest first."""
    crops = max(1, tiles - 1)
    found = [(rows, crops // rows) for rows in range(1, crops + 1) if crops % rows == 0]
    return sorted(found, key=lambda grid: abs(grid[0] - grid[1]))


def misfits(crops: Tensor, whole: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """(G,) float32: mean squared difference between crops put together in each arrangement and the whole view.

    Args:
        crops: (T, C, S, S) pixels.
        whole: (C, S, S) pixels.
        grids: (rows, columns) with rows x columns = T each.
    """
    cells = adaptive_avg_pool2d(crops.float(), CELLS)
    wanted = adaptive_avg_pool2d(whole.float(), CELLS)
    found = []
    for rows, columns in grids:
        stitched = cells.view(rows, columns, -1, CELLS, CELLS).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2)
        found.append((adaptive_avg_pool2d(stitched, CELLS) - wanted).square().mean())
    return torch.stack(found)
