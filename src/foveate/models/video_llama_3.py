"""VideoLLaMA 3: dynamic resolution, patches averaged by squares that images and videos have of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.models.encoded import EncodedImage, Kind, Request
from foveate.models.frame_labels import frame_labels
from foveate.models.packed import PackedFamily
from foveate.tokens import VisualTokens


class VideoLlama3(PackedFamily):
    """``VideoLlama3ForConditionalGeneration``."""

    title = "VideoLLaMA 3"
    model_types = ("video_llama_3",)
    tower_at = "vision_model"
    blocks_at = "encoder.layers"
    attention_at = "self_attn"
    reader_at = "vision_model.post_layernorm"  # the last norm, whose output is averaged over squares
    image_inputs = ("pixel_values", "image_grid_thw", "image_merge_sizes")
    video_inputs = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask")
    spent = ("video_compression_mask",)
    reads_output = True
    merge = "1, videos 2x2"
    since = "5.19"
    checkpoints = {"video_llama_3": "lkhl/VideoLLaMA3-2B-Image-HF"}
    _side = 1

    def check(self) -> None:
        super().check()
        if hasattr(self.model, "_get_image_nums_and_video_nums"):
            raise ValueError(
                f"{self.title}: this transformers counts a prompt's placeholders against its pictures where "
                "it repeats both for beams, and a pruned prompt has fewer; it is known to work from 5.19 on: upgrade "
                "transformers, or use no pruner"
            )

    @property
    def side(self) -> int:
        return self._side

    def _encode(self, inputs: Mapping[str, Any], request: Request, kind: Kind) -> list[EncodedImage]:
        pixels, _, merges = self.inputs_of(kind)[:3]
        given = inputs.get(merges)
        if given is None:
            raise ValueError(f"{self.title} needs {merges} beside {pixels}: pass all that the processor returned")
        sides = set(torch.as_tensor(given, device="cpu").tolist())
        if len(sides) > 1 or not sides <= {1, 2}:
            raise ValueError(
                f"{self.title}: {merges} {sorted(sides)} are not supported, all of a call must be 1 or all 2, as "
                "released processors have them: process with one merge_size, or call without pruner"
            )
        ours = copy.copy(self)  # another thread's call may have another
        ours._side = sides.pop()
        images = super(VideoLlama3, ours)._encode(inputs, request, kind)
        stays = inputs.get("video_compression_mask") if kind == "video" else None
        if stays is None:
            return images
        total = sum(len(image.tokens) for image in images)
        if len(stays) != total:
            raise ValueError(f"{self.title}: video_compression_mask has {len(stays)} entries for {total} video tokens")
        parts = torch.as_tensor(stays, device="cpu").bool().split([len(image.tokens) for image in images])
        return [_without(image, part) for image, part in zip(images, parts, strict=True)]

    def features(self, inputs: Mapping[str, Any], request: Request, kind: Kind) -> Any:
        pixels, grids, merges = self.inputs_of(kind)[:3]
        return request.features(inputs[pixels], inputs[grids], inputs[merges], return_dict=True)

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times before a video's frames, of which some may have lost tokens to the processor."""
        known = super().marks(ids)
        return known | frame_labels(ids, self.placeholder_ids["video"], known, self.special_token_ids, equal=False)


def _without(video: EncodedImage, stays: Tensor) -> EncodedImage:
    """A video without the tokens that stock itself leaves out, alike as they are to those of the frame before.

    Args:
        stays: (N,) bool on the CPU.
    """
    if bool(stays.all()):
        return video
    whole = video.tokens
    there = stays.to(whole.features.device)
    geometry = whole.geometry
    found = VisualTokens(
        whole.features[there],
        replace(
            geometry,
            view=geometry.view[there],
            row=geometry.row[there],
            column=geometry.column[there],
            boxes=geometry.boxes[there],
        ),
        None if whole.saliency is None else whole.saliency[there],
        keys=None if whole.keys is None else whole.keys[there],
        encoded=None if whole.encoded is None else whole.encoded[there],
    )
    return EncodedImage.of_patches(found, (), video.kind)
