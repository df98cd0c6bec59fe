"""What a family adapter is: it encodes images and videos and says where their tokens stand; it never sees a method."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.attention import Recorder
from foveate.tokens import Geometry, Selection, VisualTokens

Kind = Literal["image", "video"]
Layout = Literal["stock", "released"]
Newlines = Literal["drop", "rows"]
Positions = Literal["compact", "original"]

NEWLINE = -1
"""Slot of a placeholder that carries no patch but ends a row of them."""
STAYS = -2
"""Slot of a placeholder that carries no patch and is never dropped."""


@dataclass(frozen=True)
class Kept:
    """What of one image or video reaches the LLM.

    Args:
        features: (m, D) on the device.
        planes: (m, D) each: features that join deeper layers of the LLM (DeepStack), in the same order.
        repeats: (n,) int64 on the CPU: how often each placeholder stands in the shortened prompt (0 dropped, 1 kept, 2
            where the released variant doubles a token).
    """

    features: Tensor
    planes: tuple[Tensor, ...]
    repeats: Tensor


@dataclass(frozen=True)
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
    """

    tokens: VisualTokens
    placeholders: int
    slots: Tensor | None = None
    lines: Tensor | None = None
    stream: Tensor | None = None
    planes: tuple[Tensor, ...] = ()
    kind: Kind = "image"

    @classmethod
    def of_patches(cls, tokens: VisualTokens, planes: tuple[Tensor, ...] = (), kind: Kind = "image") -> EncodedImage:
        """The plain case: every placeholder carries a patch, in order."""
        count = len(tokens)
        return cls(tokens, count, torch.arange(count), None, tokens.features, planes, kind)

    def keep(self, selection: Selection, kept: Tensor, newlines: Newlines) -> Kept:
        """What of this image reaches the LLM.

        Args:
            selection: the method's choice.
            kept: ``selection.indices`` on the CPU (fetched once for all images of a call).
            newlines: ``"drop"``, or ``"rows"``: a newline stays when a patch of its line does.
        """
        weights = selection.weights
        if self.slots is None or self.stream is None:
            repeats = torch.zeros(self.placeholders, dtype=torch.int64)
            repeats[: len(kept)] = 1
            repeats[-1] += max(0, len(kept) - self.placeholders)
            features = self.tokens.features
            return Kept(features[selection.indices] if weights is None else _merge(weights, features), (), repeats)
        if weights is None and len(kept) == len(self.tokens) and len(torch.unique(kept)) == len(kept):
            return Kept(self.stream, self.planes, torch.ones(self.placeholders, dtype=torch.int64))
        counts = torch.bincount(kept, minlength=len(self.tokens))
        patch = self.slots >= 0
        repeats = torch.where(patch, counts[self.slots.clamp(min=0)], (self.slots == STAYS).long())
        if newlines == "rows" and self.lines is not None:
            alive = torch.zeros(int(self.lines.max()) + 2, dtype=torch.bool)
            alive[self.lines[patch & (repeats > 0)]] = True  # index -1 is the spare last entry
            alive[-1] = False
            repeats = torch.where(self.slots == NEWLINE, alive[self.lines].long(), repeats)
        places = torch.repeat_interleave(torch.arange(self.placeholders), repeats)
        carries = patch[places].nonzero()[:, 0]

        def take(stream: Tensor) -> Tensor:
            taken = stream[places.to(stream.device)]
            if weights is None:
                return taken
            whole = len(self.tokens) == self.placeholders
            patches = stream if whole else stream[patch.nonzero()[:, 0].to(stream.device)]
            return taken.index_copy(0, carries.to(stream.device), _merge(weights, patches))

        return Kept(take(self.stream), tuple(take(plane) for plane in self.planes), repeats)


def _merge(weights: Tensor, features: Tensor) -> Tensor:
    """(K, N) times (N, D), in float32, in the dtype of ``features``."""
    return (weights.to(features.device, torch.float32) @ features.float()).to(features.dtype)


@dataclass(frozen=True)
class Request:
    """What one ``encode`` is asked for.

    Args:
        features: the model's own ``get_image_features`` or ``get_video_features``.
        saliency: whether a method will read it; nothing is tapped otherwise.
        keys: whether a method will read the encoder's keys.
        layout: one of the family's ``layouts``.
        prompt: (B, S) ids on the CPU, -1 where there is padding or what a cache holds; None when pictures are looked
            at before there is a prompt. Only families whose tiles must be told apart by the prompt read it.
    """

    features: Callable[..., Any]
    saliency: bool = True
    keys: bool = False
    layout: Layout = "stock"
    prompt: Tensor | None = None


