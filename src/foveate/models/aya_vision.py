"""Aya Vision: SigLIP, pixel shuffle, every tile behind a tag of its own."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from foveate.models.tiles import Cut, TiledFamily, runs_of, single_tiles

RELEASED = {"image": 255036, "start": 255033, "end": 255034}
"""Ids in the vocabulary of the released checkpoints; their configs name the first only."""


class AyaVision(TiledFamily):
    """``AyaVisionForConditionalGeneration``."""

    title = "Aya Vision"
    model_types = ("aya_vision",)
    checkpoints = {"aya_vision": "CohereLabs/aya-vision-8b"}

    @property
    def factor(self) -> int:
        return int(self.config.downsample_factor)

    @property
    def structure_token_ids(self) -> frozenset[int]:
        known = {RELEASED["start"], RELEASED["end"]} if self.image_token_id == RELEASED["image"] else set()
        return super().structure_token_ids | known

    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        """Images as ``_images`` finds them, every tile a run of its own."""
        return single_tiles(self._images(row), row, per_tile, "tag before it", "mark that ends an image")

    def marks(self, ids: Tensor) -> Tensor:
        """Also all that stands between an image's tiles, and before the first what is as long as a tag and a mark."""
        found = super().marks(ids)
        for number, row in enumerate(ids):
            images = self._images(row)
            gaps = [after[0] - before[1] for image in images for before, after in pairwise(image)]
            for image in images:
                found[number, max(0, image[0][0] - (gaps or [1])[0] - 1) : image[-1][1] + 1] = True
        return found

    def _images(self, row: Tensor) -> list[list[tuple[int, int]]]:
        """The runs of every image: it ends with the mark that also follows the prompt's last tile.

        Between tiles of one image are tags; how a tokenizer splits one into tokens does not matter here.
        """
        runs = runs_of(row, self.image_token_id)
        follows = [int(row[end]) if end < len(row) else -1 for _, end in runs]
        found: list[list[tuple[int, int]]] = [[]]
        for run, mark in zip(runs, follows, strict=True):
            found[-1].append(run)
            if mark == follows[-1]:
                found.append([])
        return found[:-1]
