"""Selection by the question alone, and what every method that reads the question shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.functional import relevance_to_text, text_to_image_attention
from foveate.functional.common import require_known, require_positive
from foveate.functional.text import WORDS, require_sign
from foveate.pruners.base import TEXT_TO_IMAGE, Scorer
from foveate.tokens import TextTokens, VisualTokens

TEXT_SPANS = ("turn", "prompt")


class ReadsQuestion:
    """Mixed into a ``Pruner`` that reads the question; the dataclass declares these two options itself.

    Args:
        text_span: which text guides the selection. ``"turn"`` (default): the text of the image's own user turn, before
            and after the image, without template marks and role names; later turns of a conversation keep the same
            tokens. ``"prompt"``, as released: everything after the image to the prompt's end, the template's suffix
            included.
        special_tokens: False leaves special tokens (BOS, EOS, ...) out. Default True.

    Raises:
        ValueError: an unknown ``text_span``.
    """

    text_span: str
    special_tokens: bool

    reads_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        require_known(TEXT_SPANS, text_span=self.text_span)

    def text_mask(self, text: TextTokens) -> Tensor | None:
        """(T,) bool, True for the tokens that count, or None for all of them. A mask: indexing would need a host sync.

        Who calls the method hands it the tokens of its ``text_span``; here only those go that ``turn`` or ``special``
        say are none.

        Raises:
            ValueError: the options leave no text token (not on an accelerator whose masks lie there too; what the
                mask leaves then has no finite score, for the caller's ``require_finite``).
        """
        mask = None
        if self.text_span == "turn":
            mask = text.turn
        if not self.special_tokens:
            mask = ~text.special if mask is None else mask & ~text.special
        if mask is None or mask.device.type != "cpu":
            return mask
        if len(mask) and bool(mask.all()):
            return None  # the same, and several steps fewer for whoever is handed it
        if not bool(mask.any()):
            raise ValueError(
                f"text_span={self.text_span!r} with special_tokens={self.special_tokens} leaves none of the "
                f"{len(text)} text tokens beside this image; put the question into the image's turn, or use "
                "text_span='prompt', special_tokens=True"
            )
        return mask


class ReadsRelevance(ReadsQuestion):
    """Mixed into a ``Pruner`` that reads relevance to the question; the dataclass declares these options itself.

    Args:
        text_span, special_tokens: as for ``ReadsQuestion``.
        words: relevance is the ``"mean"`` (default) or the ``"max"`` of the cosines to the words.
        sign: 1 (default), or -1: the cosines are negated.

    Raises:
        ValueError: an unknown ``text_span`` or ``words``, a ``sign`` that is neither.
    """

    words: str
    sign: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(WORDS, words=self.words)
        require_sign(self.sign)

    def relevance(self, visual: VisualTokens, text: TextTokens) -> Tensor:
        """(N,) float32 in [0, 1]: how relevant each visual token is to the text of the chosen span.

        Raises:
            ValueError: the options leave no text token, see ``text_mask``.
        """
        mask = self.text_mask(text)
        return relevance_to_text(
            text.embeddings.detach(), visual.features.detach(), text_mask=mask, words=self.words, sign=self.sign
        )


class ReadsText(ReadsQuestion):
    """Mixed into a ``Pruner`` that reads text-to-image attention; the dataclass declares these three options itself.

    Args:
        text_span, special_tokens: as for ``ReadsQuestion``.
        temperature: of the softmax over the visual tokens, ``softmax(cos / temperature)``. Default 0.01.

    Raises:
        ValueError: an unknown ``text_span``, a ``temperature`` that is not positive and finite.
    """

    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature)

    def text_to_image(self, visual: VisualTokens, text: TextTokens) -> Tensor:
        """(N,) float32: how strongly the text of the chosen span points at each visual token.

        Raises:
            ValueError: the options leave no text token, see ``text_mask``.
        """
        return text_to_image_attention(
            text.embeddings.detach(), visual.features.detach(), 1 / self.temperature, text_mask=self.text_mask(text)
        )


@dataclass
class TextSimilarity(ReadsText, Scorer):
    """The tokens that the question's own embeddings point at most: the text half of AdaFV (arXiv 2501.09532).

    Args:
        keep: as for ``Pruner``.
        text_span, temperature, special_tokens: as for ``ReadsText``.
    """

    text_span: str = "turn"  # type: ignore[misc]
    temperature: float = 0.01
    special_tokens: bool = True

    name: ClassVar[str] = "text"

    def score(self, visual: VisualTokens, text: TextTokens | None) -> dict[str, Tensor]:
        """Text-to-image attention."""
        assert text is not None  # Pruner.select has refused an image without text
        return {TEXT_TO_IMAGE: self.text_to_image(visual, text)}
