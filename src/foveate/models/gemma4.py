"""Gemma 4: images in their own proportions, squares of patches averaged to a token, which see each other in the LLM."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import Recorder, projecting, recording, tapped_config
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Kind, Request, grid_geometry, read_tokens, recorder_for
from foveate.models.padded import require_patches, unpadded
from foveate.models.squares import square_sources
from foveate.models.stock import require_encoded_apart
from foveate.models.tiles import runs_of
from foveate.patches import Patch

TIME = 5
"""Tokens of a time, "01:23": digits are tokens of their own."""


class Gemma4(Family):
    """``Gemma4ForConditionalGeneration``: dense, with experts, and with embeddings per layer (E2B, E4B).

    Larger models let an image's (or a frame's) tokens see each other within the window: ``mm_token_type_ids`` say
    where, and are shortened with the prompt; the marks around every image stay, so that blocks never grow together.
    What smaller models add to every layer is looked up by id, alike for all placeholders.
    """

    title = "Gemma 4"
    model_types = ("gemma4",)
    image_inputs = ("pixel_values", "image_position_ids")
    video_inputs = ("pixel_values_videos", "video_position_ids", "num_frames_per_video")
    merge = "3x3 average"
    saliency = "mean received attention, last layer"
    since = "5.19"
    checkpoints = {"gemma4": "google/gemma-4-E2B-it"}

    def check(self) -> None:
        if self.config.vision_config is None:
            raise ValueError(f"{self.title}: this checkpoint has no vision_config, so it sees no images to prune")
        require_encoded_apart(self.title, self.base)

    @property
    def side(self) -> int:
        """Patches per side of the square that is averaged to a token."""
        return int(self.config.vision_config.pooling_kernel_size)

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return int(self.config.vision_config.patch_size)

    def recorder(self, request: Request, lengths: Sequence[int]) -> Recorder:
        """What taps the encoder in one call on views of so many patches."""
        return recorder_for(
            request,
            "received",
            self._attention,
            project=self.base.vision_tower.pooler,
            patches=unpadded(lengths),
            segments=lengths,
        )

    @property
    def _attention(self) -> nn.Module:
        attention: nn.Module = self.base.vision_tower.encoder.layers[-1].self_attn
        return attention

    def instruments(self) -> Sequence[Patch]:
        pooler = self.base.vision_tower.pooler
        return [
            Patch(self._attention, "config", tapped_config(self._attention)),
            Patch(pooler, "forward", projecting(pooler)),
        ]

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        grids = self._grids(inputs, "image")
        return self._encode(inputs, request, "image", [[grid] for grid in grids])

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        grids, counts = self._grids(inputs, "video"), inputs.get("num_frames_per_video")
        if counts is None:
            raise ValueError(
                f"{self.title} needs num_frames_per_video beside pixel_values_videos: pass all that the processor "
                "returned"
            )
        frames = torch.as_tensor(counts, device="cpu").tolist()
        if sum(frames) != len(grids):
            raise ValueError(f"num_frames_per_video {frames} does not add up to the {len(grids)} frames there are")
        parts = iter(grids)
        return self._encode(inputs, request, "video", [[next(parts) for _ in range(count)] for count in frames])

    def _encode(
        self, inputs: Mapping[str, Any], request: Request, kind: Kind, views: Sequence[Sequence[tuple[int, int]]]
    ) -> list[EncodedImage]:
        side = self.side
        lengths = [rows * columns for grids in views for rows, columns in grids]
        given = {name: inputs[name] for name in self.inputs_of(kind) if inputs.get(name) is not None}
        with recording(self.recorder(request, lengths)) as record:
            streams = request.features(**given, return_dict=True).pooler_output
        images, start = [], 0
        for grids, stream in zip(views, streams, strict=True):
            sources = []
            for grid in grids:
                sources.append(start + square_sources(grid, side))
                start += grid[0] * grid[1]
            seen = (grids[0][0] * self.patch, grids[0][1] * self.patch)
            boxes = torch.tensor([[0, 0, seen[1], seen[0]]], device="cpu").expand(len(grids), -1)
            cells = [(rows // side, columns // side) for rows, columns in grids]
            geometry = grid_geometry(cells, boxes, seen, stream.device)
            tokens = read_tokens(record, stream, geometry, torch.cat(sources))
            images.append(EncodedImage.of_patches(tokens, kind=kind))
        return images

    def _grids(self, inputs: Mapping[str, Any], kind: Kind) -> list[tuple[int, int]]:
        """(rows, columns) of the patches of every image or frame."""
        names = self.inputs_of(kind)[:2]
        pixels, positions = (inputs.get(name) for name in names)
        require_patches(self.title, names[0], pixels, names[1], positions, 2)
        assert torch.is_tensor(positions)
        columns, rows = (positions.amax(dim=1) + 1).unbind(dim=1)
        place = torch.arange(positions.shape[1], device=positions.device)
        width = columns.clamp(min=1)[:, None]
        written = torch.stack([place % width, place // width], dim=-1)
        written = torch.where((place < (rows * columns)[:, None])[..., None], written, -1)
        same = (written == positions).all(dim=2).all(dim=1)
        side = self.side
        grids = []
        for height, width_, fine in torch.stack([rows, columns, same], dim=1).tolist():  # one read for all
            if not fine or height < 1 or height % side or width_ % side:
                raise ValueError(
                    f"{self.title} takes {names[1]} as its processor writes them: row by row, sides that are a "
                    f"multiple of {side}, -1 behind them"
                )
            grids.append((height, width_))
        return grids

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        passes = "num_frames_per_video" in inspect.signature(self.base.get_video_features).parameters
        if self.has(inputs, "video") and not passes:
            raise ValueError(
                f"{self.title}: this transformers wants videos of one length, and tells them by it: upgrade "
                "transformers, or pass frames as images"
            )

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times before a video's frames."""
        found = super().marks(ids)
        for row, line in zip(ids, found, strict=True):
            for first, end in times_before(row, self.placeholder_ids["video"]):
                line[first:end] = True
        return found


def times_before(row: Tensor, token: int) -> list[tuple[int, int]]:
    """(first, past the last) column of the times that the processor writes before the marks of a video's frames.

    No config names their tokens. The colon stands at the same distance from every frame; there may be a blank behind.

    Args:
        row: (S,) int64 ids on the CPU, -1 where not to be looked at.
        token: the placeholder's id.
    """
    starts = [first - 1 for first, _ in runs_of(row, token)]
    if not starts or min(starts) <= TIME:
        return []
    blank = all(int(row[start - 1]) not in row[start - TIME - 1 : start - 1].tolist() for start in starts)
    times = [row[start - TIME - blank : start - blank].tolist() for start in starts]
    colons = {time[TIME // 2] for time in times}
    digits = {digit for time in times for place, digit in enumerate(time) if place != TIME // 2}
    if len(colons) > 1 or colons & digits or -1 in digits:
        return []
    return [(start - TIME - blank, start) for start in starts]
