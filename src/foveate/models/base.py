"""What a family adapter is: it encodes images and videos and says where their tokens stand; it never sees a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.models.encoded import EncodedImage, Kept, Kind, Layout, Positions, Request, Rope
from foveate.patches import Patch


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
    filmed: ClassVar[bool] = False
    """Whether a video's frames stand in the prompt as images, and are told from these by what labels them."""
    joins_rows: ClassVar[bool] = False
    """Whether all images of a prompt are handed to the model as one, where stock beam search would mix them up."""
    chats: ClassVar[bool] = True
    """Whether it takes turns of a conversation; a model that does not gets its images and the bare task."""
    text_row: ClassVar[bool] = True
    """Whether positions of several dimensions take those of text in front of them, which the mask code reads."""
    numbers_through: ClassVar[bool] = False
    """Whether a prompt's positions depend on the rows before it in a batch; those of a session must not (``apart``)."""
    first_position: ClassVar[int] = 0
    """Where a forward without ``position_ids`` starts to count (``generate`` sees to it itself)."""
    crops: ClassVar[bool] = False
    """Whether pictures are cut into crops beside a base view, each encoded by itself: ``encode`` honours
    ``Request.views`` then, and there is ``views_of``."""
    frame_by_frame: ClassVar[bool] = False
    """Whether the frames of ``video_inputs`` go through the tower as a picture's views do, so that ``encode_videos``
    honours ``Request.views``: frames with the same pixels can be encoded once."""
    per_token: ClassVar[Mapping[str, int]] = {}
    """Inputs of its own with one entry per prompt token, and what padding gets in them: they are shortened with it."""
    spent: ClassVar[tuple[str, ...]] = ()
    """Arguments by which stock drops tokens itself once it has the features: ``encode`` does it, and what it gives must
    not go through them again."""
    unread: ClassVar[Mapping[str, str]] = {}
    """What no method can read of this encoder (``"saliency"``, ``"keys"``, ``"encoded"``), and why; see
    ``foveate.readable``."""
    checkpoints: ClassVar[Mapping[str, str]] = {}
    """For people: by model type, the name of a checkpoint that says so, with what one must know of it."""
    since: ClassVar[str] = ""
    """For people: the oldest transformers known whose class of this family can be pruned; "" is all of the range."""
    fails_in: ClassVar[Mapping[str, str]] = {}
    """For people: by transformers version, why its class of this family answers nothing, with a pruner or without."""
    merge: ClassVar[str] = "1"
    """For people: how many of the encoder's patches make one visual token."""
    views: ClassVar[str] = "1"
    saliency: ClassVar[str]
    """For people: which attention of the encoder is read."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.base = self.inner(model)
        self.check()

    @staticmethod
    def inner(model: Any) -> Any:
        """The module whose ``get_image_features`` turns pixels into tokens and whose forward puts them into the prompt.

        The model itself, where its class has no other inside.
        """
        return model.model

    @classmethod
    def traits(cls) -> Mapping[str, str]:
        """For people: what saliency is read, which positions and layouts there are, whether videos and crops work."""
        return {
            "saliency": cls.saliency,
            "merge": cls.merge,
            "views": cls.views,
            "positions": ", ".join(cls.positions),
            "layouts": ", ".join(cls.layouts),
            "video": "yes" if cls.video_inputs or cls.filmed else "no",
            "crops": "yes" if cls.crops else "no",
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

    def views_of(self, inputs: Mapping[str, Any], prompt: Tensor | None) -> list[tuple[int, ...]]:
        """Of every image, the places of its views in the batch that the encoder gets: the base view's, then the crops'
        as its ``Geometry`` numbers them.

        Args:
            inputs, prompt: as for ``encode`` and ``Request``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no crops")

    def pixels_of(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """All that the encoder gets of every view, (views, ...) each, by the places of ``views_of``."""
        raise NotImplementedError(f"{type(self).__name__} has no crops")

    def tokens_of_views(self, image: tuple[int, int], tokens: int) -> list[int]:
        """Of a picture that is cut into crops, how many of its tokens are made of each view alone, the base view first.

        Args:
            image: (height, width) in pixels.
            tokens: N, how many it has.
        """
        raise NotImplementedError(f"{type(self).__name__} has no crops")

    def encode_videos(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        """The same for ``video_inputs``; ``request.features`` is the model's own ``get_video_features``."""
        raise NotImplementedError(f"{type(self).__name__} names video_inputs and does not encode them")

    @property
    def first_block(self) -> nn.Module | None:
        """The vision encoder's first block, whose tokens ``pixels="auto"`` reads; None where it is not known."""
        return None

    def first_tokens(self, output: Tensor) -> Tensor:
        """(N, d): the patches in that block's output, (..., N, d)."""
        return output.flatten(0, -2)

    @property
    def fixed_resolution(self) -> bool:
        """Whether the processor makes the same square of every picture, so that its size decides nothing."""
        return False

    def refuse(self, inputs: Mapping[str, Any]) -> None:
        """Raises ValueError for arguments of a call that cannot be honoured."""
        if not self.video_inputs and inputs.get("pixel_values_videos") is not None:
            raise ValueError(
                f"{self.title}: videos are not supported yet; pass frames as images, or call without pruner"
            )

    def refuse_generation(self, arguments: Mapping[str, Any]) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raises ValueError for what stock ``generate`` itself gets wrong with images of this family."""

    def package(self, kept: Sequence[Kept], kind: Kind) -> Any:
        """The kept features as the model's own ``get_image_features`` would return them: a list, one per image."""
        return BaseModelOutputWithPooling(pooler_output=[one.features for one in kept])  # type: ignore[arg-type]

    def newlines(self, image: tuple[int, int]) -> int:
        """How many placeholders of a picture of (height, width) pixels end rows, and carry no patch."""
        return 0

    def copies(self, arguments: Mapping[str, Any], kind: Kind) -> int:
        """Length along which generate (before 5.19) repeats the images of ``kind`` for beams and several returns."""
        return len(arguments[self.inputs_of(kind)[0]])

    def named(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments, or what a processor gave, by the names that this version's forward has for them."""
        return dict(arguments)

    def inputs_of(self, kind: Kind) -> tuple[str, ...]:
        """The names of the arguments that carry images or videos; the first is the pixels."""
        return self.image_inputs if kind == "image" else self.video_inputs

    def has(self, arguments: Mapping[str, Any], kind: Kind) -> bool:
        """Whether a call brings their pixels. What else describes images may be left from another call."""
        names = self.inputs_of(kind)
        return bool(names) and arguments.get(names[0]) is not None

    def rope(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor | None) -> Rope | None:
        """M-RoPE positions of a prompt that starts at position 0; None for families with plain positions.

        Args:
            arguments: the call's; the grids are read from them.
            ids: (B, S) int64 on the CPU.
            mask: (B, S) bool on the CPU.
            types: (B, S) ``mm_token_type_ids`` on the CPU, None when the call has none.
        """
        return None

    def apart(self, rope: Rope, ids: Tensor) -> Rope:
        """The same where every one of (B, S) prompts is numbered as if it were alone; see ``numbers_through``."""
        return rope

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
        return torch.isin(ids, ids.new_tensor(known))

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


def frames_in(title: str, inputs: Mapping[str, Any]) -> Tensor:
    """A call's videos, (videos, frames, channels, height, width); ValueError where they are no such tensor."""
    pixels = inputs["pixel_values_videos"]
    if not torch.is_tensor(pixels) or pixels.ndim != 5:
        raise ValueError(
            f"{title} takes pixel_values_videos as one tensor (videos, frames, channels, height, width), got "
            f"{tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__}"
        )
    return pixels


def look_up(table: nn.Module, ids: Tensor) -> Tensor:
    """(T,) ids to the (T, D) rows of an embedding table."""
    device = next(table.parameters()).device
    # Offloaded weights are nowhere until accelerate's hook loads them; it moves the ids to where it does.
    rows: Tensor = table(ids if device.type == "meta" else ids.to(device))
    return rows
