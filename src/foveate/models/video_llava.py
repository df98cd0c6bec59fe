"""Video-LLaVA: pictures and videos through CLIP towers of their own, and one projector."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foveate.attention import recording
from foveate.models.base import frames_in
from foveate.models.encoded import STAYS, EncodedImage, Kept, Kind, Request, read_tokens
from foveate.models.llava import Llava
from foveate.models.squares import stacked
from foveate.models.stock import accepted
from foveate.models.towers import Tower
from foveate.patches import Patch

OLD, NEW = "pixel_values_images", "pixel_values"
"""What pictures are called: the first until a transformers between 5.19 and 5.24, whose calls still may use it."""


class VideoLlava(Llava):
    """``VideoLlavaForConditionalGeneration``. Every frame of a video has its CLS token in the prompt, which stays."""

    title = "Video-LLaVA"
    model_types = ("video_llava",)
    video_inputs = ("pixel_values_videos",)
    saliency = "CLS row"
    checkpoints = {"video_llava": "LanguageBind/Video-LLaVA-7B-hf"}

    def check(self) -> None:
        towers = [
            Tower(self.base, self.config, {"clip_vision_model": "cls"}, (name, "multi_modal_projector"))
            for name in ("image_tower", "video_tower")
        ]
        self.tower, self.film_tower = towers
        self._pixels = NEW if NEW in inspect.signature(self.base.forward).parameters else OLD

    @property
    def image_inputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self._pixels,)

    def named(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(arguments)
        if self._pixels == NEW and found.get(NEW) is None and found.get(OLD) is not None:
            found[NEW] = found.pop(OLD)
        return found

    def instruments(self) -> Sequence[Patch]:
        """Both towers, and the projector that they share once."""
        shared = self.tower.projector
        return [*self.tower.instruments(), *(one for one in self.film_tower.instruments() if one.owner is not shared)]

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels = frames_in(self.title, inputs)
        # Stock knows no choice here: of every frame it takes all that the tower gives.
        reading = self.film_tower.reading({**inputs, "vision_feature_select_strategy": "full"})
        settings = {"vision_feature_layer": inputs.get("vision_feature_layer")}
        with recording(self.film_tower.recorder(reading, request)) as record:
            output = request.features(pixels, **accepted(request.features, settings), return_dict=True)
        frames = pixels.shape[1]
        geometry = self._geometry(pixels.shape[-2], pixels.shape[-1], pixels.device, frames)
        patches = torch.arange(len(geometry), device="cpu")
        slots = torch.nn.functional.pad(patches.view(frames, -1), (1, 0), value=STAYS).flatten()
        carries = (slots >= 0).nonzero()[:, 0].to(pixels.device)
        videos = []
        for number, stream in enumerate(output.pooler_output.unflatten(0, (-1, frames)).flatten(1, 2)):
            tokens = read_tokens(record, stream[carries], geometry, patches + number * len(patches))
            videos.append(EncodedImage(tokens, len(slots), slots, None, stream, (), "video"))
        return videos

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        return stacked(kept)
