"""Images that are written with marks between their tokens. Which marks a kept token stands between is not known before
the image is encoded, but how many tokens and marks there are: so the marks come back among the features, embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.attention import Recorder
from foveate.models.view_store import ViewStore
from foveate.serving import hooks
from foveate.serving.image_request import LAYOUT
from foveate.serving.towers.base import Arguments, Batches, pick, pick_parts


class Rows(Batches):
    """Mistral 3: images in their own proportions, every row of tokens with a mark behind it."""

    woven = True

    def _sizes(self, given: Arguments) -> list[tuple[int, int]]:
        return [(int(pixels.shape[-2]), int(pixels.shape[-1])) for pixels in given["pixel_values"]]

    def sizes(self, given: Arguments) -> list[int]:
        unit = self.family.config.vision_config.patch_size * self.family.config.spatial_merge_size
        return [(height // unit) * (width // unit) for height, width in self._sizes(given)]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        return {name: pick(values, places) for name, values in given.items()}

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], Tensor | None]:
        sizes = self._sizes(given)
        # The adapter only asks how large they are: the pixels themselves go to vLLM's tower.
        most = [max(lengths) for lengths in zip(*sizes, strict=True)]
        return {
            "pixel_values": torch.empty(len(sizes), 0, *most, device="cpu"),
            "image_sizes": torch.tensor(sizes, device="cpu"),
        }, None

    def attention(self, model: Any) -> Any:
        return model.vision_tower.transformer.layers[self.family.tower.reading({}).saliency_layer].attention.attn

    def reader(self, model: Any) -> Any:
        return model.multi_modal_projector

    def unserved(self) -> str | None:
        layers = self.family.config.vision_feature_layer
        if not isinstance(layers, int):
            return f"vLLM reads one layer of Mistral 3's tower, and vision_feature_layer names {layers}: set it to one"
        return None


class Fenced(Batches):
    """Idefics3 and SmolVLM: tiles of all images in one tensor, each tile between marks."""

    woven = True
    counts: ClassVar[str] = "num_patches"
    """The argument that says how many tiles each image has."""

    def _tokens(self) -> int:
        """Visual tokens of one tile."""
        vision = self.family.config.vision_config
        return int((vision.image_size // vision.patch_size // self.family.factor) ** 2)

    def sizes(self, given: Arguments) -> list[int]:
        return [int(count) * self._tokens() for count in given[self.counts]]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        counts = [int(count) for count in given[self.counts]]
        by_tile = self.family.image_inputs
        return {
            name: pick_parts(values, counts, places) if name in by_tile else pick(values, places)
            for name, values in given.items()
        }

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], Tensor | None]:
        """As one prompt, with all that is written for every image."""
        ids: list[int] = []
        for layout in given[LAYOUT]:
            ids += [self.family.image_token_id if one < 0 else one for one in layout.tolist()]
        return self.pixels(given), torch.tensor([ids], dtype=torch.int64, device="cpu")

    def pixels(self, given: Arguments) -> dict[str, Any]:
        """The adapter's inputs."""
        return {name: given[name][None] for name in self.family.image_inputs}

    def views(self, given: Arguments) -> Tensor:
        pixels: Tensor = given["pixel_values"]
        return pixels

    def encoded_views(self, model: Any, given: Arguments, store: ViewStore) -> Tensor:
        if not store.wanted:
            return store.nothing()
        return hooks.features_of_tiles(model, *(store.pick(given[name]) for name in self.family.image_inputs))

    def of_views(self, model: Any, given: Arguments, record: Recorder, store: ViewStore) -> Any:
        return self.encoded_views(model, given, store)  # the adapter puts them beside the others

    def outputs(self, streams: Sequence[Tensor]) -> Tensor:
        """(tiles of all images, tokens of one, D)."""
        return torch.cat(list(streams)).unflatten(0, (-1, self._tokens()))

    def attention(self, model: Any) -> Any:
        return model.model.vision_model.encoder.layers[-1].self_attn.attn

    def reader(self, model: Any) -> Any:
        return model.model.connector


class Separated(Fenced):
    """Llama 4: likewise, with separators of rows and columns."""

    counts = "patches_per_image"

    def __init__(self, family: Any) -> None:
        super().__init__(family)
        family.projected = lambda handed: handed  # vLLM's projector has been there

    def pixels(self, given: Arguments) -> dict[str, Any]:
        return {"pixel_values": given["pixel_values"]}

    def written(self, processor: Any, prompt: Sequence[int], images: int) -> Sequence[int]:
        """A token of its own stands for an image that is still to be written; the adapter knows start and end."""
        stands = processor.info.get_hf_processor().image_token_id
        config = self.family.config
        image = [config.boi_token_index, stands, self.family.image_token_id, config.eoi_token_index]
        return [token for one in prompt for token in (image if one == stands else [one])]

    def attention(self, model: Any) -> Any:
        return model.vision_model.model.layers[-1].self_attn.attn

    def reader(self, model: Any) -> Any:
        return model.vision_model.vision_adapter
