"""What a family adapter is: it encodes images and says where their tokens stand; it never sees a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.tokens import Selection, VisualTokens

Layout = Literal["stock", "released"]
Newlines = Literal["drop", "rows"]

NEWLINE = -1
"""Slot of a placeholder that carries no patch but ends a row of them."""
STAYS = -2
"""Slot of a placeholder that carries no patch and is never dropped."""


@dataclass(frozen=True)
class EncodedImage:
    """One image after the vision tower and projector, before anything is chosen.

    Args:
        tokens: its N patch tokens.
        placeholders: n, how many placeholders stand for it in a stock prompt.
        slots: (n,) int64 on the CPU: the patch each placeholder carries, ``NEWLINE`` or ``STAYS``. None when the
            layout is not the stock one: then the kept tokens simply take the first placeholders.
        lines: (n,) int64 on the CPU: which line of the high-resolution canvas a placeholder belongs to, -1 for none.
        stream: (n, D) what stock transformers puts into the placeholders; None as for ``slots``.
    """

    tokens: VisualTokens
    placeholders: int
    slots: Tensor | None = None
    lines: Tensor | None = None
    stream: Tensor | None = None

    def keep(self, selection: Selection, kept: Tensor, newlines: Newlines) -> tuple[Tensor, Tensor]:
        """What of this image reaches the LLM.

        Args:
            selection: the method's choice.
            kept: ``selection.indices`` on the CPU (fetched once for all images of a call).
            newlines: ``"drop"``, or ``"rows"``: a newline stays when a patch of its line does.

        Returns:
            features (m, D) on the device, and repeats (n,) int64 on the CPU: how often each placeholder stands in the
            shortened prompt (0 dropped, 1 kept, 2 where the released variant doubles a token).
        """
        if self.slots is None or self.stream is None:
            repeats = torch.zeros(self.placeholders, dtype=torch.int64)
            repeats[: len(kept)] = 1
            repeats[-1] += max(0, len(kept) - self.placeholders)
            return self.tokens.features[selection.indices], repeats
        if len(kept) == len(self.tokens) and len(torch.unique(kept)) == len(kept):
            return self.stream, torch.ones(self.placeholders, dtype=torch.int64)
        counts = torch.bincount(kept, minlength=len(self.tokens))
        patch = self.slots >= 0
        repeats = torch.where(patch, counts[self.slots.clamp(min=0)], (self.slots == STAYS).long())
        if newlines == "rows" and self.lines is not None:
            alive = torch.zeros(int(self.lines.max()) + 2, dtype=torch.bool)
            alive[self.lines[patch & (repeats > 0)]] = True  # index -1 is the spare last entry
            alive[-1] = False
            repeats = torch.where(self.slots == NEWLINE, alive[self.lines].long(), repeats)
        positions = torch.repeat_interleave(torch.arange(self.placeholders), repeats)
        return self.stream[positions.to(self.stream.device)], repeats


@dataclass(frozen=True)
class Patch:
    """An attribute to put on an object while a model is attached."""

    owner: Any
    name: str
    value: Any


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
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Arguments of the model's forward that carry the images; the first is the pixels."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.base = model.model
        self.check()

    @classmethod
    @abstractmethod
    def traits(cls) -> Mapping[str, str]:
        """For people: what saliency is read, which positions and layouts there are, whether video works."""

    @abstractmethod
    def check(self) -> None:
        """Raises ValueError when this model cannot be pruned faithfully."""

    @abstractmethod
    def instruments(self) -> Sequence[Patch]:
        """Patches that let ``encode`` read the encoder; inert outside a recording."""

    @abstractmethod
    def encode(
        self, inputs: Mapping[str, Any], *, saliency: bool, layout: Layout, features: Callable[..., Any]
    ) -> list[EncodedImage]:
        """Runs the vision tower and projector once over all images of a call.

        Args:
            inputs: the call's arguments, ``image_inputs`` among them.
            saliency: whether a method will read it; nothing is tapped otherwise.
            layout: one of ``layouts``.
            features: the model's own ``get_image_features``.
        """

    @property
    def image_token_id(self) -> int:
        """The placeholder's token id."""
        token = getattr(self.config, "image_token_id", None)
        return int(self.config.image_token_index if token is None else token)

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
        table: nn.Module = self.model.get_input_embeddings()
        return table(ids.to(next(table.parameters()).device))
