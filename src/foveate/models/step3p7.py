"""Step 3.7: crops, then the whole picture, each encoded by itself; two strided convolutions make a token of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import projecting, recording, tapped_config
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Request, grid_geometry, read_tokens, recorder_for, tile_boxes
from foveate.models.views_in_prompt import (
    ADJACENT,
    NEXT_LINE,
    Run,
    grid_of,
    lines_of,
    marked_runs,
    runs_by_prompt,
    whole_last,
)
from foveate.patches import Patch
from foveate.tokens import Geometry

STRIDE = 4
"""Patches from one token to the next, along a side: two convolutions of stride 2."""
MOST = STRIDE + 1
"""Patches of a token along a side, at most: see ``cells``."""


class Step3p7(Family):
    """``Step3p7ForConditionalGeneration``."""

    title = "Step 3.7"
    model_types = ("step3p7",)
    image_inputs = ("pixel_values", "pixel_values_local", "num_local_patches")
    merge = "4x4"
    views = "crops + 1"
    saliency = "mean received attention, last layer"
    checkpoints = {"step3p7": "stepfun-ai/Step-3.7-Flash"}

    def check(self) -> None:
        self.tower: Any = self.base.vision_model
        self.attention: nn.Module = self.tower.layers[-1].self_attn

    @property
    def first_block(self) -> nn.Module:
        """Whole views go through it first."""
        block: nn.Module = self.tower.layers[0]
        return block

    def instruments(self) -> Sequence[Patch]:
        reader = self.tower.downsampler1
        return [
            Patch(self.attention, "config", tapped_config(self.attention)),
            Patch(reader, "forward", projecting(reader)),
        ]

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        counts, sides = self._given(inputs)
        whole, crop = (side // self._patch for side in sides)
        order = [side for count in counts for side in (*[crop] * count, whole)]  # as they stand in the prompt
        images = self._images(request.prompt, [(side // STRIDE) ** 2 for side in order], counts)
        recorder = recorder_for(
            request,
            "received",
            self.attention,
            project=self.tower.downsampler1,
            patches=lambda grid: grid.flatten(2).transpose(1, 2),
        )
        with recording(recorder) as record:
            output = request.features(**{name: inputs.get(name) for name in self.image_inputs}, return_dict=True)
        found = []
        first = len(counts) * whole**2  # all whole views go through the encoder before the crops
        for number, (runs, stream) in enumerate(zip(images, output.pooler_output, strict=True)):
            sources = [shifted(cells(crop), first + place * crop**2) for place in range(counts[number])]
            first += counts[number] * crop**2
            sources.append(shifted(cells(whole), number * whole**2))
            geometry = self._geometry(runs, sides, stream.device)
            found.append(EncodedImage.of_patches(read_tokens(record, stream, geometry, torch.cat(sources))))
        return found

    @property
    def _patch(self) -> int:
        return int(self.config.vision_config.patch_size)

    def _given(self, inputs: Mapping[str, Any]) -> tuple[list[int], tuple[int, int]]:
        """How many crops every picture has, and pixels of a side of whole views and of crops; checked."""
        pixels, local, given = (inputs.get(name) for name in self.image_inputs)
        whole = self._side("pixel_values", pixels)
        crop = whole if local is None else self._side("pixel_values_local", local)
        views: list[int] = [0 if one is None else len(one) for one in (pixels, local)]
        counts = [0] * views[0] if given is None else torch.as_tensor(given, device="cpu").flatten().tolist()
        if [len(counts), sum(counts)] != views:
            raise ValueError(
                f"{self.title}: num_local_patches={given} with {views[0]} whole views in pixel_values and {views[1]} "
                "crops in pixel_values_local: pass all that the processor returned"
            )
        return counts, (whole, crop)

    def _side(self, name: str, views: Any) -> int:
        """Pixels of their sides."""
        unit = STRIDE * self._patch
        if (
            not torch.is_tensor(views)
            or views.ndim != 4
            or views.shape[-1] != views.shape[-2]
            or views.shape[-1] % unit
        ):
            raise ValueError(
                f"{self.title} takes {name} as one tensor (views, channels, side, side) with sides of whole tokens of "
                f"{unit} pixels, got {tuple(views.shape) if torch.is_tensor(views) else type(views).__name__}: use the "
                "checkpoint's own image processor"
            )
        return int(views.shape[-1])

    def _images(self, prompt: Tensor | None, lengths: Sequence[int], crops: Sequence[int]) -> list[list[Run]]:
        """The runs of every picture."""
        by_prompt = runs_by_prompt(self.title, prompt, self.image_token_id, lengths)
        runs = [run for row in by_prompt for run in row]
        ends = list(accumulate(count + 1 for count in crops))
        if not {*accumulate(map(len, by_prompt))} <= {0, *ends}:
            raise ValueError(
                f"{self.title}: the prompts of a batch hold {[len(row) for row in by_prompt]} views, and its pictures "
                f"have {[count + 1 for count in crops]}: every picture must stand in one prompt"
            )
        found = [runs[first:end] for first, end in pairwise([0, *ends])]
        for image in found:
            gaps = [after.first - before.end for before, after in pairwise(image)]
            if not {*gaps[:-1]} <= {ADJACENT, NEXT_LINE} or not {*gaps[-1:]} <= {ADJACENT}:
                raise ValueError(
                    f"{self.title}: {gaps} tokens stand between the views of an image. Every image must stand in its "
                    "prompt as the model's own processor writes it: each crop between marks, another mark behind a row "
                    "of them, the whole picture between marks"
                )
        return found

    def _geometry(self, runs: Sequence[Run], sides: tuple[int, int], device: torch.device) -> Geometry:
        """View 0 is the whole picture, which comes last; crops share it out evenly."""
        rows, columns = grid_of(self.title, lines_of(runs[:-1]))
        whole, crop = sides
        size = (rows * crop, columns * crop) if rows else (whole, whole)
        crops = tile_boxes((rows, columns), crop, crop)
        boxes = torch.cat([crops, crops.new_tensor([[0, 0, size[1], size[0]]])])
        tokens = [side // (STRIDE * self._patch) for side in (*[crop] * len(crops), whole)]
        return in_cells(whole_last(grid_geometry([(side, side) for side in tokens], boxes, size, device)))

    def marks(self, ids: Tensor) -> Tensor:
        """Also the start and end of every view, and what ends a row of crops. No config names their ids."""
        found = super().marks(ids)
        for row, line in zip(ids, found, strict=True):
            runs = marked_runs(row, self.image_token_id)
            for run in runs:
                line[max(0, run.first - 1) : run.end + 1] = True
            for before, run in pairwise(runs):
                # A prompt's last view is a whole one: what has another mark in front of it is a crop.
                if before.mark != runs[-1].mark and run.first - before.end == NEXT_LINE:
                    line[before.end : run.first] = True
        return found


def cells(side: int) -> Tensor:
    """(n, m) int64: the patches that each token of a view of ``side`` x ``side`` patches stands for, -1 for none.

    Two convolutions over 3 places with stride 2 let a token read the patches from three before its own (every fourth)
    to three behind it: along a side one way leads to most of them, two to its neighbours. A patch goes to the token
    that more ways lead to, the first of them where it is a tie: so a token has the patch before its own and two behind
    it, the first token no patch before, the last one patch more.
    """
    own = torch.arange(0, side, STRIDE, device="cpu")[:, None]
    line = own - 1 + torch.arange(MOST, device="cpu")
    last = own == own[-1]
    line = torch.where((line >= 0) & (line < torch.where(last, side, own + STRIDE - 1)), line, -1)
    rows, columns = line[:, None, :, None], line[None, :, None, :]
    return torch.where((rows >= 0) & (columns >= 0), rows * side + columns, -1).flatten(2).flatten(0, 1)


def shifted(sources: Tensor, first: int) -> Tensor:
    """The same of a view whose patches are numbered from ``first`` on."""
    return torch.where(sources >= 0, sources + first, -1)


def in_cells(geometry: Geometry) -> Geometry:
    """Boxes of even cells to those of ``cells``: borders between two tokens lie a patch further up and to the left."""
    boxes = geometry.boxes
    patch = (boxes[:, 2:] - boxes[:, :2]) / STRIDE
    place = torch.stack([geometry.column, geometry.row], dim=1)
    ends = torch.tensor([(columns, rows) for rows, columns in geometry.grids], device="cpu").to(place.device) - 1
    near = torch.where(place == 0, 0, patch)
    far = torch.where(place == ends[geometry.view], 0, patch)
    return replace(geometry, boxes=torch.cat([boxes[:, :2] - near, boxes[:, 2:] - far], dim=1))
