"""What an encoder gives of an image, how a call asks for it, and what of it reaches the LLM."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from foveate.attention import Read, Recorder
from foveate.tokens import Geometry, Selection, VisualTokens

if TYPE_CHECKING:
    from foveate.models.view_store import ViewStore

Kind = Literal["image", "video"]
Layout = Literal["stock", "released"]
Newlines = Literal["drop", "rows"]
Positions = Literal["compact", "original"]

NEWLINE = -1
"""Slot of a placeholder that carries no patch but ends a row of them."""
STAYS = -2
"""Slot of a placeholder that carries no patch and is never dropped."""
ABSENT = -3
"""Slot of a placeholder whose patch was not encoded: it never stays."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What of one image or video reaches the LLM.

    Args:
        features: (m, D) on the device, as the model's own ``get_image_features`` gives them.
        planes: (m, D) each: features that join deeper layers of the LLM (DeepStack), in the same order.
        repeats: (n,) int64 on the CPU: how often each placeholder stands in the shortened prompt (0 dropped, 1 kept, 2
            where the released variant doubles a token).
    """

    features: Tensor
    planes: tuple[Tensor, ...]
    repeats: Tensor


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image or video after the vision tower and projector, before anything is chosen.

    Args:
        tokens: its N patch tokens.
        placeholders: n, how many placeholders stand for it in a stock prompt.
        slots: (n,) int64 on the CPU: the patch each placeholder carries, ``NEWLINE`` or ``STAYS``. None when the
            layout is not the stock one: then the kept tokens simply take the first placeholders.
        lines: (n,) int64 on the CPU: which line of the high-resolution canvas a placeholder belongs to, -1 for none.
        stream: (n, D) what stock transformers puts into the placeholders; None as for ``slots``.
        planes: (n, D) each: what it adds to the same places after the LLM's first layers (DeepStack).
        kind: "image", or "video": its placeholders and the argument its pixels come in are other ones.
        support: gives (N, views) bool on the CPU: which views each token is made of; None: the one it lies in. Worked
            out when it is asked for.
        handed: (n, W) what the model's own ``get_image_features`` gives for them, where that is not the stream: its
            forward makes the stream of it, by a linear map or by adding the same to all. None: it is.
        whole: where all N tokens lie when only some of its views are encoded and ``tokens`` are fewer; else None.
        places: (M,) int64 on the CPU: which of the N the ``tokens`` are, ascending; None as for ``whole``.
    """

    tokens: VisualTokens
    placeholders: int
    slots: Tensor | None = None
    lines: Tensor | None = None
    stream: Tensor | None = None
    planes: tuple[Tensor, ...] = ()
    kind: Kind = "image"
    support: Callable[[], Tensor] | None = None
    handed: Tensor | None = None
    whole: Geometry | None = None
    places: Tensor | None = None

    def __post_init__(self) -> None:
        # Here for every family: methods must know that a video's views follow each other in time.
        if self.kind == "video" and not self.tokens.geometry.frames:
            object.__setattr__(self, "tokens", replace(self.tokens, geometry=self.tokens.geometry.as_frames()))

    @classmethod
    def of_patches(cls, tokens: VisualTokens, planes: tuple[Tensor, ...] = (), kind: Kind = "image") -> EncodedImage:
        """The plain case: every placeholder carries a patch, in order."""
        count = len(tokens)
        return cls(tokens, count, torch.arange(count, device="cpu"), None, tokens.features, planes, kind)

    def keep(self, selection: Selection, kept: Tensor, newlines: Newlines) -> Kept:
        """What of this image reaches the LLM.

        Args:
            selection: the method's choice.
            kept: ``selection.indices`` on the CPU (fetched once for all images of a call).
            newlines: ``"drop"``, or ``"rows"``: a newline stays when a patch of its line does.
        """
        weights = selection.weights
        stream = self.stream if self.handed is None else self.handed
        if self.slots is None or stream is None:
            repeats = torch.zeros(self.placeholders, dtype=torch.int64, device="cpu")
            repeats[: len(kept)] = 1
            repeats[-1] += max(0, len(kept) - self.placeholders)
            return Kept(selection.gather(self.tokens.features), (), repeats)
        every = len(kept) == len(self.tokens) and self.whole is None
        if weights is None and every and len(torch.unique(kept)) == len(kept):
            return Kept(stream, self.planes, torch.ones_like(self.slots))
        slots = self.slots.numpy()
        counts = np.bincount(kept.numpy(), minlength=len(self.tokens))
        patch = slots >= 0
        repeats = np.where(patch, counts[slots.clip(min=0)], slots == STAYS)
        if newlines == "rows" and self.lines is not None:
            lines = self.lines.numpy()
            alive = np.zeros(lines.max() + 2, dtype=bool)
            alive[lines[patch & (repeats > 0)]] = True  # index -1 is the spare last entry
            alive[-1] = False
            repeats = np.where(slots == NEWLINE, alive[lines], repeats)
        places = np.repeat(np.arange(self.placeholders), repeats)

        def take(stream: Tensor) -> Tensor:
            taken = stream[torch.from_numpy(places).to(stream.device)]
            if weights is None:
                return taken
            whole = len(self.tokens) == self.placeholders
            patches = stream if whole else stream[torch.from_numpy(np.flatnonzero(patch)).to(stream.device)]
            carries = torch.from_numpy(np.flatnonzero(patch[places]))
            return taken.index_copy(0, carries.to(stream.device), selection.gather(patches))

        return Kept(take(stream), tuple(take(plane) for plane in self.planes), torch.from_numpy(repeats))

    def in_whole(self, selection: Selection) -> Selection:
        """A choice among this image's tokens as one among those of the whole picture."""
        if self.whole is None or self.places is None:
            return selection
        return selection.placed(self.places, self.whole)


