"""Patches of all images in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foveate.models.packed import SECONDS
from foveate.serving import film_hooks, films
from foveate.serving.towers.base import Arguments, Batches, Films, pick, pick_parts


class Packed(Batches):
    """Qwen-VL: the patches of all images in one tensor, and the grid of each."""

    @property
    def _names(self) -> tuple[str, str]:
        """What the patches and the grids are called."""
        pixels, grids, *_ = self.family.inputs_of(self.kind)
        return pixels, grids

    def _grids(self, given: Arguments) -> list[tuple[int, int, int]]:
        return [(t, h, w) for t, h, w in given[self._names[1]].tolist()]

    def _patches(self, given: Arguments) -> list[int]:
        return [t * h * w for t, h, w in self._grids(given)]

    def sizes(self, given: Arguments) -> list[int]:
        return [count // self.family.side**2 for count in self._patches(given)]

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        pixels, grids = self._names
        return {
            **given,
            pixels: pick_parts(given[pixels], self._patches(given), places),
            grids: pick(given[grids], places),
        }

    def attention(self, model: Any) -> Any:
        return model.visual.blocks[self.family.read_layer].attn.attn

    def reader(self, model: Any) -> Any:
        # The norm that is the first thing in it: vLLM calls some mergers past their own hooks.
        merger = model.visual.merger
        return merger.ln_q if hasattr(merger, "ln_q") else merger.norm


class PackedFilms(Packed, Films):
    """Qwen-VL's videos: likewise. A step of a grid is some frames, and sees no other step."""

    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        """Without the times in the prompt, which the encoder does not read."""
        taken = super().take(given, places)
        taken.pop("timestamps", None)
        return {name: pick(value, places) if name in SECONDS else value for name, value in taken.items()}

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], torch.Tensor | None]:
        return {name: given[name] for name in self.family.video_inputs if name in given}, None

    def cut(self, given: Arguments, most: int) -> tuple[dict[str, Any], list[int]]:
        name = self._names[1]
        grids, owners = [], []
        for place, (steps, height, width) in enumerate(self._grids(given)):
            parts = films.lengths(steps, height * width // self.family.side**2, most)
            grids += [[part, height, width] for part in parts]
            owners += [place] * len(parts)
        found = {key: pick(value, owners) if key in SECONDS else value for key, value in given.items()}
        return {**found, name: torch.tensor(grids, dtype=torch.int64, device="cpu")}, owners

    def seconds(self, given: Arguments, place: int) -> float | None:
        found = next((given[name] for name in SECONDS if given.get(name) is not None), None)
        return None if found is None else float(found[place])


class TimedFilms(PackedFilms):
    """Qwen3-VL's: a time in front of every step's tokens."""

    def shown(self, processor: Any, inputs: Any) -> list[list[int]]:
        return film_hooks.timed(processor, inputs)

    def labels(self, info: Any) -> int:
        return film_hooks.most_labels(info)


Packed.films = PackedFilms


class Timed(Packed):
    """Qwen3-VL's pictures, which are as Qwen2-VL's."""

    films = TimedFilms


class Convolved(Packed):
    """GLM-V: likewise, with a convolution in front of the merger."""

    films = None

    def reader(self, model: Any) -> Any:
        return model.visual.downsample
