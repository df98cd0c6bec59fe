"""LFM2-VL: SigLIP 2 on images in their own proportions, filled up; large ones as tiles and, behind them, the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import handing, recording, skippable, tapped_config
from foveate.models.base import Family
from foveate.models.encoded import (
    EncodedImage,
    Request,
    grid_geometry,
    read_sizes,
    read_tokens,
    recorder_for,
    tile_boxes,
)
from foveate.models.padded import require_patches, unpadded
from foveate.models.squares import square_sources
from foveate.models.stock import require_encoded_apart
from foveate.models.tiles import around, arrangements
from foveate.models.views_in_prompt import Run, marked_runs, pictures, whole_last
from foveate.patches import Patch
from foveate.tokens import Geometry

MOST = 10
"""Rows, and columns, of tiles that the vocabulary has tags for."""


class Lfm2Vl(Family):
    """``Lfm2VlForConditionalGeneration``."""

    title = "LFM2-VL"
    model_types = ("lfm2_vl",)
    image_inputs = ("pixel_values", "spatial_shapes", "pixel_attention_mask")
    merge = "2x2"
    views = "tiles + 1"
    saliency = "mean received attention, last layer"
    since = "5.19"
    checkpoints = {"lfm2_vl": "LiquidAI/LFM2-VL-1.6B"}

    def check(self) -> None:
        require_encoded_apart(self.title, self.base)
        tower = self.base.vision_tower
        if self.config.vision_config.model_type != "siglip2_vision_model":
            raise ValueError(
                f"vision tower {self.config.vision_config.model_type!r} is not supported in a {self.title} model; "
                "known: siglip2_vision_model"
            )
        # The path lost its ``vision_model`` level before transformers 5.24.
        self.tower = getattr(tower, "vision_model", tower)
        self.side = int(self.config.downsample_factor)

    @property
    def _attention(self) -> nn.Module:
        attention: nn.Module = self.tower.encoder.layers[-1].self_attn
        return attention

    def instruments(self) -> Sequence[Patch]:
        tower = self.base.vision_tower
        head = getattr(self.tower, "head", None)
        return [
            Patch(self._attention, "config", tapped_config(self._attention)),
            Patch(tower, "forward", handing(tower, lambda output: output.last_hidden_state)),
            *([] if head is None else [Patch(head, "forward", skippable(head))]),
        ]

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        sizes = self._sizes(inputs)
        patches = [rows * columns for rows, columns in sizes]
        lengths = [count // self.side**2 for count in patches]
        images = pictures(self.title, request.prompt, self.image_token_id, lengths, self._same_picture)
        head = getattr(self.tower, "head", None)
        recorder = recorder_for(
            request,
            "received",
            self._attention,
            skip=[] if head is None else [head],
            project=self.base.vision_tower,
            patches=unpadded(patches),
            segments=patches,
        )
        with recording(recorder) as record:
            output = request.features(**{name: inputs[name] for name in self.image_inputs}, return_dict=True)
        streams = output.pooler_output
        found, view, patch = [], 0, 0
        for runs in images:
            ours = slice(view, view + len(runs))
            view += len(runs)
            sources = []
            for size in sizes[ours]:
                sources.append(patch + square_sources(size, self.side))
                patch += size[0] * size[1]
            stream = torch.cat(list(streams[ours]))
            geometry = self._geometry(runs, sizes[ours], stream.device)
            found.append(EncodedImage.of_patches(read_tokens(record, stream, geometry, torch.cat(sources))))
        return found

    @staticmethod
    def _same_picture(first: Run, run: Run, before: Run) -> bool:
        """Between tiles, and before the whole, stands a tag alone; between images an end and a start at least."""
        return run.first - before.end == 1

    def _sizes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """(rows, columns) of the patches of every view, checked."""
        pixels, given, mask = (inputs.get(name) for name in self.image_inputs)
        require_patches(self.title, "pixel_values", pixels, "spatial_shapes", given, 2)
        if mask is None:
            raise ValueError(
                f"{self.title} needs pixel_attention_mask beside pixel_values: pass all that the processor returned"
            )
        sizes = read_sizes(given)
        there = mask.sum(dim=1).tolist()
        filled = bool((mask[:, 1:] > mask[:, :-1]).any())
        for (rows, columns), patches in zip(sizes, there, strict=True):
            if filled or rows * columns != patches or rows % self.side or columns % self.side:
                raise ValueError(
                    f"{self.title} takes views as its processor makes them: sides that are a multiple of {self.side} "
                    f"patches, filled up behind; got spatial_shapes {sizes} and masks of {there} patches"
                )
        return sizes

    def _geometry(self, runs: Sequence[Run], sizes: Sequence[tuple[int, int]], device: torch.device) -> Geometry:
        """Tiles are views 1, 2, ... and touch each other; the whole image, where it comes behind them, is view 0."""
        patch = int(self.config.vision_config.patch_size)
        cells = [(rows // self.side, columns // self.side) for rows, columns in sizes]
        rows, columns = tile_grid([run.mark for run in runs], sizes) if len(runs) > 1 else (1, 1)
        size = (rows * sizes[0][0] * patch, columns * sizes[0][1] * patch)
        tiles = tile_boxes((rows, columns), 1, 1) * torch.tensor(
            [sizes[0][1] * patch, sizes[0][0] * patch] * 2, dtype=torch.float64, device="cpu"
        )
        if rows * columns == len(runs):
            return grid_geometry(cells, tiles, size, device)
        whole = tiles.new_tensor([[0, 0, size[1], size[0]]])
        return whole_last(grid_geometry(cells, torch.cat([tiles, whole]), size, device))

    def marks(self, ids: Tensor) -> Tensor:
        """Also the tags of tiles and of the whole, and the start and end of every image."""
        found = super().marks(ids) | around(ids == self.image_token_id)
        for row, line in zip(ids, found, strict=True):
            runs = marked_runs(row, self.image_token_id)
            for number, run in enumerate(runs):
                joins = number > 0 and run.first - runs[number - 1].end == 1
                cut = number + 1 < len(runs) and runs[number + 1].first - run.end == 1
                if cut and not joins:  # the start of the image, in front of the first tag
                    line[max(0, run.first - 2)] = True
        return found


def tile_grid(tags: Sequence[int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(rows, columns) of the tiles of an image that was cut; all views but the last, or all where there is no whole.

    No config names the tags ("<|img_row_1_col_2|>"). In the vocabulary those of a row stand one behind the other, and
    those of a column are equally far apart. Where they do not, the grid is the one that is most like the whole.

    Args:
        tags: ids in front of every view.
        sizes: (rows, columns) of their patches.
    """
    for count in (len(tags), len(tags) - 1):
        starts = [n for n in range(count) if n == 0 or tags[n] != tags[n - 1] + 1]
        columns, rest = divmod(count, len(starts))
        steps = {tags[b] - tags[a] for a, b in pairwise(starts)}
        if not rest and starts == list(range(0, count, columns)) and len(steps) <= 1 and len(starts) <= MOST:
            return len(starts), columns
    whole = sizes[-1][1] / sizes[-1][0]
    return min(arrangements(len(tags)), key=lambda grid: abs(math.log(grid[1] / grid[0] / whole)))
