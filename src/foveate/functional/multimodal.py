"""Tokens that cover the question and the image at once: pure functions of one image's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    directions,
    require_budget,
    require_positive,
    require_weights,
    shape_of,
)
from foveate.functional.facility import facility_location
from foveate.functional.text import counted_words, require_text

_BLOCK = 1 << 20  # cells of a table that is built piece by piece (8 MiB)


def multimodal_cover(
    text: Tensor,
    visual: Tensor,
    encoded: Tensor,
    budget: int,
    temperature: float = 0.02,
    visual_temperature: float = 0.2,
    visual_weight: float = 0.5,
    *,
    text_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens that cover the words of the text and the tokens of the image: MMTok (arXiv 2508.18264).

    Each of m words and each of n tokens spreads one unit over the image's tokens: a word by ``softmax over i of
    cos(e, v_i) / temperature``, a token by ``softmax over i of cos(u, u_i) / visual_temperature``. A choice covers the
    word or the token by the largest part that one of its tokens has, and ``mean over words + visual_weight * mean over
    tokens`` of that is maximised greedily (:func:`facility_location`). O(N (T D + N d)) time and that of the greedy
    choice, O((T + N) N) memory.

    Args:
        text: (T, D) input embeddings of the LLM.
        visual: (N, D) projected tokens of one image, v.
        encoded: (N, d) what tokens are compared with one another by, u.
        budget: K >= 1; with N <= K everything is kept.
        temperature: > 0, of the words. Default 0.02.
        visual_temperature: > 0, of the tokens. Default 0.2.
        visual_weight: >= 0, how much covering tokens counts beside covering words. Default 0.5.
        text_mask: (T,) bool, True for the words that count. Default: all of them.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and what each token would cover alone, (N,) float32 in
        [0, 1 + ``visual_weight``]. Ties go to the earlier token.

    Raises:
        TypeError: inputs that are not floating; a mask that is not bool; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, options out of range; on CPU tensors also NaN or
            infinity, or a mask that leaves no word.
    """
    budget = require_budget(budget)
    require_positive(temperature=temperature, visual_temperature=visual_temperature)
    require_weights(visual_weight=visual_weight)
    require_text(text, visual)
    with torch.autocast(visual.device.type, enabled=False):
        unit, own = directions(visual), directions(encoded, "encoded")
        if len(own) != len(unit):
            raise ValueError(f"visual {shape_of(visual)} and encoded {shape_of(encoded)} must have as many tokens")
        queries, counts = counted_words(text, text_mask)
        words, tokens = len(queries), len(unit)
        likeness = unit.new_empty(words + tokens, tokens)
        _spread(queries, unit, temperature, likeness[:words])
        _spread(own, own, visual_temperature, likeness[words:])
        # Words that do not count weigh nothing.
        each = unit.new_ones(words) if counts is None else counts.to(unit.dtype)
        weight = torch.cat([each / each.sum(), unit.new_full((tokens,), visual_weight / tokens)])
        alone = weight @ likeness
        order, _ = facility_location(likeness, weight, budget)
    return order.sort().values, alone


def _spread(ones: Tensor, tokens: Tensor, temperature: float, into: Tensor) -> None:
    """What each of (R, D) directions spreads over (N, D) ones, written into an (R, N) table, some rows at a time.

    Rounded from a longer accumulator: what is equal stays equal wherever in a row it stands, and ties are ties.
    """
    real, height = accumulator(tokens.device), max(1, _BLOCK // len(tokens))
    for start in range(0, len(ones), height):
        some = slice(start, start + height)
        into[some] = torch.softmax((ones[some] @ tokens.T).to(real).div_(temperature), dim=1)
