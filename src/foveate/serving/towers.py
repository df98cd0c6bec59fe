"""How each family lays out the arguments of vLLM's ``embed_multimodal``, and which attention of its tower is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.attention import Recorder
from foveate.models.view_store import ViewStore
from foveate.serving import hooks

Arguments = Mapping[str, Any]


class Batches(ABC):
    """One family's multi-modal arguments, for the images of a batch.

    Args:
        family: the adapter of ``foveate.models`` whose ``encode`` reads them.

    Raises:
        ValueError: a configuration that vLLM handles otherwise than transformers, or that cannot be pruned there.
    """

    def __init__(self, family: Any) -> None:
        self.family = family
        reason = self.unserved()
        if reason is not None:
            raise ValueError(f"foveate: {reason}")

    @abstractmethod
    def sizes(self, given: Arguments) -> list[int]:
        """Visual tokens of every image before pruning (LLaVA: unpadding, which leaves fewer, not counted)."""

    @abstractmethod
    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        """The arguments of some of the images."""

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], Tensor | None]:
        """What the family's ``encode`` reads: its inputs, and a prompt where only that tells images apart."""
        return {name: given[name] for name in self.family.image_inputs if name in given}, None

    def outputs(self, streams: Sequence[Tensor]) -> Any:
        """What ``encode`` takes for ``pooler_output``, made of (n, D) features of every image."""
        return streams

    def views(self, given: Arguments) -> Tensor:
        """(views, channels, height, width): the views of all images, as the adapter numbers them."""
        raise NotImplementedError(f"{type(self).__name__} has no crops")

    def of_views(self, model: Any, given: Arguments, record: Recorder, store: ViewStore) -> Any:
        """What ``encode`` takes for ``pooler_output`` when only some views are encoded: those that ``store`` wants."""
        raise NotImplementedError(f"{type(self).__name__} has no crops")

    def encoded_views(self, model: Any, given: Arguments, store: ViewStore) -> Tensor:
        """(wanted views, tokens, D) from vLLM's tower and projector, which do not run where none is wanted."""
        if not store.wanted:
            return store.nothing()
        return hooks.features_of_views(model, store.pick(self.views(given)))

    @abstractmethod
    def attention(self, model: Any) -> Any:
        """The module whose queries and keys saliency is read from."""

    @abstractmethod
    def reader(self, model: Any) -> Any:
        """The module whose input is what the encoder hands to the projector or merger."""

    def unserved(self) -> str | None:
        """Why the model's configuration cannot be served, and what to do; None when it can."""
        return None


def _pick(values: Any, places: Sequence[int]) -> Any:
    """Entries of a tensor or a list."""
    if torch.is_tensor(values):
        return values[torch.tensor(places, device=values.device)]
    return [values[place] for place in places]


class Views(Batches):
    """The LLaVA families: ``pixel_values`` with one entry per image, and its size."""

    def sizes(self, given: Arguments) -> list[int]:
        return [count * self.family.tower.side**2 for count in self._views(given)]

    def _views(self, given: Arguments) -> list[int]:
        """How many views every image has; ``pixel_values`` may hold more, since images that a processor sees together
        are padded with empty ones to as many as the largest has."""
        if "image_sizes" not in given:
            return [1] * len(given["pixel_values"])
        return [self.family.count_views((int(h), int(w))) for h, w in given["image_sizes"].tolist()]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        taken = {name: _pick(values, places) for name, values in given.items()}
        if "image_sizes" in given:  # the padding is not encoded: what is read of the tower would count it
            views = self._views(taken)
            pixels = [one[:count] for one, count in zip(taken["pixel_values"], views, strict=True)]
            taken["pixel_values"] = torch.stack(pixels) if len(set(views)) == 1 else pixels
        return taken

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], Tensor | None]:
        found, prompt = super().inputs(given)
        if "image_sizes" in given:
            # vLLM has a list where images differ. The adapter only asks how many views there are: the pixels themselves
            # go to vLLM's tower.
            views = sum(len(pixels) for pixels in given["pixel_values"])
            found["pixel_values"] = torch.empty(views, 0, 0, 0, device="cpu")
        return found, prompt

    def views(self, given: Arguments) -> Tensor:
        pixels = given["pixel_values"]
        return pixels.flatten(0, 1) if torch.is_tensor(pixels) else torch.cat(list(pixels))

    def of_views(self, model: Any, given: Arguments, record: Recorder, store: ViewStore) -> Any:
        whole = store.put(record, self.encoded_views(model, given, store))
        parts = whole.split([len(pixels) for pixels in given["pixel_values"]])
        return [hooks.packed_views(model, size, part) for size, part in zip(given["image_sizes"], parts, strict=True)]

    def attention(self, model: Any) -> Any:
        layer = self.family.tower.reading({}).saliency_layer
        return model.vision_tower.vision_model.encoder.layers[layer].self_attn.attn

    def reader(self, model: Any) -> Any:
        return model.multi_modal_projector

    def unserved(self) -> str | None:
        tower = self.family.tower
        if tower.kind == "pixtral":
            return "Pixtral towers are not served under pruning: use LLaVA with CLIP or SigLIP"
        if tower.read == "cls" and tower.reading({}).strategy == "full":
            return (
                "vision_feature_select_strategy='full' sends CLS along with the patches, which is not served under "
                "pruning: set it to 'default' in the model's config"
            )
        return None


class Onevision(Views):
    """LLaVA-OneVision."""

    def unserved(self) -> str | None:
        ratio = self.family.config.vision_aspect_ratio
        if ratio != "anyres_max_9":
            return (
                f"vLLM packs LLaVA-OneVision's crops as anyres_max_9 whatever vision_aspect_ratio says ({ratio!r}): "
                "images would be pruned by another layout than they have"
            )
        return super().unserved()


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
        if list(places) == list(range(len(counts))):
            return dict(given)
        tiles = given["pixel_values"].split(counts)
        return {
            **given,
            "pixel_values": torch.cat([tiles[place] for place in places]),
            "image_num_patches": _pick(given["image_num_patches"], places),
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


class Packed(Batches):
    """Qwen-VL: the patches of all images in one tensor, and the grid of each."""

    def _patches(self, given: Arguments) -> list[int]:
        return [t * h * w for t, h, w in given["image_grid_thw"].tolist()]

    def sizes(self, given: Arguments) -> list[int]:
        return [count // self.family.side**2 for count in self._patches(given)]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        counts = self._patches(given)
        if list(places) == list(range(len(counts))):
            return dict(given)
        patches = given["pixel_values"].split(counts)
        return {
            **given,
            "pixel_values": torch.cat([patches[place] for place in places]),
            "image_grid_thw": _pick(given["image_grid_thw"], places),
        }

    def attention(self, model: Any) -> Any:
        return model.visual.blocks[self.family.read_layer].attn.attn

    def reader(self, model: Any) -> Any:
        # The norm that is the first thing in it: vLLM calls some mergers past their own hooks.
        merger = model.visual.merger
        return merger.ln_q if hasattr(merger, "ln_q") else merger.norm
