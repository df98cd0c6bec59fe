"""What a pruning method is: a dataclass of its options that never sees a model."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from foveate.functional import Weights, top_k
from foveate.tokens import Keep, Selection, TextTokens, VisualTokens, on_device

if TYPE_CHECKING:
    from foveate.attachment import Attachment

SALIENCY = "saliency"
TEXT_TO_IMAGE = "text_to_image"
FEATURES = ("projected", "encoded")
"""What tokens may be compared with one another by: as they enter the LLM, or as the encoder hands them on."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What a method decided for one image.

    Args:
        indices: (K,) int64, ascending.
        scores: by name, (N,) float32: what the choice was made from.
        shares: by name, 0-d int64 tensors: how many of the K each side brought.
        weights: (K, N) when kept tokens are put together from several: row k says how much of each of the N patch
            tokens makes up the k-th kept one, which takes the place of ``indices[k]``. A ``foveate.functional.Merge``,
            or a float32 tensor. None: they go as they are.
    """

    indices: Tensor
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Weights | None = None


@dataclass
class Method:
    """What all methods are: a budget, flags of what they read, and a way to be put on a model.

    Two methods are equal when they are of one class and have equal options, and can be keys of a dict.

    Args:
        keep: a fraction of each image's patch tokens, in (0, 1], or an int, tokens per image. Default 0.1.

    Raises:
        TypeError, ValueError: ``keep`` is neither.
        TypeError: an option that is declared a ``float`` is no number, or one that is declared a ``bool`` none.
    """

    keep: float | int = 0.1

    name: ClassVar[str]
    reads_saliency: ClassVar[bool] = False
    reads_keys: ClassVar[bool] = False
    reads_encoded: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    """Whether how many tokens stay is the method's own choice, ``keep`` being the most; known once it has chosen."""
    budgets: ClassVar[tuple[str, ...]] = ()
    """Options that are budgets too: behind a name they are read as ``Keep.read`` reads."""
    text_span = "prompt"  # no annotation: a field only where a method has the choice
    special_tokens = True  # likewise

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A dataclass that compares by value would have no hash; it keeps one that its class has.
        if "__hash__" not in vars(cls):
            cls.__hash__ = Method.__hash__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        if isinstance(self.keep, torch.nn.Module):
            raise TypeError(
                f"keep is a number, got a {type(self.keep).__name__}: write `with {type(self).__name__}(keep=0.1)"
                "(model):`"
            )
        for one in fields(self):
            if one.init and one.name != "keep":
                _require_kind(one.name, getattr(self, one.name), one.type)
        self.keep = Keep(self.keep).value
        self._selections: list[Selection] = []

    def __hash__(self) -> int:
        return hash(type(self))  # options may be set anew, and may be lists

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options beside ``keep``; of a wrapper also those of the method it holds."""
        return tuple(one.name for one in fields(self) if one.init and one.name != "keep")

    @property
    def selections(self) -> list[Selection]:
        """One ``Selection`` per image of the last call through this pruner, in prompt order."""
        return self._selections

    def record(self, selections: list[Selection]) -> None:
        """Called by whoever ran the method for a whole call."""
        self._selections = selections

    def __call__(self, model: Any, **options: Any) -> AbstractContextManager[Attachment]:
        """``with pruner(model): model.generate(...)``. Options as for ``foveate.attach``."""
        # The one place where a method meets the model side, and only by name.
        from foveate.attachment import Attachment
        from foveate.options import Options

        return Attachment(model, self, Options(**options))

    def __enter__(self) -> NoReturn:
        """Raises TypeError: a model is missing."""
        raise TypeError(f"there is no model to prune: write `with {type(self).__name__}(keep={self.keep})(model):`")

    def __exit__(self, *error: object) -> None:
        """Looked up before ``__enter__`` speaks; never called."""


@dataclass
class Pruner(Method, ABC):
    """Chooses which visual tokens of an image reach the LLM.

    A subclass is a dataclass of its options with a ``name``, the flags of what it reads, and ``choose``.

    Args:
        keep: a fraction of each image's patch tokens, in (0, 1], or an int, tokens per image. Default 0.1.

    Raises:
        TypeError, ValueError: ``keep`` is neither.
    """

    merges: ClassVar[bool] = False
    """Whether kept tokens are put together from several."""
    takes_weight: ClassVar[bool] = False
    """Whether it compares tokens by ``VisualTokens.likened`` and counts their ``weight``: what ``Centered`` needs."""
    over_time: ClassVar[bool] = False
    """Whether it compares the frames of a video with one another, as frames in time."""
    exact: ClassVar[bool] = True
    """Whether it keeps just as many tokens as the budget says (``adaptive``: no more), none of them twice."""

    @abstractmethod
    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """Picks ``budget`` of the N patch tokens of one image, budget < N.

        Args:
            visual: N tokens, with ``saliency`` (float32) when ``reads_saliency``, ``keys`` when ``reads_keys`` and
                ``encoded`` when ``reads_encoded``.
            text: T >= 1 text tokens when ``reads_text``, else None. All but the text's masks is on
                the device of ``visual.features``.
            budget: K, 1 <= K < N; of an ``adaptive`` method the most that may stay, 1 <= K <= N.

        Returns:
            K distinct indices, ascending, and what they were chosen from. No host sync, no loop over tokens.
        """

    def select(self, visual: VisualTokens, text: TextTokens | None = None) -> Selection:
        """One image's tokens and text in, its selection out. Keeps everything when the budget covers all N, unless the
        method is ``adaptive``. The budget is of the whole picture's tokens where only some of its views were encoded.

        Scores are computed, and indices lie, where ``visual.features`` are.

        Raises:
            ValueError: the method reads saliency, keys, the encoder's features or text, and there are none; it chose
                what ``choose`` must not (on an accelerator, which indices they are is not looked at).
            TypeError: it returned no ``Choice`` of tensors.
        """
        if self.reads_saliency and visual.saliency is None:
            raise ValueError(f"{self.name} reads visual saliency, and these tokens carry none")
        if self.reads_keys and visual.keys is None:
            raise ValueError(f"{self.name} compares the vision encoder's keys, and these tokens carry none")
        if self.reads_encoded and visual.encoded is None:
            raise ValueError(f"{self.name} reads the vision encoder's features, and these tokens carry none")
        if self.reads_text and (text is None or len(text) == 0):
            raise ValueError(f"{self.name} reads the question, and there is no text beside this image")
        budget = visual.budget(Keep(self.keep))
        if budget == len(visual) and not self.adaptive:
            choice = self.keep_all(visual, text)
        else:
            choice = self.choose(_together(visual), _beside(text, visual.features.device), budget)
            self._require_choice(choice, len(visual), budget)
        return Selection(choice.indices, visual.geometry, choice.scores, choice.shares, choice.weights)

    def _require_choice(self, choice: Any, total: int, budget: int) -> None:
        if not isinstance(choice, Choice):
            raise TypeError(f"{self.name} must choose a foveate.pruners.Choice, got {type(choice).__name__}")
        kept = choice.indices
        if not isinstance(kept, Tensor) or kept.dtype != torch.int64:
            what = f"a tensor of {kept.dtype}" if isinstance(kept, Tensor) else type(kept).__name__
            raise TypeError(f"{self.name} must choose by indices, an int64 tensor, got {what}")
        least = budget if self.exact and not self.adaptive else 1
        if kept.ndim != 1 or not least <= len(kept) <= budget:
            wanted = f"{budget}" if least == budget else f"{least} to {budget}"
            more = "" if self.adaptive else "; a method that decides itself how many stay sets adaptive = True"
            raise ValueError(f"{self.name} must choose {wanted} of {total} tokens, got {tuple(kept.shape)}{more}")
        if kept.device.type == "cpu":
            there = kept.numpy()  # of so few numbers, several times as fast as tensor operations
            if (np.diff(there) < int(self.exact)).any() or there[0] < 0 or there[-1] >= total:
                raise ValueError(f"{self.name} must choose distinct indices in [0, {total}), ascending")
        for name, score in choice.scores.items():
            if not isinstance(score, Tensor) or score.shape != (total,):
                shape = f"{tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
                raise ValueError(f"{self.name} must score all {total} tokens, and {name!r} is {shape}")

    def keep_all(self, visual: VisualTokens, text: TextTokens | None) -> Choice:
        """The choice when the budget covers every token: all of them, in order, nothing scored."""
        return Choice(torch.arange(len(visual), device=visual.features.device))


@dataclass
class Scorer(Pruner):
    """A method that ranks: every token has a score, and the best stay. A subclass has ``score`` and nothing else.

    Args:
        keep: as for ``Pruner``.
    """

    @abstractmethod
    def score(self, visual: VisualTokens, text: TextTokens | None) -> Mapping[str, Tensor]:
        """Scores of the N tokens, as for ``Pruner.choose``.

        Returns:
            (N,) float32 by name, the one that ranks first; the others are recorded beside it.
        """

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The ``budget`` best by the first score, ties to the earlier token."""
        scores, ranking = self.ranking(visual, text)
        return Choice(top_k(ranking, budget), scores)

    def ranking(self, visual: VisualTokens, text: TextTokens | None) -> tuple[Mapping[str, Tensor], Tensor]:
        """All scores, and the one that ranks.

        Raises:
            TypeError: ``score`` gave no scores by name.
            ValueError: the one that ranks is not (N,).
        """
        scores: Any = self.score(visual, text)
        if not isinstance(scores, Mapping) or not scores:
            what = "none" if isinstance(scores, Mapping) else type(scores).__name__
            raise TypeError(f"{self.name} must give its scores by name, such as {{'score': tensor}}, got {what}")
        name, ranking = next(iter(scores.items()))
        if tuple(ranking.shape) != (len(visual),):
            raise ValueError(f"{self.name} must score all {len(visual)} tokens, and {name!r} is {tuple(ranking.shape)}")
        return scores, ranking


def _require_kind(name: str, value: Any, kind: Any) -> None:
    """Of options behind a name, ``false`` would else be a text, and so true."""
    if kind in ("bool", bool) and not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    if kind in ("float", float) and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")


def _together(visual: VisualTokens) -> VisualTokens:
    """All of it where the features lie, saliency in float32."""
    device = visual.features.device
    return replace(
        visual,
        geometry=visual.geometry.to(device),
        saliency=None if visual.saliency is None else on_device(visual.saliency.float(), device),
        keys=None if visual.keys is None else on_device(visual.keys, device),
        encoded=None if visual.encoded is None else on_device(visual.encoded, device),
    )


def _beside(text: TextTokens | None, device: torch.device) -> TextTokens | None:
    """Embeddings on that device; masks stay on the CPU, where they can be looked at."""
    return None if text is None else replace(text, embeddings=on_device(text.embeddings, device))


def require_count(least: int = 1, **counts: int) -> None:
    """Raises unless every option is an int >= ``least``.

    Raises:
        TypeError: no int (bool included).
        ValueError: too small.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value!r}")
