"""Which words of a text say where to look, by how widely they spread over the image: pure functions of one image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import accumulator, directions, ranks
from foveate.functional.text import counted_words, min_max, require_sign, require_text

_TEXT_BLOCK = 1024  # text tokens scored at a time: a document beside a picture makes no table of its own length
_SCALE = 100.0  # inverse temperature of the words' softmax over the image
_TEMPERATURE = 0.01  # of the softmax over the words' entropies
_WHOLE = 1e-5  # what rounding may take from a number of words that is whole


def focused_relevance(
    text: Tensor, visual: Tensor, *, text_mask: Tensor | None = None, share: float = 0.5, sign: int = 1
) -> Tensor:
    """How relevant each visual token is to the words that single out a place: EADP's score (arXiv 2607.02484).

    A word's entropy ``h`` is that of ``softmax over the image's tokens of 100 cos``. The ``share`` of the words of the
    least entropy stays, and counts by ``softmax(- h / 0.01)``: nearly all for the most focused. A token's relevance is
    half its mean cosine to all words and half its weighted cosine to those, min-max scaled over the image; where all
    are equally relevant it is 1. O(T N D) time, O(T N) memory, or O(1024 N) for a longer text.

    Args:
        text: (T, D) input embeddings of the LLM.
        visual: (N, D) tokens of one image.
        text_mask: (T,) bool, True for the words that count. Default: all of them.
        share: part of the words that stays, in (0, 1], rounded down, one at least. Default 0.5.
        sign: 1, or -1: every cosine is negated before anything else is done with it. Default 1.

    Returns:
        (N,) float32 in [0, 1]. Of words of equal entropy the earlier stays. Where the mask leaves no word it is NaN (on
        the CPU: an error).

    Raises:
        TypeError: a dtype that is not floating; a mask that is not bool.
        ValueError: shapes that do not fit, no token, ``share`` outside (0, 1], another ``sign``; on CPU tensors also
            NaN or infinity, or a mask that leaves none.
    """
    if not 0 < share <= 1:  # NaN fails too
        raise ValueError(f"share must be in (0, 1], got {share!r}")
    require_sign(sign)
    require_text(text, visual)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        queries, counts = counted_words(text, text_mask)
        real = accumulator(unit.device)
        entropy = torch.cat(
            [
                _entropy((_SCALE * sign) * (queries[start : start + _TEXT_BLOCK] @ unit.T), real)
                for start in range(0, len(queries), _TEXT_BLOCK)
            ]
        )
        if counts is None:
            counts = torch.ones(len(queries), dtype=torch.bool, device=unit.device)
        entropy = entropy.masked_fill(~counts, math.inf)
        counted = counts.sum()
        stay = (share * counted.to(real) + _WHOLE).floor().clamp(min=1)
        focused = ranks(entropy.sort(stable=True).indices) < stay
        weight = torch.softmax((-entropy / _TEMPERATURE).masked_fill(~focused, -math.inf), dim=0).to(unit.dtype)
        # Masked words are zero and add nothing.
        direction = 0.5 * (queries.sum(dim=0) / counted) + 0.5 * (weight @ queries)
        return min_max(sign * (unit @ direction))


def _entropy(logits: Tensor, real: torch.dtype) -> Tensor:
    """(T,) entropies, in nats, of the softmax of (T, N) logits; divided by 0.01 afterwards, hence in a wide dtype."""
    log = torch.log_softmax(logits.to(real), dim=1)
    return -(log.exp() * log).sum(dim=1)
