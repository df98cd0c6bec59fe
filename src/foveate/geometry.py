"""Where the tokens of a picture or a video lie: in which view or frame, in its grid, and in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where each patch token of one image lies.

    Args:
        view: (N,) int64, the view a token belongs to (0 is the base view, crops follow row-major).
        row: (N,) int64, its row in that view's own grid.
        column: (N,) int64, its column in that view's own grid.
        boxes: (N, 4) float32, its (x0, y0, x1, y1) in pixels of an image of ``image_size``.
        image_size: (height, width) in pixels that ``boxes`` refer to.
        grids: (rows, columns) of every view's full grid, in view order.
        cropped: True when the model sees only the centre square of the image and ``image_size`` is that square
            (LLaVA-1.5), so that the original's size must be given to find the original's pixels.
        padded: pixels whose multiple both sides of ``image_size`` are, where the image was scaled down in proportion,
            if at all, laid into the upper left corner and padded to such multiples (Kimi K2.5); 0: it was not.
        least: where such an image, if it was scaled, reaches one of the far edges (GLM-5.3-Flash): pixels below which
            it always was; 0: it need not reach any.
        frames: of a video, whose views are frames: when each is shown, ascending, in seconds from the first one where
            ``in_seconds``, else counted from 0. Empty: a picture.
        in_seconds: see ``frames``.
    """

    view: Tensor
    row: Tensor
    column: Tensor
    boxes: Tensor
    image_size: tuple[int, int]
    grids: tuple[tuple[int, int], ...]
    cropped: bool = False
    padded: int = 0
    least: int = 0
    frames: tuple[float, ...] = ()
    in_seconds: bool = False

    def __len__(self) -> int:
        return self.view.shape[0]

    def as_frames(self, seconds: float | None = None) -> Geometry:
        """The same of a video, whose views are its frames, in the order of time.

        Args:
            seconds: from one frame to the next; None: not known.
        """
        frames = tuple(number * (seconds or 1.0) for number in range(len(self.grids)))
        return replace(self, frames=frames, in_seconds=bool(seconds))

    def some(self, places: Tensor, views: Sequence[int]) -> Geometry:
        """Where some of the tokens lie, their views numbered from 0.

        Args:
            places: (M,) int64, which tokens, ascending.
            views: the views that they belong to, all of them and no others, ascending.
        """
        numbers = torch.zeros(len(self.grids), dtype=torch.int64, device="cpu")
        numbers[list(views)] = torch.arange(len(views), device="cpu")
        numbers = on_device(numbers, self.view.device)
        return replace(
            self,
            view=numbers.index_select(0, self.view.index_select(0, places)),
            row=self.row.index_select(0, places),
            column=self.column.index_select(0, places),
            boxes=self.boxes.index_select(0, places),
            grids=tuple(self.grids[view] for view in views),
            frames=tuple(self.frames[view] for view in views) if self.frames else (),
        )

    def to(self, device: torch.device) -> Geometry:
        """The same on another device; nothing waits for a copy to an accelerator."""
        if all(place.device == device for place in (self.view, self.row, self.column, self.boxes)):
            return self
        view, row, column = (on_device(place, device) for place in (self.view, self.row, self.column))
        return replace(self, view=view, row=row, column=column, boxes=on_device(self.boxes, device))

    def boxes_in(self, height: int, width: int) -> Tensor:
        """(N, 4) float32: each token's (x0, y0, x1, y1) in pixels of the original ``height`` x ``width`` image."""
        if self.padded:
            return self._unpadded(height, width)
        if not self.cropped:
            seen_height, seen_width = self.image_size
            return self.boxes * self.boxes.new_tensor([width / seen_width, height / seen_height] * 2)
        # Stock CLIP processing: shortest edge resized to the tower's square, the centre cut out.
        scale = min(height, width) / min(self.image_size)
        offset = [(width - self.image_size[1] * scale) / 2, (height - self.image_size[0] * scale) / 2]
        return self.boxes * scale + self.boxes.new_tensor(offset * 2)

    def _unpadded(self, height: int, width: int) -> Tensor:
        """Where it was scaled down and need not reach an edge, the middle of the scales that fit: off by half of
        ``padded`` at the far edges."""
        sides = list(zip(self.image_size, (height, width), strict=True))
        limits = self.boxes.new_tensor([width, height] * 2)
        if self.least:
            reaching = min(seen / side for seen, side in sides)
            return torch.minimum(self.boxes / (reaching if height * width < self.least else min(1.0, reaching)), limits)
        low = max((seen - self.padded + 1) / side for seen, side in sides)
        high = min((seen + 1) / side for seen, side in sides)
        scale = 1.0 if low <= 1 < high else (low + high) / 2
        return torch.minimum(self.boxes / scale, limits)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor there. A copy to an accelerator is not waited for; one to the CPU is: it could be read too early."""
    return tensor.to(device, non_blocking=device.type != "cpu")
