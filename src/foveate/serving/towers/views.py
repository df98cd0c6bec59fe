"""The LLaVA families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.attention import Recorder
from foveate.models.view_store import ViewStore
from foveate.serving import films, hooks
from foveate.serving.towers.base import Arguments, Batches, Films, pick


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
        taken = {name: pick(values, places) for name, values in given.items()}
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


class OnevisionFilms(Onevision, Films):
    """Its videos: frames of one size, pooled, and a newline behind the last."""

    newlines = 1

    def sizes(self, given: Arguments) -> list[int]:
        """What the tower sees, before it is pooled."""
        return [len(frames) * self.family.tower.side**2 for frames in given[PIXELS]]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        videos = [given[PIXELS][place] for place in places]
        return {PIXELS: torch.stack(videos) if len({len(one) for one in videos}) == 1 else videos}

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], Tensor | None]:
        # The adapter only asks how many frames of which size there are: the pixels themselves go to vLLM's tower.
        pixels = given[PIXELS]
        count, frames, _, height, width = pixels.shape
        return {PIXELS: pixels.new_empty(count, frames, 0, height, width)}, None

    def alike(self, given: Arguments, place: int) -> int:
        """The adapter takes videos of one length."""
        return len(given[PIXELS][place])

    def outputs(self, streams: Sequence[Tensor]) -> list[Tensor]:
        return [stream.flatten(0, -2) for stream in streams]

    def cut(self, given: Arguments, most: int) -> tuple[dict[str, Any], list[int]]:
        pieces, owners = [], []
        for place, frames in enumerate(given[PIXELS]):
            parts = films.lengths(len(frames), self.family.tower.side**2, most)
            pieces += frames.split(parts)
            owners += [place] * len(parts)
        return {PIXELS: pieces}, owners


PIXELS = "pixel_values_videos"
Onevision.films = OnevisionFilms
