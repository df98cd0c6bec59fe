"""InternVL 2.5, 3 and 3.5 in their transformers form: InternViT, pixel shuffle, tiles in one run of placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from foveate.models.frame_labels import frame_labels
from foveate.models.tiles import Cut, TiledFamily, runs_of
from foveate.models.towers import Tower


class InternVl(TiledFamily):
    """``InternVLForConditionalGeneration``. A video goes in as images, one for each frame, and is pruned as such."""

    title = "InternVL"
    model_types = ("internvl",)
    checkpoints: ClassVar[Mapping[str, str]] = {
        "internvl": "OpenGVLab/InternVL3-8B-hf (the -hf form: the other runs code of its own)"
    }
    saliency = "CLS row"

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, {"internvl_vision": "cls"})

    @property
    def factor(self) -> int:
        return int(1 / self.config.downsample_ratio)

    def cuts(self, row: Tensor, per_tile: int) -> list[Cut]:
        """One unbroken run of placeholders is one image: the processor puts ``<img>`` and ``</img>`` around it."""
        found = []
        for first, end in runs_of(row, self.image_token_id):
            tiles, rest = divmod(end - first, per_tile)
            if rest:
                raise ValueError(
                    f"an image of {end - first} placeholders is no whole number of tiles of {per_tile}: does the "
                    "processor's image_seq_length fit the model?"
                )
            found.append(Cut(tiles))
        return found

    def marks(self, ids: Tensor) -> Tensor:
        known = super().marks(ids)
        return known | frame_labels(ids, self.image_token_id, known)