@dataclass(frozen=True)
class Patch:
    """An attribute to put on an object while a model is attached."""

    owner: Any
    name: str
    value: Any


def put_on(patches: Iterable[Patch]) -> list[tuple[Patch, bool, Any]]:
    """Sets the attributes; what is returned lets ``take_off`` restore what their owners themselves had before."""
    undo = []
    for patch in patches:
        undo.append((patch, patch.name in vars(patch.owner), vars(patch.owner).get(patch.name)))
        setattr(patch.owner, patch.name, patch.value)
    return undo


def take_off(undo: list[tuple[Patch, bool, Any]]) -> None:
    """Undoes ``put_on``, last first."""
    while undo:
        patch, present, old = undo.pop()
        if present:
            setattr(patch.owner, patch.name, old)
        else:
            delattr(patch.owner, patch.name)


@dataclass(frozen=True)
class Rope:
    """Rotary positions of several dimensions (M-RoPE) for the tokens of a prompt.

    Args:
        positions: (3, B, S) int64: temporal, height, width.
        following: (B,) int64: the position of the token that follows the prompt.
    """

    positions: Tensor
    following: Tensor


class Family(ABC):
    """The adapter of one model family.

    Args:
        model: a stock transformers model of the family.

    Raises:
        ValueError: the model is of this family but built in a way that is not supported; the message says what to do.
    """

    title: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    layouts: ClassVar[tuple[Layout, ...]] = ("stock",)
    positions: ClassVar[tuple[Positions, ...]] = ("compact", "original")
    """How positions may be numbered; the first is the default."""
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Arguments of the model's forward that carry the images; the first is the pixels."""
    video_inputs: ClassVar[tuple[str, ...]] = ()
    """The same for videos; empty where videos are not supported."""
    joins_rows: ClassVar[bool] = False
    """Whether all images of a prompt are handed to the model as one, where stock beam search would mix them up."""
    first_position: ClassVar[int] = 0
    """Where a forward without ``position_ids`` starts to count (``generate`` sees to it itself)."""
    merge: ClassVar[str] = "1"
    """For people: how many of the encoder's patches make one visual token."""
    views: ClassVar[str] = "1"
    saliency: ClassVar[str]
    """For people: which attention of the encoder is read."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.base = model.model
        self.check()

    @classmethod
    def traits(cls) -> Mapping[str, str]:
        """For people: what saliency is read, which positions and layouts there are, whether video works."""
        return {
            "saliency": cls.saliency,
            "merge": cls.merge,
            "views": cls.views,
            "positions": ", ".join(cls.positions),
            "layouts": ", ".join(cls.layouts),
            "video": "yes" if cls.video_inputs else "no",
        }

    @abstractmethod
    def check(self) -> None:
        """Raises ValueError when this model cannot be pruned faithfully."""

    @abstractmethod
    def instruments(self) -> Sequence[Patch]:
        """Patches that let ``encode`` read the encoder; inert outside a recording."""

    @abstractmethod
    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        """Runs the vision tower and projector once over all images of a call.

        Args:
            inputs: the call's arguments, ``image_inputs`` among them.
            request: what is wanted of it.
        """

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        """The same for ``video_inputs``; ``request.features`` is the model's own ``get_video_features``."""
        raise NotImplementedError(f"{type(self).__name__} names video_inputs and does not encode them")

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        """Raises ValueError for arguments of a call that cannot be honoured."""
        if not self.video_inputs and inputs.get("pixel_values_videos") is not None:
            raise ValueError(
                f"{self.title}: videos are not supported yet; pass frames as images, or call without pruner"
            )

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        """The kept features as the model's own ``get_image_features`` would return them: a list, one per image."""
        return BaseModelOutputWithPooling(pooler_output=[one.features for one in kept])  # type: ignore[arg-type]

    def newlines(self, image: tuple[int, int]) -> int:
        """How many placeholders of a picture of (height, width) pixels end rows, and carry no patch."""
        return 0

    def copies(self, arguments: Mapping[str, Any], kind: Kind) -> int:
        """Length along which generate (before 5.19) repeats the images of ``kind`` for beams and several returns."""
        return len(arguments[self.inputs_of(kind)[0]])

    def inputs_of(self, kind: Kind) -> tuple[str, ...]:
        """The names of the arguments that carry images or videos; the first is the pixels."""
        return self.image_inputs if kind == "image" else self.video_inputs

    def has(self, arguments: Mapping[str, Any], kind: Kind) -> bool:
        """Whether a call brings any of them."""
        return any(arguments.get(name) is not None for name in self.inputs_of(kind))

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        """M-RoPE positions of a prompt that starts at position 0; None for families with plain positions.

        Args:
            arguments: the call's; the grids are read from them.
            ids: (B, S) int64 on the CPU.
            mask: (B, S) bool on the CPU.
            types: (B, S) ``mm_token_type_ids`` on the CPU, None when the call has none.
        """
        return None

    @property
    def image_token_id(self) -> int:
        """An image placeholder's token id."""
        token = getattr(self.config, "image_token_id", None)
        return int(self.config.image_token_index if token is None else token)

    @property
    def video_token_id(self) -> int | None:
        """A video placeholder's token id; None where videos are not supported."""
        if not self.video_inputs:
            return None
        token = getattr(self.config, "video_token_id", None)
        return int(self.config.video_token_index if token is None else token)

    @property
    def placeholder_ids(self) -> dict[Kind, int]:
        """The placeholders of every supported kind."""
        found: dict[Kind, int] = {"image": self.image_token_id}
        video = self.video_token_id
        if video is not None:
            found["video"] = video
        return found

    @property
    def structure_token_ids(self) -> frozenset[int]:
        """Marks around images that the config names (start, end): they stay, and they are no text that guides."""
        names = (
            "vision_start_token_id", "vision_end_token_id", "image_start_token_id", "image_end_token_id",
            "video_start_token_id", "video_end_token_id", "boi_token_id", "eoi_token_id", "boi_token_index",
            "eoi_token_index",
        )  # fmt: skip
        values = (getattr(self.config, name, None) for name in names)
        return frozenset(int(value) for value in values if value is not None)

    def marks(self, ids: Tensor) -> Tensor:
        """(B, S) bool: which of (B, S) ids on the CPU stand for images or mark them, and so are no text that guides."""
        known = sorted({*self.placeholder_ids.values(), *self.structure_token_ids})
        return torch.isin(ids, torch.tensor(known, dtype=ids.dtype))

    @property
    def special_token_ids(self) -> frozenset[int]:
        """BOS, EOS and padding, as far as the model's configs name them."""
        found: set[int] = set()
        for config in (
            self.config,
            self.config.get_text_config(),
            getattr(self.model, "generation_config", None),
        ):
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                value = getattr(config, name, None)
                found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
        return frozenset(found)

    @property
    def turn_end_ids(self) -> tuple[tuple[int, ...], ...]:
        """Token sequences that end a user's turn, as far as the model itself knows: its EOS tokens."""
        found: list[tuple[int, ...]] = []
        for config in (getattr(self.model, "generation_config", None), self.config.get_text_config()):
            value = getattr(config, "eos_token_id", None)
            values: Iterable[int] = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            found.extend((token,) for token in values if (token,) not in found)
        return tuple(found)

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) ids to (T, D) input embeddings of the LLM."""
        return look_up(self.model.get_input_embeddings(), ids)


def look_up(table: nn.Module, ids: Tensor) -> Tensor:
    """(T,) ids to the (T, D) rows of an embedding table."""
    device = next(table.parameters()).device
    # Offloaded weights are nowhere until accelerate's hook loads them; it moves the ids to where it does.
    rows: Tensor = table(ids if device.type == "meta" else ids.to(device))
    return rows


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
        features, geometry, record.saliency(sources, device), full_grid, keys=record.keys_of(sources, device)
    )


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
    views, rows, columns, found = [], [], [], []
    for number, (height, width) in enumerate(grids):
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        row, column = row.flatten(), column.flatten()
        x0, y0, x1, y1 = boxes[number].tolist()
        scale = torch.tensor([(x1 - x0) / width, (y1 - y0) / height] * 2, dtype=torch.float64)
        corners = torch.stack([column, row, column + 1, row + 1], dim=1).double()
        found.append(corners * scale + torch.tensor([x0, y0] * 2, dtype=torch.float64))
        views.append(torch.full_like(row, number))
        rows.append(row)
        columns.append(column)
    return Geometry(
        torch.cat(views).to(device),
        torch.cat(rows).to(device),
        torch.cat(columns).to(device),
        torch.cat(found).float().to(device),
        image_size,
        tuple(grids),
        cropped,
    )


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function names, without those that are None.

    One that transformers did not write may pass on what it does not name, and gets them all.
    """
    names = inspect.signature(function).parameters
    passes = not is_stock(function) and any(one.kind is one.VAR_KEYWORD for one in names.values())
    return {name: value for name, value in arguments.items() if (name in names or passes) and value is not None}


def is_stock(function: Callable[..., Any]) -> bool:
    """Whether transformers itself wrote a function, rather than a checkpoint's repository or a user."""
    return str(getattr(function, "__module__", "")).startswith("transformers.")
