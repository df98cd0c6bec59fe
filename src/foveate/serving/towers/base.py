"""What serving asks of a family's part of vLLM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.attention import Recorder
from foveate.models.encoded import EncodedImage, Kind, Request
from foveate.models.view_store import ViewStore
from foveate.serving import hooks

Arguments = Mapping[str, Any]


class Batches(ABC):
    """One family's multi-modal arguments, for the images of a batch.

    Args:
        family: the adapter of ``foveate.models`` whose ``encode`` reads them.

    Raises:
        ValueError: a configuration that vLLM handles otherwise than transformers, or that cannot be pruned there.
    """

    kind: ClassVar[Kind] = "image"
    films: ClassVar[type[Films] | None] = None
    """The same for the family's videos; None: they are not served."""
    woven: ClassVar[bool] = False
    """Whether marks stand between an image's tokens: they come back among its features; see ``woven``."""

    def __init__(self, family: Any) -> None:
        self.family = family
        reason = self.unserved()
        if reason is not None:
            raise ValueError(f"foveate: {reason}")

    @abstractmethod
    def sizes(self, given: Arguments) -> list[int]:
        """Visual tokens of every image before pruning (LLaVA: unpadding, which leaves fewer, not counted)."""

    @abstractmethod
    def take(self, given: Arguments, places: Sequence[int]) -> dict[str, Any]:
        """The arguments of some of the images."""

    def inputs(self, given: Arguments) -> tuple[dict[str, Any], Tensor | None]:
        """What the family's ``encode`` reads: its inputs, and a prompt where only that tells images apart."""
        return {name: given[name] for name in self.family.image_inputs if name in given}, None

    def written(self, processor: Any, prompt: Sequence[int], images: int) -> Sequence[int]:
        """The prompt as the model reads it, but with one placeholder for every image.

        Args:
            processor: vLLM's.
            prompt: ids as a request brings them.
            images: how many there are.
        """
        return prompt

    def alike(self, given: Arguments, place: int) -> Hashable:
        """What must be the same of images that are encoded at once."""
        return None

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        """Has the adapter encode what ``inputs`` gave."""
        return self.family.encode(inputs, request)  # type: ignore[no-any-return]

    def outputs(self, streams: Sequence[Tensor]) -> Any:
        """What ``encode`` takes for ``pooler_output``, made of (n, D) features of every image."""
        return streams

    def views(self, given: Arguments) -> Tensor:
        """(views, channels, height, width): the views of all images, as the adapter numbers them."""
        raise NotImplementedError(f"{type(self).__name__} has no crops")

    def of_views(self, model: Any, given: Arguments, record: Recorder, store: ViewStore) -> Any:
        """What ``encode`` takes for ``pooler_output`` when only some views are encoded: those that ``store`` wants."""
        raise NotImplementedError(f"{type(self).__name__} has no crops")

    def encoded_views(self, model: Any, given: Arguments, store: ViewStore) -> Tensor:
        """(wanted views, tokens, D) from vLLM's tower and projector, which do not run where none is wanted."""
        if not store.wanted:
            return store.nothing()
        return hooks.features_of_views(model, store.pick(self.views(given)))

    @abstractmethod
    def attention(self, model: Any) -> Any:
        """The module whose queries and keys saliency is read from."""

    @abstractmethod
    def reader(self, model: Any) -> Any:
        """The module whose input is what the encoder hands to the projector or merger."""

    def unserved(self) -> str | None:
        """Why the model's configuration cannot be served, and what to do; None when it can."""
        return None


class Films(Batches):
    """One family's multi-modal arguments, for the videos of a batch."""

    kind = "video"
    newlines: ClassVar[int] = 0
    """Placeholders behind a video's tokens that carry no patch."""

    @abstractmethod
    def cut(self, given: Arguments, most: int) -> tuple[dict[str, Any], list[int]]:
        """The arguments with every video in pieces, each a video of its own, and whose each piece is; see ``films``.

        Args:
            most: visual tokens of a piece.
        """

    def encode(self, inputs: Mapping[str, Any], request: Request) -> list[EncodedImage]:
        return self.family.encode_videos(inputs, request)  # type: ignore[no-any-return]

    def seconds(self, given: Arguments, place: int) -> float | None:
        """From one step of a video's grid to the next, as far as the arguments say."""
        return None

    def shown(self, processor: Any, inputs: Any) -> list[list[int]]:
        """What stands in the prompt for every video of a request, with one placeholder for each run of them.

        Args:
            processor: vLLM's.
            inputs: its ``ProcessorInputs``.
        """
        return [[self.family.video_token_id]] * len(inputs.mm_data_items["video"])

    def labels(self, info: Any) -> int:
        """Tokens of what is written between a video's frames, at most.

        Args:
            info: vLLM's.
        """
        return 0


def pick(values: Any, places: Sequence[int]) -> Any:
    """Entries of a tensor or a list."""
    if torch.is_tensor(values):
        return values[torch.tensor(places, device=values.device)]
    return [values[place] for place in places]


def pick_parts(values: Tensor, counts: Sequence[int], places: Sequence[int]) -> Tensor:
    """The parts of some images, of a tensor that has so many entries for each."""
    if list(places) == list(range(len(counts))):
        return values
    parts = values.split(list(counts))
    return torch.cat([parts[place] for place in places])
