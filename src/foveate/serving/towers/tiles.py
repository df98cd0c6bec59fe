"""Tiles of all images in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.attention import Recorder
from foveate.models.view_store import ViewStore
from foveate.serving.towers.base import Arguments, Batches, pick, pick_parts


class Tiles(Batches):
    """InternVL: tiles of all images in one tensor."""

    @property
    def per_tile(self) -> int:
        """Visual tokens of one tile."""
        return int((self.family.tower.side // self.family.factor) ** 2)

    def sizes(self, given: Arguments) -> list[int]:
        return [int(count) * self.per_tile for count in given["image_num_patches"]]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        counts = [int(count) for count in given["image_num_patches"]]
        return {
            **given,
            "pixel_values": pick_parts(given["pixel_values"], counts, places),
            "image_num_patches": pick(given["image_num_patches"], places),
        }

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], Tensor | None]:
        """With a prompt of nothing but a run of placeholders for every image."""
        ids: list[int] = []
        for size in self.sizes(given):
            ids += [self.family.image_token_id] * size + [-1]
        return {"pixel_values": given["pixel_values"]}, torch.tensor([ids], device="cpu")

    def views(self, given: Arguments) -> Tensor:
        pixels: Tensor = given["pixel_values"]
        return pixels

    def of_views(self, model: Any, given: Arguments, record: Recorder, store: ViewStore) -> Any:
        return self.encoded_views(model, given, store)  # the adapter puts them beside the others

    def outputs(self, streams: Sequence[Tensor]) -> Tensor:
        """(tiles of all images, tokens of one, D)."""
        return torch.cat(list(streams)).unflatten(0, (-1, self.per_tile))

    def attention(self, model: Any) -> Any:
        layer = self.family.tower.reading({}).saliency_layer
        return model.vision_tower.encoder.layer[layer].attention.attn

    def reader(self, model: Any) -> Any:
        return model.multi_modal_projector

    def unserved(self) -> str | None:
        tower = self.family.tower
        if tower.reading({}).saliency_layer != len(tower.layers) - 1:
            return "vLLM reads InternVL's last layer whatever vision_feature_layer says: set it to -1"
        if tower.reading({}).strategy != "default":
            return "vLLM drops InternVL's CLS whatever vision_feature_select_strategy says: set it to 'default'"
        return None
