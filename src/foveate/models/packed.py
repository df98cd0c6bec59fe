"""Encoders that pack the patches of all images into one sequence, with a grid for each, and merge them by squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.attention import Read, handing, projecting, recording, tapped_config
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Kind, Request, grid_geometry, read_tokens, recorder_for
from foveate.models.frame_labels import frame_labels
from foveate.patches import Patch

SECONDS = ("second_per_grid_ts", "video_second_per_grid")
"""What an argument is called, in one family or another, that says how long a step of a video's grid lasts."""
Grid = tuple[int, int, int]
"""Frames, rows, columns of the encoder's patches."""


class PackedFamily(Family):
    """What families share whose encoder packs the patches of all images and merges them by squares.

    A subclass says where things stand in its classes (``tower_at`` and so on). Positions are plain ones;
    ``PackedRopeFamily`` (``packed_rope.py``) has those of three dimensions.
    """

    tower_at: ClassVar[str] = "visual"
    """Where the vision encoder stands in the inner model."""
    blocks_at: ClassVar[str] = "blocks"
    """Where its layers stand in it."""
    attention_at: ClassVar[str] = "attn"
    """Where its attention stands in a layer; it goes through transformers' attention functions."""
    reader_at: ClassVar[str] = "visual.merger"
    """Where in the inner model that stands which the last features go into, or its last norm (``reads_output``)."""
    read: ClassVar[Read] = "received"
    """Which of that attention is read; with a class token before the patches of every image, its row."""
    timed: ClassVar[bool] = False
    """Whether a time is written beside every frame of a video: a label, which guides nothing."""

    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_grid_thw")
    pixel_axes: ClassVar[tuple[str, ...]] = ("patches", "values")
    """What the axes of the pixels are."""
    reads_output: ClassVar[bool] = False
    """Whether the encoder's last features are what ``reader`` gives (its last norm), rather than what it is given."""
    pads: ClassVar[bool] = False
    """Whether the processor pads images to whole tokens, rather than stretching them."""
    least: ClassVar[int] = 0
    """Tokens to which it scales smaller images up, if it pads and what is scaled reaches an edge; see ``Geometry``."""
    merge = "2x2"
    saliency = "mean received attention, last layer"

    def check(self) -> None:
        """Nothing that all of them would have to refuse."""

    @property
    def tower(self) -> Any:
        """The vision encoder."""
        return attrgetter(self.tower_at)(self.base)

    @property
    def blocks(self) -> Sequence[Any]:
        """Its layers."""
        blocks: Sequence[Any] = attrgetter(self.blocks_at)(self.tower)
        return blocks

    @property
    def attention(self) -> nn.Module:
        """The attention module of the layer that is read."""
        attention: nn.Module = attrgetter(self.attention_at)(self.blocks[self.read_layer])
        return attention

    @property
    def reader(self) -> nn.Module:
        """What the encoder's last features go into, or come from."""
        reader: nn.Module = attrgetter(self.reader_at)(self.base)
        return reader

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times beside a video's frames."""
        known = super().marks(ids)
        if not self.timed:
            return known
        return known | frame_labels(ids, self.placeholder_ids["video"], known, self.special_token_ids)

    @property
    def side(self) -> int:
        """Patches per side of the square that becomes one token."""
        return int(self.tower.spatial_merge_size)

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return int(self.config.vision_config.patch_size)

    @property
    def first_block(self) -> nn.Module:
        block: nn.Module = self.blocks[0]
        return block

    @property
    def read_layer(self) -> int:
        """The layer whose attention is read: the last."""
        return len(self.blocks) - 1

    @staticmethod
    def patches_of(given: Tensor) -> Tensor:
        """What ``reader`` is given to (..., d), one row per patch in the encoder's order."""
        return given

    def handed(self, grids: Sequence[Grid]) -> Callable[[Tensor], Tensor]:
        """The same for encoders where the order depends on the grids."""
        return self.patches_of

    def instruments(self) -> Sequence[Patch]:
        read = handing(self.reader, lambda output: output) if self.reads_output else projecting(self.reader)
        return [
            Patch(self.attention, "config", tapped_config(self.attention)),
            Patch(self.reader, "forward", read),
        ]

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        return self._encode(inputs, request, "image")

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        return self._encode(inputs, request, "video")

    def _encode(self, inputs: Mapping[str, Any], request: Request, kind: Kind) -> list[EncodedImage]:
        pixels_name, grid_name = self.inputs_of(kind)[:2]
        pixels, given = inputs[pixels_name], inputs.get(grid_name)
        if given is None:
            raise ValueError(
                f"{self.title} needs {grid_name} beside {pixels_name}: pass all that the processor returned"
            )
        grids: list[Grid] = [(t, h, w) for t, h, w in torch.as_tensor(given, device="cpu").tolist()]  # one read for all
        patches = sum(t * h * w for t, h, w in grids)
        if not torch.is_tensor(pixels) or pixels.ndim != len(self.pixel_axes) or len(pixels) != patches:
            raise ValueError(
                f"{self.title} takes {pixels_name} as ({', '.join(self.pixel_axes)}) with {patches} patches for "
                f"{grid_name} {grids}, got {tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        recorder = recorder_for(
            request,
            self.read,
            self.attention,
            project=self.reader,
            patches=self.handed(grids),
            segments=self.segments(grids),
        )
        with recording(recorder) as record:
            output = self.features(inputs, request, kind)
        counts = [len(stream) for stream in output.pooler_output]
        planes = [
            plane.split(counts) if torch.is_tensor(plane) else plane
            for plane in getattr(output, "deepstack_features", None) or []
        ]
        sources = self.sources(grids)
        # Of every video, the seconds from one step of its grid to the next; other families write times as text alone.
        given = next((inputs[name] for name in SECONDS if kind == "video" and inputs.get(name) is not None), None)
        seconds = None if given is None else torch.as_tensor(given, device="cpu").flatten().tolist()
        images, start = [], 0
        for number, (grid, stream) in enumerate(zip(grids, output.pooler_output, strict=True)):
            times, rows, columns = self.tokens_of(grid)
            seen = (grid[1] * self.patch, grid[2] * self.patch)
            count = times * rows * columns
            ours = sources[start : start + count]
            start += count
            boxes = torch.tensor([[0, 0, seen[1], seen[0]]], device="cpu").expand(times, -1)
            geometry = grid_geometry([(rows, columns)] * times, boxes, seen, stream.device)
            if self.pads:
                unit = self.side * self.patch
                geometry = replace(geometry, padded=unit, least=self.least * unit**2 // times)
            if kind == "video":
                geometry = geometry.as_frames(None if seconds is None else seconds[number])
            slots, deeper = self.slots(grid), tuple(plane[number] for plane in planes)
            features = stream if slots is None else stream[(slots >= 0).to(stream.device)]
            tokens = read_tokens(record, features, geometry, ours)
            if slots is None:
                images.append(EncodedImage.of_patches(tokens, deeper, kind))
            else:
                images.append(EncodedImage(tokens, len(slots), slots, None, stream, deeper, kind))
        return images

    def slots(self, grid: Grid) -> Tensor | None:
        """(n,) int64 on the CPU: what the placeholders of a grid of patches carry; None: a token each, in order."""
        return None

    def features(self, inputs: Mapping[str, Any], request: Request, kind: Kind) -> Any:
        """What the model's own function gives: a ``pooler_output`` with (n, D) of every image."""
        pixels_name, grid_name = self.inputs_of(kind)[:2]
        return request.features(inputs[pixels_name], inputs[grid_name], return_dict=True)

    def segments(self, grids: Sequence[Grid]) -> list[int]:
        """How many patches each of the sequences has that attend only within themselves: a frame each."""
        return [rows * columns for times, rows, columns in grids for _ in range(times)]

    def tokens_of(self, grid: Grid) -> Grid:
        """Frames, rows and columns of the tokens that a grid of patches becomes."""
        return grid[0], grid[1] // self.side, grid[2] // self.side

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """(N, m) int64: which of the encoder's patches each token is merged from. The processor puts them together."""
        unit = self.side**2
        return torch.arange(sum(t * h * w for t, h, w in grids), device="cpu").view(-1, unit)