@dataclass(frozen=True, eq=False)
class Request:
    """What one ``encode`` is asked for.

    Args:
        features: the model's own ``get_image_features`` or ``get_video_features``.
        saliency: whether a method will read it; nothing is tapped otherwise.
        keys: whether a method will read the encoder's keys.
        encoded: whether a method will read what the encoder hands to the projector.
        layout: one of the family's ``layouts``.
        prompt: (B, S) ids on the CPU, -1 where there is padding or what a cache holds; None when pictures are looked
            at before there is a prompt. Only families whose tiles must be told apart by the prompt read it.
        views: which views to encode, beside which are known; None: all of them at once, as stock does.
    """

    features: Callable[..., Any]
    saliency: bool = True
    keys: bool = False
    encoded: bool = False
    layout: Layout = "stock"
    prompt: Tensor | None = None
    views: ViewStore | None = None

    def pick(self, views: Tensor) -> Tensor:
        """(views, ...) to those that are to be encoded."""
        return views if self.views is None else self.views.pick(views)

    def put(self, record: Recorder, features: Tensor) -> Tensor:
        """(encoded views, ...) to all (views, ...), with what is known of the others or zeros."""
        return features if self.views is None else self.views.put(record, features)


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary positions of several dimensions (M-RoPE) for the tokens of a prompt.

    Args:
        positions: (A, B, S) int64: temporal, height, width, or what axes the family has.
        following: (B,) int64: the position of the token that follows the prompt.
    """

    positions: Tensor
    following: Tensor


def recorder_for(request: Request, read: Read, attention: nn.Module, **more: Any) -> Recorder:
    """A recorder that takes what a request wants of one attention module, and taps nothing when it wants nothing.

    Args:
        request: what is wanted.
        read, attention: see ``Recorder``.
        more: likewise; ``project`` among it, whose input is kept when the request wants it.
    """
    tapped = request.saliency or request.keys
    return Recorder(
        read if tapped else None,
        attention if tapped else None,
        saliency=request.saliency,
        keys=request.keys,
        encoded=request.encoded,
        views=request.views,
        **more,
    )


def read_tokens(
    record: Recorder, features: Tensor, geometry: Geometry, sources: Tensor, full_grid: bool = True
) -> VisualTokens:
    """An image's tokens with what a recording holds of them.

    Args:
        record: of the encoder run that made them.
        features: (N, D).
        geometry: of the N.
        sources: (N,) or (N, m) int64, the encoder's patches behind each; see ``Recorder.saliency``.
        full_grid: see ``VisualTokens``.
    """
    device = features.device
    return VisualTokens(
        features,
        geometry,
        record.saliency(sources, device),
        full_grid,
        keys=record.keys_of(sources, device),
        encoded=record.encoded_of(sources, device),
    )


def read_sizes(given: Any) -> list[tuple[int, int]]:
    """(height, width) of every image: from an (images, 2) tensor (one read for all), or a list as stock takes it."""
    pairs = given.tolist() if torch.is_tensor(given) else given
    return [(int(height), int(width)) for height, width in pairs]


def grid_places(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(rows * columns,) int64 each, on the CPU: the row and the column of every cell of a grid, row by row."""
    places = torch.arange(rows * columns, device="cpu")
    return places // max(1, columns), places % max(1, columns)


def tile_boxes(grid: tuple[int, int], size: int, covered: int) -> Tensor:
    """(rows * columns, 4) float64 on the CPU: where tiles lie that touch each other.

    Args:
        grid: (rows, columns) of tiles.
        size: pixels of a tile's side.
        covered: how many of them, from its left and upper edge, its tokens see.
    """
    row, column = grid_places(*grid)
    corners = torch.stack([column, row], dim=1).double() * size
    return torch.cat([corners, corners + covered], dim=1)


def grid_geometry(
    grids: Sequence[tuple[int, int]], boxes: Tensor, image_size: tuple[int, int], device: torch.device, *,
    cropped: bool = False,
) -> Geometry:  # fmt: skip
    """The geometry of views whose tokens stand row by row, one view after the other.

    Args:
        grids: (rows, columns) of every view.
        boxes: (views, 4): where each view lies, (x0, y0, x1, y1) in pixels of an image of ``image_size``.
        image_size: (height, width) in pixels.
        device: where the tensors go.
        cropped: see ``Geometry``.
    """
    cut = tuple((rows, columns) for rows, columns in grids)
    found = tuple(tuple(box) for box in boxes.tolist())
    with torch.inference_mode(False):  # it is kept, for whoever asks next
        return _grid_geometry(cut, found, (image_size[0], image_size[1]), device, cropped)


@functools.lru_cache(maxsize=32)
def _grid_geometry(
    grids: tuple[tuple[int, int], ...], boxes: tuple[tuple[float, ...], ...], image_size: tuple[int, int],
    device: torch.device, cropped: bool,
) -> Geometry:  # fmt: skip
    views, rows, columns, found = [], [], [], []
    for number, (height, width) in enumerate(grids):
        row, column = grid_places(height, width)
        x0, y0, x1, y1 = boxes[number]
        scale = torch.tensor([(x1 - x0) / width, (y1 - y0) / height] * 2, dtype=torch.float64, device="cpu")
        corners = torch.stack([column, row, column + 1, row + 1], dim=1).double()
        found.append(corners * scale + scale.new_tensor([x0, y0] * 2))
        views.append(torch.full_like(row, number))
        rows.append(row)
        columns.append(column)
    return Geometry(
        torch.cat(views).to(device),
        torch.cat(rows).to(device),
        torch.cat(columns).to(device),
        torch.cat(found).float().to(device),
        image_size,
        grids,
        cropped,
    )
