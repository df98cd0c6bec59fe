"""LLaVA-NeXT: a base view and crops, unpadded, with ``image_newline`` among the placeholders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from foveate.attention import Recorder, recording
from foveate.models.canvas import Canvas, Places
from foveate.models.encoded import NEWLINE, EncodedImage, Layout, Request, read_sizes, read_tokens
from foveate.models.memo import once
from foveate.models.towers import Reading, TowerFamily
from foveate.models.view_store import picking, putting
from foveate.patches import Patch
from foveate.tokens import Geometry, VisualTokens


class LlavaNext(TowerFamily):
    """``LlavaNextForConditionalGeneration`` with a CLIP or SigLIP tower."""

    title = "LLaVA-NeXT"
    model_types = ("llava_next",)
    checkpoints = {"llava_next": "llava-hf/llava-v1.6-mistral-7b-hf"}
    layouts: ClassVar[tuple[Layout, ...]] = ("stock", "released")
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    views = "1 + crops"
    crops = True
    packing: ClassVar[Mapping[str, str]] = {"vision_feature_select_strategy": "default"}
    """What stock packing is told when it shall move patches, and nothing else."""

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        pixels, sizes = inputs["pixel_values"], self._sizes(inputs)
        # A few integers per image, read once for all of them.
        canvases = [self._canvas(size) for size in sizes]
        views = self._views(pixels, sizes, canvases)
        reading = self.tower.reading(inputs)
        self._refuse_cls(reading)
        with recording(self.tower.recorder(reading, request)) as record:
            output = request.features(
                pixel_values=pixels,
                image_sizes=inputs["image_sizes"],
                vision_feature_layer=inputs.get("vision_feature_layer"),
                vision_feature_select_strategy=inputs.get("vision_feature_select_strategy"),
                return_dict=True,
            )
        first = [sum(views[:number]) * self.side**2 for number in range(len(views))]
        released = request.layout == "released"
        projected = torch.cat(record.projected).split(views) if released else [None] * len(views)
        return [
            self._image(canvas, stream, full, record, start)
            for canvas, stream, full, start in zip(canvases, output.pooler_output, projected, first, strict=True)
        ]

    @property
    def side(self) -> int:
        """Tokens along a view's side."""
        return self.tower.side

    @property
    def cell(self) -> int:
        """Pixels along a token's side."""
        return int(self.config.vision_config.patch_size)

    def sources(self, order: Tensor) -> Tensor:
        """(N,) tokens, counted through all views, to (N,) or (N, m): the encoder's patches that each stands for."""
        return order

    def _refuse_cls(self, reading: Reading) -> None:
        if self.tower.read == "cls" and reading.strategy == "full":
            raise ValueError(
                "vision_feature_select_strategy='full' sends CLS along with a CLIP tower's patches, which stock "
                "LLaVA-NeXT cannot arrange in a grid. Set it to 'default'."
            )

    def views_of(self, inputs: Mapping[str, Any], prompt: Tensor | None) -> list[tuple[int, ...]]:
        counts = self._counts(inputs)
        return [tuple(range(end - count, end)) for count, end in zip(counts, accumulate(counts), strict=True)]

    def pixels_of(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        pixels: Tensor = inputs["pixel_values"]
        if pixels.ndim == 4:
            return (pixels,)
        return (torch.cat([one[:count] for one, count in zip(pixels, self._counts(inputs), strict=True)]),)

    def instruments(self) -> Sequence[Patch]:
        """Also a tower that takes only the views that are wanted, and a projector that gives all: between the two,
        stock code packs pictures by their views."""
        tower, projector = self.base.vision_tower, self.tower.projector
        others = [one for one in self.tower.instruments() if one.owner is not projector]
        return [*others, Patch(projector, "forward", putting(projector)), Patch(tower, "forward", picking(tower))]

    def _counts(self, inputs: Mapping[str, Any]) -> list[int]:
        sizes = self._sizes(inputs)
        return self._views(inputs["pixel_values"], sizes, self._cuts(inputs, sizes))

    def _cuts(self, inputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> list[Canvas | None]:
        """How every image is cut into crops; None where it is not."""
        return [self._canvas(size) for size in sizes]

    def _sizes(self, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        """(height, width) of every image."""
        given = inputs.get("image_sizes")
        if given is None:
            raise ValueError(
                f"{self.title} needs image_sizes beside pixel_values: pass all that the processor returned"
            )
        return read_sizes(given)

    def _views(self, pixels: Any, sizes: Sequence[tuple[int, int]], canvases: Sequence[Canvas | None]) -> list[int]:
        """How many views every image has (one where it is not cut), checked against the pixels."""
        if not torch.is_tensor(pixels) or pixels.ndim not in (4, 5):
            raise ValueError(
                f"{self.title} takes pixel_values as one tensor (images, views, channels, height, width), or (views of "
                "all images, channels, height, width), got "
                f"{tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
            )
        views = [1 if canvas is None else 1 + canvas.grid[0] * canvas.grid[1] for canvas in canvases]
        if pixels.ndim == 5 and len(sizes) != len(pixels):
            raise ValueError(f"{len(pixels)} images in pixel_values, but {len(sizes)} in image_sizes")
        if pixels.ndim == 5 and max(views) > pixels.shape[1]:
            wrong = f"make up to {max(views)} views of an image, and pixel_values hold {pixels.shape[1]}"
        elif pixels.ndim == 4 and sum(views) != len(pixels):
            wrong = f"make {sum(views)} views, and pixel_values hold {len(pixels)}"
        else:
            return views
        raise ValueError(
            f"image_sizes {list(sizes)} {wrong}: they and the model's image_grid_pinpoints (with LLaVA-OneVision, "
            "batch_num_images too) must come from one processor"
        )

    def _image(self, canvas: Canvas, stream: Tensor, full: Tensor | None, record: Recorder, start: int) -> EncodedImage:
        """One image; ``full`` are the projected patches of all its views for the released layout, else None."""
        device = stream.device
        places = self._places(canvas, device)
        if full is not None:
            order = torch.arange(full.shape[0] * full.shape[1], device="cpu")
            geometry = self._geometry(canvas, order, device)
            return EncodedImage(read_tokens(record, full.flatten(0, 1), geometry, start + order), len(places.slots))
        sources = self.sources(start + places.order)
        tokens = read_tokens(record, stream[places.patches], places.geometry, sources, full_grid=False)
        return EncodedImage(tokens, len(places.slots), places.slots, places.lines, stream)

    def _places(self, canvas: Canvas, device: torch.device) -> Places:
        """Where the patches of a picture that is cut like this stand and lie."""
        vision, packing = self.config.vision_config, tuple(sorted(self.packing.items()))

        def make() -> Places:
            source = self._stream_sources(canvas)
            patch = source >= 0
            order = source[patch]
            geometry = self._geometry(canvas, order, device)
            return Places(patch.nonzero()[:, 0].to(device), order, geometry, *self._lines(~patch))

        return once(self.base, (canvas, packing, vision.image_size, vision.patch_size, device), make)

    def newlines(self, image: tuple[int, int]) -> int:
        return int((self._stream_sources(self._canvas(image)) == NEWLINE).sum())

    def tokens_of_views(self, image: tuple[int, int], tokens: int) -> list[int]:
        if tokens == self.side**2:  # one of several pictures, which is not cut
            return [tokens]
        support = self._support(self._canvas(image))
        found: list[int] = support[support.sum(dim=1) == 1].sum(dim=0).tolist()
        return found

    def _support(self, canvas: Canvas) -> Tensor:
        """(N, views) bool: which views each token of an image in crops is made of."""
        sources = self._stream_sources(canvas)
        views = 1 + canvas.grid[0] * canvas.grid[1]
        return torch.nn.functional.one_hot(sources[sources >= 0] // self.side**2, views).bool()

    def count_views(self, image: tuple[int, int]) -> int:
        """How many views a picture of (height, width) pixels is cut into."""
        grid = self._canvas(image).grid
        return 1 + grid[0] * grid[1]

    def _in_lines(self, tokens: VisualTokens, stream: Tensor, newline: Tensor) -> EncodedImage:
        """An image whose placeholders with ``newline`` carry no patch."""
        return EncodedImage(tokens, len(newline), *self._lines(newline), stream)

    def _lines(self, newline: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) slots and lines: a line is a row of the canvas and ends with its newline. The base view has none."""
        slots = torch.where(newline, NEWLINE, (~newline).cumsum(0) - 1)
        lines = newline.long().cumsum(0) - newline.long()
        lines[: self.side**2] = -1
        return slots, lines

    def _stream_sources(self, canvas: Canvas) -> Tensor:
        """(n,) int64: for every placeholder its flat index over views x patches, or ``NEWLINE``.

        Stock packing itself is asked, with indices in place of features, so that unpadding agrees to the last row.
        """
        views = 1 + canvas.grid[0] * canvas.grid[1]
        # float64 holds every index exactly
        indices = torch.arange(views * self.side**2, dtype=torch.float64, device="cpu")
        return self._pack(indices[:, None], canvas, **self.packing)[:, 0].long()

    def _pack(self, values: Tensor, canvas: Canvas, **options: Any) -> Tensor:
        """(views * patches, d) to (n, d), as stock packing treats features; newlines become ``NEWLINE``."""
        packed = self.base.pack_image_features(
            [values.view(-1, self.side**2, values.shape[-1])],
            torch.tensor([canvas.image], device="cpu"),
            image_newline=values.new_full(values.shape[-1:], float(NEWLINE)),
            **options,
        )
        found: Tensor = packed[0][0] if isinstance(packed, tuple) else packed[0]  # their lengths go along, mostly
        return found

    def _canvas(self, image: tuple[int, int]) -> Canvas:
        side = self.config.vision_config.image_size
        best_height, best_width = select_best_resolution(image, self.config.image_grid_pinpoints)
        height, width = image
        # The processor's own rounding: the limiting edge fills the canvas, the other is rounded up.
        across, down = best_width / width, best_height / height
        if across < down:
            fitted = (min(math.ceil(height * across), best_height), best_width)
        else:
            fitted = (best_height, min(math.ceil(width * down), best_width))
        offset = ((best_height - fitted[0]) // 2, (best_width - fitted[1]) // 2)
        return Canvas(image, (best_height // side, best_width // side), fitted, offset)

    def _geometry(self, canvas: Canvas, order: Tensor, device: torch.device, cells: Tensor | None = None) -> Geometry:
        """Places of the patches ``order`` (flat over views x patches).

        Args:
            canvas: how the image was cut.
            order: (N,) int64.
            device: where the tensors go.
            cells: (n, 4) float64: what the last n stand for, (x0, y0, x1, y1) in patches of the whole canvas; by
                default each stands for itself.
        """
        side, size = self.side, self.config.vision_config.image_size
        view, place = order // side**2, order % side**2
        row, column = place // side, place % side
        corners = torch.stack([column, row, column + 1, row + 1], dim=1).double()
        across, down = canvas.image[::-1]
        crop_row, crop_column = (view - 1) // canvas.grid[1], (view - 1) % canvas.grid[1]
        places = corners + torch.stack([crop_column, crop_row, crop_column, crop_row], dim=1) * side
        if cells is not None:
            places = torch.cat([places[: len(places) - len(cells)], cells])

        def pair(x: float, y: float) -> Tensor:
            return torch.tensor([x, y] * 2, dtype=torch.float64, device="cpu")

        base = self._pixels(corners) * pair(across / size, down / size)
        crops = self._pixels(places) - pair(*canvas.offset[::-1])
        crops = crops * pair(across / canvas.fitted[1], down / canvas.fitted[0])
        boxes = torch.where((view == 0)[:, None], base, crops)
        boxes = boxes.clamp(min=0).minimum(pair(across, down)).float()
        views = 1 + canvas.grid[0] * canvas.grid[1]
        return Geometry(
            view.to(device),
            row.to(device),
            column.to(device),
            boxes.to(device),
            canvas.image,
            ((side, side),) * views,
        )

    def _pixels(self, cells: Tensor) -> Tensor:
        """(n, 4) float64 corners in patches of the whole canvas, in its pixels.

        Crops lie ``image_size`` pixels apart, and their patches need not fill them: 27 x 14 of 384 pixels leave 6 at
        the right and lower edge that no patch sees.
        """
        side = self.side
        cells = cells.round(decimals=6)  # a start that is all but on a border is on it
        crops = torch.cat([(cells[:, :2] / side).floor(), (cells[:, 2:] / side).ceil() - 1], dim=1)
        return crops * self.config.vision_config.image_size + (cells - crops * side) * self.cell
