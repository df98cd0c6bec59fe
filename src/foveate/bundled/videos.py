"""Videos for a bundled Qwen3-VL, by Pillow: what its stock video processor does by torchvision, except resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""Qwen3-VL's own."""


class PillowVideos:
    """Stands where Qwen3-VL has its processor for videos.

    All frames of a video get one size, so that together they have from ``shortest_edge`` to ``longest_edge`` pixels and
    sides of whole tokens; two by two (``temporal_patch_size``) they become one moment, the last one twice where they
    are odd.

    Args:
        options: of the stock processor, see ``DEFAULTS``; what else there is in them is of no account.
    """

    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, **options: Any) -> None:
        chosen = {name: options.get(name, value) for name, value in DEFAULTS.items()}
        self.size: dict[str, int] = chosen["size"]
        self.patch_size: int = chosen["patch_size"]
        self.temporal_patch_size: int = chosen["temporal_patch_size"]
        self.merge_size: int = chosen["merge_size"]
        self.mean, self.std = (np.asarray(chosen[name], dtype=np.float32) for name in ("image_mean", "image_std"))

    def __call__(
        self,
        videos: Any,
        video_metadata: Any = None,
        do_sample_frames: bool = False,
        return_tensors: str | None = None,
        **_: Any,
    ) -> BatchFeature:
        """The patches of some videos.

        Args:
            videos: one, or a list of them; each a list of PIL frames or (frames, height, width, 3) or (frames, 3,
                height, width) uint8.
            video_metadata: of every video, see ``foveate.videos.Video.metadata``; the prompt's times are read off it.
            do_sample_frames: only False: all frames are taken.
            return_tensors: of no account, tensors are returned.

        Returns:
            ``pixel_values_videos`` (patches, values) float32, ``video_grid_thw`` (videos, 3) int64, in patches, and
            ``video_metadata``.

        Raises:
            ValueError: it is to sample frames, or a video is none.
        """
        from transformers.video_utils import make_batched_metadata, make_batched_videos

        if do_sample_frames:
            raise ValueError(
                "the bundled model's processor takes all frames it is given: read the wanted ones with "
                "foveate.videos.load_video, and pass do_sample_frames=False with their video_metadata"
            )
        whole = [_frames(video) for video in make_batched_videos(videos)]
        found, grids = zip(*(self._patches(frames) for frames in whole), strict=True)
        data = {
            "pixel_values_videos": torch.cat(found),
            "video_grid_thw": torch.tensor(grids, dtype=torch.int64),
            "video_metadata": make_batched_metadata([np.stack(frames) for frames in whole], video_metadata),
        }
        return BatchFeature(data)

    def _patches(self, frames: Sequence[np.ndarray]) -> tuple[Tensor, tuple[int, int, int]]:
        """(patches, values) of a video and its grid: by moment, by square of patches that become a token, by patch."""
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        count, patch, merge, temporal = len(frames), self.patch_size, self.merge_size, self.temporal_patch_size
        frames = [*frames, *[frames[-1]] * max(0, temporal - count)]  # a single frame is refused
        height, width = smart_resize(
            num_frames=len(frames), height=frames[0].shape[0], width=frames[0].shape[1], temporal_factor=temporal,
            factor=patch * merge, min_pixels=self.size["shortest_edge"], max_pixels=self.size["longest_edge"],
        )  # fmt: skip
        seen = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in frames]
        seen += [seen[-1]] * (-len(seen) % temporal)
        values = (np.stack(seen).astype(np.float32) / 255 - self.mean) / self.std
        times, rows, columns = len(seen) // temporal, height // patch, width // patch
        cut = torch.from_numpy(values).view(
            times, temporal, rows // merge, merge, patch, columns // merge, merge, patch, 3
        )
        order = (0, 2, 5, 3, 6, 8, 1, 4, 7)
        return cut.permute(order).reshape(times * rows * columns, -1), (times, rows, columns)


def _frames(video: Any) -> list[np.ndarray]:
    """(height, width, 3) uint8 each."""
    frames = [np.asarray(one) for one in video]
    if frames and frames[0].ndim == 3 and frames[0].shape[-1] != 3 and frames[0].shape[0] == 3:
        frames = [one.transpose(1, 2, 0) for one in frames]
    bad = [one for one in frames if one.dtype != np.uint8 or one.ndim != 3 or one.shape[-1] != 3]
    if not frames or bad:
        told = f"{bad[0].shape} of {bad[0].dtype}" if bad else "no frames"
        raise ValueError(f"a video is some RGB frames of 8 bits, got {told}")
    return frames
