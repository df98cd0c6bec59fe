"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: dynamic resolution, merged patches, M-RoPE positions, images and videos."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.attention import beside, projecting, recording, tapped_config
from foveate.models.base import Family, accepted
from foveate.models.encoded import (
    EncodedImage,
    Kept,
    Kind,
    Request,
    Rope,
    grid_geometry,
    grid_places,
    read_tokens,
    recorder_for,
)
from foveate.models.frame_labels import frame_labels
from foveate.patches import Patch

Grid = tuple[int, int, int]
"""Frames, rows, columns of the encoder's patches."""


class PackedVisionFamily(Family):
    """What families share whose encoder packs the patches of all images, merges them by squares, and has M-RoPE."""

    positions = ("original",)
    image_inputs = ("pixel_values", "image_grid_thw")
    merge = "2x2"
    saliency = "mean received attention, last layer"

    def check(self) -> None:
        self.blocks: Sequence[Any] = self.base.visual.blocks
        self.side: int = self.base.visual.spatial_merge_size

    @property
    def first_block(self) -> nn.Module:
        block: nn.Module = self.blocks[0]
        return block

    @property
    def read_layer(self) -> int:
        """The layer whose attention is read: the last."""
        return len(self.blocks) - 1

    @property
    def reader(self) -> nn.Module:
        """What the encoder's last features go into: the merger."""
        merger: nn.Module = self.base.visual.merger
        return merger

    @staticmethod
    def patches_of(given: Tensor) -> Tensor:
        """What ``reader`` is given to (..., d), one row per patch in the encoder's order."""
        return given

    def instruments(self) -> Sequence[Patch]:
        attention = self.blocks[self.read_layer].attn
        return [
            Patch(attention, "config", tapped_config(attention)),
            Patch(self.reader, "forward", projecting(self.reader)),
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
        if pixels.ndim != 2 or len(pixels) != patches:
            raise ValueError(
                f"{self.title} takes {pixels_name} as (patches, values) with {patches} patches for {grid_name} "
                f"{grids}, got {tuple(pixels.shape)}"
            )
        frames = [h * w for t, h, w in grids for _ in range(t)]
        recorder = recorder_for(
            request,
            "received",
            self.blocks[self.read_layer].attn,
            project=self.reader,
            patches=self.patches_of,
            segments=frames,
        )
        with recording(recorder) as record:
            output = request.features(pixels, given, return_dict=True)
        counts = [len(stream) for stream in output.pooler_output]
        planes = [
            plane.split(counts) if torch.is_tensor(plane) else plane
            for plane in getattr(output, "deepstack_features", None) or []
        ]
        sources = self.sources(grids)
        images, start = [], 0
        for number, (grid, stream) in enumerate(zip(grids, output.pooler_output, strict=True)):
            times, rows, columns = grid[0], grid[1] // self.side, grid[2] // self.side
            size = self.config.vision_config.patch_size
            seen = (grid[1] * size, grid[2] * size)
            ours = sources[start : start + len(stream)]
            start += len(stream)
            boxes = torch.tensor([[0, 0, seen[1], seen[0]]], device="cpu").expand(times, -1)
            tokens = read_tokens(
                record, stream, grid_geometry([(rows, columns)] * times, boxes, seen, stream.device), ours
            )
            images.append(EncodedImage.of_patches(tokens, tuple(plane[number] for plane in planes), kind))
        return images

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """(N, m) int64: which of the encoder's patches each token is merged from. The processor puts them together."""
        unit = self.side**2
        return torch.arange(sum(t * h * w for t, h, w in grids), device="cpu").view(-1, unit)

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        grids = {
            name: torch.as_tensor(arguments[name], device="cpu")
            for name in ("image_grid_thw", "video_grid_thw")
            if arguments.get(name) is not None
        }
        if types is None:
            if grids:
                raise ValueError(
                    f"{self.title} needs mm_token_type_ids: without them stock transformers silently numbers images "
                    "like text. Pass all that the processor returned."
                )
            types = torch.zeros_like(ids)
        seconds = arguments.get("second_per_grid_ts")
        stock = self.base.get_rope_index
        positions, deltas = stock(
            input_ids=ids,
            mm_token_type_ids=types,
            attention_mask=mask.long(),
            **accepted(stock, {**grids, "second_per_grid_ts": seconds}),
        )
        return Rope(positions, deltas.flatten() + mask.sum(dim=1))


class Qwen2Vl(PackedVisionFamily):
    """``Qwen2VLForConditionalGeneration``."""

    title = "Qwen2-VL"
    model_types = ("qwen2_vl",)
    video_inputs = ("pixel_values_videos", "video_grid_thw")


class Qwen25Vl(PackedVisionFamily):
    """``Qwen2_5_VLForConditionalGeneration``: attention in windows, but for a few layers."""

    title = "Qwen2.5-VL"
    model_types = ("qwen2_5_vl",)
    video_inputs = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    saliency = "mean received attention, last layer that sees the whole image"

    def check(self) -> None:
        super().check()
        if not self._whole:
            raise ValueError(
                f"{self.title}: vision_config.fullatt_block_indexes={self.base.visual.fullatt_block_indexes} "
                f"names none of the {len(self.blocks)} layers, so none sees the whole image and no saliency can be read"
            )

    @property
    def read_layer(self) -> int:
        """The last layer that is not confined to windows."""
        return max(self._whole)

    @property
    def _whole(self) -> list[int]:
        """Layers that see the whole image; stock passes over indexes that no layer has."""
        named = self.base.visual.fullatt_block_indexes
        return [layer for layer in range(len(self.blocks)) if layer in named]

    def sources(self, grids: Sequence[Grid]) -> Tensor:
        """The encoder sees the merged squares window by window; where each has gone is worked out as it does."""
        vision = self.config.vision_config
        across = vision.window_size // self.side // vision.patch_size
        order, first = [], 0
        for frames, height, width in grids:
            rows, columns = height // self.side, width // self.side
            line, column = grid_places(frames * rows, columns)
            window = (line // rows * rows + line % rows // across) * columns + column // across
            order.append(first + window.argsort(stable=True))
            first += window.numel()
        place = torch.cat(order).argsort()
        unit = self.side**2
        return place[:, None] * unit + torch.arange(unit, device="cpu")


class Qwen3Vl(PackedVisionFamily):
    """``Qwen3VLForConditionalGeneration`` and its MoE variant: DeepStack planes go along with the tokens."""

    title = "Qwen3-VL"
    model_types = ("qwen3_vl", "qwen3_vl_moe")
    video_inputs = ("pixel_values_videos", "video_grid_thw")

    def marks(self, ids: Tensor) -> Tensor:
        """Also the times between a video's frames."""
        known = super().marks(ids)
        return known | frame_labels(ids, self.placeholder_ids["video"], known)

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        depth = len(self.base.visual.deepstack_visual_indexes)
        planes: list[Any] = [[one.planes[level] for one in kept] for level in range(depth)]
        # Since 5.18, which takes encoded images from outside, a plane is a list of one tensor per image.
        if "mm_encoder_outputs" not in inspect.signature(self.base.forward).parameters:
            planes = [torch.cat(plane) for plane in planes]
        output = beside(self.base, "BaseModelOutputWithDeepstackFeatures")
        return output(pooler_output=[one.features for one in kept], deepstack_features=planes)
