"""MiniCPM-V 4.6, MiniCPM-OCR: an overview and slices of a picture, packed, merged within the tower and behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.attention import projecting, recording, tapped_config
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
from foveate.models.squares import square_sources
from foveate.models.stock import accepted
from foveate.models.views_in_prompt import (
    ADJACENT,
    NEXT_LINE,
    Run,
    grid_of,
    lines_of,
    marked_runs,
    numbered,
    pictures,
)
from foveate.patches import Patch
from foveate.tokens import Geometry


class MiniCpmV(Family):
    """``MiniCPMV4_6ForConditionalGeneration`` and ``MiniCPMOcrForConditionalGeneration``.

    A picture is an overview, then, where it is large, the slices of a grid: views of sizes of their own. In the mode
    ``"16x"`` a layer of the tower merges 2x2 patches, and what follows sees the merged ones.
    """

    title = "MiniCPM-V 4.6"
    model_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6", "minicpm_ocr")
    image_inputs = ("pixel_values", "target_sizes")
    merge = "2x2, in mode 16x 4x4"
    views = "1 + slices"
    saliency = "mean received attention, last layer"
    checkpoints = {
        "minicpmv4_6": "openbmb/MiniCPM-V-4.6",
        "minicpm_ocr": "openbmb/MiniCPM-OCR-1.0",
    }

    def check(self) -> None:
        if len(set(self.config.merge_kernel_size)) > 1:
            raise ValueError(
                f"{self.title}: merge_kernel_size={self.config.merge_kernel_size} is no square, which stock merges and "
                "Foveate does not take apart: use the released setting, (2, 2)"
            )

    @property
    def _layers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self.base.vision_tower.encoder.layers
        return layers

    @property
    def _attention(self) -> nn.Module:
        attention: nn.Module = self._layers[-1].self_attn
        return attention

    @property
    def first_block(self) -> nn.Module:
        block: nn.Module = self._layers[0]
        return block

    def instruments(self) -> Sequence[Patch]:
        return [
            Patch(self._attention, "config", tapped_config(self._attention)),
            Patch(self.base.merger, "forward", projecting(self.base.merger)),
        ]

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        sizes, pixels = self._sizes(inputs), inputs["pixel_values"]
        within, behind = self._merges(inputs.get("downsample_mode"))
        seen = [(rows // within, columns // within) for rows, columns in sizes]
        lengths = [rows * columns // behind**2 for rows, columns in seen]
        images = pictures(self.title, request.prompt, self.image_token_id, lengths, self._same_picture)
        recorder = recorder_for(
            request,
            "received",
            self._attention,
            project=self.base.merger,
            segments=[rows * columns for rows, columns in seen],
        )
        mode = accepted(request.features, {"downsample_mode": inputs.get("downsample_mode")})
        with recording(recorder) as record:
            streams = request.features(pixels, inputs["target_sizes"], **mode, return_dict=True).pooler_output
        found, view, patch = [], 0, 0
        for runs in images:
            sources = []
            for rows, columns in seen[view : view + len(runs)]:
                sources.append(patch + square_sources((rows, columns), behind))
                patch += rows * columns
            stream = torch.cat(list(streams[view : view + len(runs)]))
            geometry = self._geometry(runs, sizes[view : view + len(runs)], within * behind, stream.device)
            found.append(EncodedImage.of_patches(read_tokens(record, stream, geometry, torch.cat(sources))))
            view += len(runs)
        return found

    def _merges(self, mode: str | None) -> tuple[int, int]:
        """How many patches become one along a side, within the tower and behind it."""
        behind = int(self.config.merge_kernel_size[0]) ** int(self.config.merger_times)
        if (mode or self.config.downsample_mode) == "4x":
            return 1, behind
        merged_after = self.config.vision_config.insert_layer_id
        if not 0 <= merged_after < len(self._layers) - 1:
            raise ValueError(
                f"{self.title}: insert_layer_id={merged_after} is not before the last of {len(self._layers)} layers, "
                "so none sees merged patches: correct the config, or use downsample_mode='4x'"
            )
        return 2, behind

    def _sizes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """(rows, columns) of the patches of every view, checked."""
        pixels, given = inputs["pixel_values"], inputs.get("target_sizes")
        if given is None:
            raise ValueError(
                f"{self.title} needs target_sizes beside pixel_values: pass all that the processor returned"
            )
        sizes = read_sizes(given)
        wanted = sum(rows * columns for rows, columns in sizes) * self._patch
        if not torch.is_tensor(pixels) or pixels.ndim != 4 or pixels.shape[0] != 1 or pixels.shape[-1] != wanted:
            raise ValueError(
                f"{self.title} takes pixel_values as (1, channels, {self._patch}, {wanted}) for target_sizes {sizes}, "
                f"got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        return sizes

    @property
    def _patch(self) -> int:
        patch = self.config.vision_config.patch_size
        return int(patch if isinstance(patch, int) else patch[0])

    def _same_picture(self, first: Run, run: Run, before: Run) -> bool:
        """Slices have another mark in front than the overview, which comes first and has that of the prompt's first."""
        if run.mark == first.mark:
            return False
        if run.first - before.end not in (ADJACENT, NEXT_LINE):
            raise ValueError(
                f"{self.title}: {run.first - before.end} tokens stand between two views of an image. Every image must "
                "stand in its prompt as the model's own processor writes it: the overview, then every slice, each "
                "between marks"
            )
        return True

    def _geometry(
        self, runs: Sequence[Run], sizes: Sequence[tuple[int, int]], side: int, device: torch.device
    ) -> Geometry:
        """View 0 is the overview; slices share out the picture evenly."""
        rows, columns = grid_of(self.title, lines_of(runs[1:]))
        cell = sizes[1] if rows else sizes[0]
        height, width = cell[0] * max(rows, 1) * self._patch, cell[1] * max(columns, 1) * self._patch
        stretch = torch.tensor([width / max(columns, 1), height / max(rows, 1)] * 2, dtype=torch.float64, device="cpu")
        boxes = torch.cat([stretch.new_tensor([[0, 0, width, height]]), tile_boxes((rows, columns), 1, 1) * stretch])
        grids = [(one // side, other // side) for one, other in sizes]
        return grid_geometry(grids, boxes, (height, width), device)

    def marks(self, ids: Tensor) -> Tensor:
        """Also what stands around and between the views of a picture, and its number before it."""
        found = super().marks(ids)
        for row, line in zip(ids, found, strict=True):
            runs = marked_runs(row, self.image_token_id)
            for before, run in zip([None, *runs], runs, strict=False):
                line[max(0, run.first - 1)] = True
                line[run.end : run.end + 1] = True
                if before is not None and run.first - before.end <= NEXT_LINE:
                    line[before.end : run.first] = True
                else:
                    line[numbered(row, run.first - 1) : run.first] = True
        return found
