"""Command A Vision (Cohere): SigLIP, pixel shuffle, a break token behind every tile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.attention import Recorder
from foveate.models.encoded import Request
from foveate.models.tiles import Cut, TiledFamily, runs_of, single_tiles
from foveate.models.towers import Reading, Tower


class Cohere2Vision(TiledFamily):
    """``Cohere2VisionForConditionalGeneration``. Its processor writes start, (a tile, a break) for every tile, end."""

    title = "Command A Vision"
    model_types = ("cohere2_vision",)
    checkpoints = {"cohere2_vision": "CohereLabs/command-a-vision-07-2025"}
    saliency = "mean received attention, last layer"

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, {"siglip_vision_model": "received"})

    @property
    def factor(self) -> int:
        return int(self.config.downsample_factor)

    def recorder(self, inputs: Mapping[str, Any], request: Request) -> Recorder:
        return self.tower.recorder(Reading(len(self.tower.layers) - 1, "full", normed=True), request)

    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        """Images as ``_images`` finds them, every tile a run of its own."""
        return single_tiles(self._images(row), row, per_tile, "break behind it", "break behind it")

    def marks(self, ids: Tensor) -> Tensor:
        """Also the start, the breaks and the end; no config names their ids."""
        found = super().marks(ids)
        for number, row in enumerate(ids):
            for image in self._images(row):
                found[number, max(0, image[0][0] - 1) : image[-1][1] + 2] = True
        return found

    def _images(self, row: Tensor) -> list[list[tuple[int, int]]]:
        """The runs of every image: a single token, the break, stands between its tiles; three at least between images.

        What follows the prompt's last tile is a break.
        """
        runs = runs_of(row, self.image_token_id)
        found: list[list[tuple[int, int]]] = []
        for first, end in runs:
            gap = row[found[-1][-1][1] : first] if found else row[:0]
            if len(gap) == 1 and torch.equal(gap, row[runs[-1][1] : runs[-1][1] + 1]):
                found[-1].append((first, end))
            else:
                found.append([(first, end)])
        return found
