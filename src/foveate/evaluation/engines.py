"""What answers an evaluation's questions: see ``runner.Transformers`` and ``vllm_engine.Vllm``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from foveate.asking_again import AskAgain
from foveate.evaluation.blind import Blind
from foveate.evaluation.cropped import Cropped
from foveate.pruners import Method
from foveate.resizing import Resize


class Item(Protocol):
    """A question about one picture. An ``id`` attribute is used where there is one, else the place in the suite."""

    @property
    def image(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answers(self) -> Sequence[str]: ...


Way = Method | AskAgain | Resize | Cropped | Blind
"""How questions are asked: under a method, twice where unsure, of a smaller picture, with fewer crops, without any."""

Answered = tuple[str, int, int, int | None]
"""An answer; patch tokens kept, that there were, and that were encoded, None for all (see ``runner.Row``)."""


@dataclass(frozen=True)
class Spent:
    """What each question of a batch took, ms.

    Args:
        latency: from picture to answer.
        encoder: of it, the vision tower and what reads it, projector included; like the two below None where the
            engine does not say.
        selection: finding the images and the guiding text, choosing, shortening the prompt.
        prefill: from there to the logits of the first token; what chooses within it left out.
    """

    latency: float
    encoder: float | None = None
    selection: float | None = None
    prefill: float | None = None


class Asker(Protocol):
    """Answers the questions of one piece of an evaluation."""

    def ask(self, items: Sequence[Item], pruner: Way, max_new_tokens: int) -> tuple[list[Answered], Spent]:
        """What each item was answered, and what each of them took."""


class Engine(Protocol):
    """A model, and what runs it."""

    mixes: bool
    """Whether one batch of questions about different pictures costs no more than one about a single picture."""

    def facts(self) -> dict[str, Any]:
        """What answers depend on: the model's fingerprint, dtype, device; recorded, and compared when resuming."""

    def require(self, method: str, pruners: Sequence[Way]) -> None:
        """Raises ValueError where a method, made for two pictures, cannot run here."""

    def require_sizes(self, resize: Resize, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError where it refuses pictures of one of these sizes, (width, height), for want of a smaller
        one with few enough tokens, or where pictures are not made smaller here at all."""

    def asker(self, folder: Path, across: bool) -> Asker:
        """One for the next piece.

        Args:
            folder: where pictures lie.
            across: whether the piece is of several pictures.
        """

    def close(self) -> None:
        """Ends what the engine has started."""
