"""LLaVA-OneVision: LLaVA-NeXT's views, shrunk above a limit; a single view where there are several images; videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foveate.attention import Recorder, recording
from foveate.models.base import frames_in
from foveate.models.canvas import Canvas
from foveate.models.encoded import NEWLINE, EncodedImage, Kept, Kind, Request, grid_geometry, grid_places, read_tokens
from foveate.models.llava_next import LlavaNext
from foveate.models.towers import Tower
from foveate.tokens import Geometry, VisualTokens


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``.

    Where stock transformers shrinks features (crops above the limit, a video's frames), a token is a bilinear mean of
    patches: what is read of the encoder is the same mean, its box is the part of the picture it stands for, and its
    row and column are those of the patch in the middle of it.
    """

    title = "LLaVA-OneVision"
    model_types = ("llava_onevision",)
    checkpoints = {"llava_onevision": "llava-hf/llava-onevision-qwen2-7b-ov-hf"}
    layouts = ("stock",)
    image_inputs = ("pixel_values", "image_sizes", "batch_num_images")
    video_inputs = ("pixel_values_videos",)
    views = "1 + crops; 1 of several images"
    merge = "1; 2x2 in videos"
    frame_by_frame = True
    saliency = "mean received attention"
    packing = MappingProxyType({"vision_aspect_ratio": "anyres_max_1000000"})  # a limit that shrinks nothing

    def check(self) -> None:
        self.tower = Tower(self.base, self.config, {"siglip_vision_model": "received"})

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        ratio = inputs.get("vision_aspect_ratio")
        if ratio is not None and ratio != self.config.vision_aspect_ratio:
            raise ValueError(
                f"vision_aspect_ratio={ratio!r} as an argument does not reach stock packing in every mode: set it in "
                f"the model's and the processor's config (now {self.config.vision_aspect_ratio!r})"
            )

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels, sizes = inputs["pixel_values"], self._sizes(inputs)
        canvases = self._cuts(inputs, sizes)
        views = self._views(pixels, sizes, canvases)
        reading = self.tower.reading(inputs)
        names = ("image_sizes", "batch_num_images", "vision_feature_layer", "vision_feature_select_strategy")
        with recording(self.tower.recorder(reading, request)) as record:
            output = request.features(
                pixel_values=pixels, **{name: inputs.get(name) for name in names}, return_dict=True
            )
        images, first = [], 0
        for size, canvas, count, stream in zip(sizes, canvases, views, output.pooler_output, strict=True):
            sources = torch.arange(first, first + count * self.tower.side**2, device="cpu")
            first += len(sources)
            images.append(
                self._single(size, stream, record, sources)
                if canvas is None
                else self._cropped(canvas, stream, record, sources)
            )
        return images

    def _cuts(self, inputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> list[Canvas | None]:
        cut = self._cut(inputs.get("batch_num_images"), len(sizes))
        return [self._canvas(size) if crops else None for size, crops in zip(sizes, cut, strict=True)]

    @staticmethod
    def _cut(numbers: Any, images: int) -> list[bool]:
        """Which images are cut into crops: those that are alone in their prompt, as ``batch_num_images`` says."""
        if numbers is None:
            return [True] * images
        counts = [int(number) for number in (numbers.tolist() if torch.is_tensor(numbers) else numbers)]
        if sum(counts) != images:
            raise ValueError(f"batch_num_images {counts} speak of {sum(counts)} images, and image_sizes of {images}")
        return [count == 1 for count in counts for _ in range(count)]

    def _single(self, size: tuple[int, int], stream: Tensor, record: Recorder, sources: Tensor) -> EncodedImage:
        """One of several images: padded to a square, one view, one newline after it."""
        height, width = size
        longest, side = max(size), self.tower.side
        top, left = (longest - height) // 2, (longest - width) // 2
        seen = longest * self.tower.covered / self.config.vision_config.image_size
        box = torch.tensor([[-left, -top, seen - left, seen - top]], device="cpu")
        whole = grid_geometry([(side, side)], box, size, stream.device)
        boxes = whole.boxes.clamp(min=0).minimum(whole.boxes.new_tensor([width, height] * 2))
        geometry = replace(whole, boxes=boxes)
        return self._ended(read_tokens(record, stream[:-1], geometry, sources), stream)

    def _ended(self, tokens: VisualTokens, stream: Tensor, kind: Kind = "image") -> EncodedImage:
        """Patches with one newline after all of them: it ends the whole as if it were one line."""
        count = len(tokens)
        slots = torch.arange(count + 1, device="cpu")
        slots[-1] = NEWLINE
        return EncodedImage(tokens, count + 1, slots, torch.zeros_like(slots), stream, (), kind)

    def _cropped(self, canvas: Canvas, stream: Tensor, record: Recorder, sources: Tensor) -> EncodedImage:
        device = stream.device
        ratio = {"vision_aspect_ratio": self.config.vision_aspect_ratio}
        newline = self._is_newline(canvas)
        patch = (~newline).nonzero()[:, 0].to(device)

        def packed(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return self._pack(values.view(len(sources), -1), canvas, **ratio)[patch].view(-1, *values.shape[1:])

        tokens = VisualTokens(
            features=stream[patch],
            geometry=self._place(canvas, int(newline.sum()), len(newline), device),
            saliency=packed(record.saliency(sources, device)),
            keys=packed(record.keys_of(sources, device)),
            encoded=packed(record.encoded_of(sources, device)),
        )
        # Also where all views are encoded: a session's later question may ask for some of them.
        return replace(self._in_lines(tokens, stream, newline), support=partial(self._support, canvas))

    def newlines(self, image: tuple[int, int]) -> int:
        """Of a picture that is cut into crops."""
        return int(self._is_newline(self._canvas(image)).sum())

    def _support(self, canvas: Canvas) -> Tensor:
        """(N, views) bool: which views each token of an image in crops is made of: where packing has shrunk the crops,
        one at a border is made of patches on both sides of it."""
        views, patches = 1 + canvas.grid[0] * canvas.grid[1], self.tower.side**2
        belongs = torch.eye(views, device="cpu").repeat_interleave(patches, dim=0)
        packed = self._pack(belongs, canvas, vision_aspect_ratio=self.config.vision_aspect_ratio)
        return packed[~self._is_newline(canvas)] > 0

    def _is_newline(self, canvas: Canvas) -> Tensor:
        """(n,) bool: which placeholders of an image in crops end a row."""
        patches = (1 + canvas.grid[0] * canvas.grid[1]) * self.tower.side**2
        ratio = self.config.vision_aspect_ratio
        return self._pack(torch.zeros(patches, 1, device="cpu"), canvas, vision_aspect_ratio=ratio)[:, 0] == NEWLINE

    def _place(self, canvas: Canvas, rows: int, placeholders: int, device: torch.device) -> Geometry:
        """The base view's patches, then ``rows`` rows of tokens laid over what is not padding of the canvas."""
        side = self.tower.side
        base = torch.arange(side**2, device="cpu")
        if placeholders - rows == side**2:  # a picture so long and thin that unpadding leaves nothing of its crops
            return self._geometry(canvas, base, device)
        columns = (placeholders - side**2) // rows - 1
        whole = self._stream_sources(canvas)
        unpadded = whole[side**2 :].view(int((whole == NEWLINE).sum()), -1)[:, :-1]
        height, width = unpadded.shape[0] / rows, unpadded.shape[1] / columns  # of a token, in patches
        row, column = (place.double() for place in grid_places(rows, columns))
        middle = unpadded[((row + 0.5) * height).long(), ((column + 0.5) * width).long()]
        view, place = divmod(int(unpadded[0, 0]), side**2)
        top = (view - 1) // canvas.grid[1] * side + place // side
        left = (view - 1) % canvas.grid[1] * side + place % side
        cells = torch.stack([column * width, row * height, (column + 1) * width, (row + 1) * height], dim=1)
        cells += cells.new_tensor([left, top] * 2)
        return self._geometry(canvas, torch.cat([base, middle]), device, cells)

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels = frames_in(self.title, inputs)
        reading = self.tower.reading(inputs)
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        with recording(self.tower.recorder(reading, request)) as record:
            # The pixels by place: their argument was called pixel_values before.
            output = request.features(pixels, **{name: inputs.get(name) for name in names}, return_dict=True)
        frames, side = pixels.shape[1], self.tower.side
        pooled = math.ceil(side / 2)
        size = (pixels.shape[3], pixels.shape[4])
        boxes = torch.tensor([[0, 0, *[self.tower.covered] * 2]], device="cpu").expand(frames, -1)
        geometry = grid_geometry([(pooled, pooled)] * frames, boxes, size, pixels.device)

        def through(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            planes = values.view(frames, side, side, -1).permute(0, 3, 1, 2)
            means = interpolate(planes, size=(pooled, pooled), mode="bilinear")
            return means.permute(0, 2, 3, 1).reshape(-1, *values.shape[1:])

        videos = []
        for number, stream in enumerate(output.pooler_output):
            if len(stream) != len(geometry) + 1:
                raise ValueError(
                    f"{self.title}: this version of transformers puts the newline after a video by itself, so videos "
                    "cannot be pruned: update it (5.18 and newer do not), or pass frames as images"
                )
            sources = torch.arange(frames * side**2, device="cpu") + number * frames * side**2
            tokens = VisualTokens(
                stream[:-1],
                geometry,
                through(record.saliency(sources, stream.device)),
                full_grid=True,
                keys=through(record.keys_of(sources, stream.device)),
                encoded=through(record.encoded_of(sources, stream.device)),
            )
            videos.append(self._ended(tokens, stream, "video"))
        return videos

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        package = super().package(kept, kind)
        if kind == "video":  # one tensor, flattened by the model; videos of different lengths fit only token by token
            package.pooler_output = torch.cat(package.pooler_output)[:, None]
        return package
