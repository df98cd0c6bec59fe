"""LLaVA-NeXT-Video: LLaVA-NeXT's images, and videos of one view per frame, pooled before the projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foveate.attention import projecting, recording
from foveate.models.base import frames_in
from foveate.models.encoded import EncodedImage, Kept, Kind, Request, grid_geometry, read_tokens
from foveate.models.llava_next import LlavaNext
from foveate.models.squares import square_sources
from foveate.models.stock import accepted
from foveate.patches import Patch


class LlavaNextVideo(LlavaNext):
    """``LlavaNextVideoForConditionalGeneration`` with a CLIP or SigLIP tower."""

    title = "LLaVA-NeXT-Video"
    model_types = ("llava_next_video",)
    checkpoints = {"llava_next_video": "llava-hf/LLaVA-NeXT-Video-7B-hf"}
    layouts = ("stock",)
    video_inputs = ("pixel_values_videos",)
    merge = "1; 2x2 in videos"
    joins_rows = True  # stock (5.19) cannot repeat a video's frames for beams; a pruned call hands over its own

    def instruments(self) -> Sequence[Patch]:
        """Also what pools a video's frames: it is given them before the projector."""
        pool = self.base.vision_resampler
        return [*super().instruments(), Patch(pool, "forward", projecting(pool))]

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels = frames_in(self.title, inputs)
        reading = self.tower.reading(inputs)
        self._refuse_cls(reading)
        settings = {name: inputs.get(name) for name in ("vision_feature_layer", "vision_feature_select_strategy")}
        recorder = self.tower.recorder(reading, request)
        recorder.project = self.base.vision_resampler
        with recording(recorder) as record:
            # The pixels by place: their argument was called pixel_values before.
            output = request.features(pixels, **accepted(request.features, settings), return_dict=True)
        frames, side, stride = pixels.shape[1], self.tower.side, int(self.config.spatial_pool_stride)
        pooled = side // stride
        seen = pooled * stride * self.config.vision_config.patch_size
        boxes = torch.tensor([[0, 0, seen, seen]], device="cpu").expand(frames, -1)
        size = (pixels.shape[3], pixels.shape[4])
        geometry = grid_geometry([(pooled, pooled)] * frames, boxes, size, pixels.device, cropped=True)
        views = torch.arange(frames, device="cpu")[:, None, None] * side**2
        squares = (square_sources((side, side), stride) + views).flatten(0, 1)
        videos = []
        for number, found in enumerate(output.pooler_output):
            stream = found.flatten(0, -2)  # by frame in some versions, all in one in others
            tokens = read_tokens(record, stream, geometry, squares + number * frames * side**2)
            videos.append(EncodedImage.of_patches(tokens, (), "video"))
        return videos

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        package = super().package(kept, kind)
        if kind == "video":  # frames of one token each: stock flattens frames and tokens together
            package.pooler_output = [one.features[:, None] for one in kept]
        return package
