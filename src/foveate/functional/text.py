"""What the text says about each visual token: pure functions, without loops over tokens.

Sources: AdaFV (arXiv 2501.09532) for the attention of text to image, CDPruner (arXiv 2506.10967) for relevance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    directions,
    require_finite,
    require_floating,
    require_known,
    require_positive,
    shape_of,
    unit_rows,
)

WORDS = ("mean", "max")
"""How the cosines to several text tokens become one number."""

_TEXT_BLOCK = 1024  # text tokens scored at a time: a document beside a picture makes no table of its own length


def text_to_image_attention(
    text: Tensor, visual: Tensor, scale: float = 100.0, *, text_mask: Tensor | None = None
) -> Tensor:
    """How strongly the text points at each visual token.

    ``A = softmax over the N visual tokens of scale * cos(text, visual)``, then the maximum over the T text
    tokens (AdaFV, arXiv 2501.09532). Computed in float32 whatever the inputs and autocast say, at a cost of O(T N D);
    the largest tensor made is (..., T, N), or (..., 1024, N) for a longer text.

    Args:
        text: (..., T, D) input embeddings of the LLM.
        visual: (..., N, D) projected visual tokens of one image, all its views. Either side may go without
            the batch dimensions: many questions on one image, one question on many.
        scale: inverse temperature of the softmax. Default 100.
        text_mask: (..., T) bool, True for the tokens that count (padding out, for one). Default: all of them.

    Returns:
        (..., N) float32 in (0, 1]. Where the mask leaves no token it is -inf (on the CPU: an error).

    Raises:
        TypeError: a dtype that is not floating; a mask that is not bool.
        ValueError: shapes that do not fit, no token, ``scale`` not positive; on CPU tensors also NaN or
            infinity, or a mask that leaves no text token. On accelerators, check the result with
            :func:`require_finite`.
    """
    require_floating(text=text, visual=visual)
    if text.ndim < 2 or visual.ndim < 2 or text.shape[-1] != visual.shape[-1]:
        raise ValueError(
            f"text (..., T, D) and visual (..., N, D) must share D, got {shape_of(text)} and {shape_of(visual)}"
        )
    if 0 in (text.shape[-2], visual.shape[-2], text.shape[-1]):
        raise ValueError(f"need text and visual tokens, got shapes {shape_of(text)} and {shape_of(visual)}")
    if text.ndim > 2 and visual.ndim > 2 and text.shape[:-2] != visual.shape[:-2]:
        raise ValueError(f"batch dimensions of text {shape_of(text)} and visual {shape_of(visual)} differ")
    require_positive(scale=scale)
    if text_mask is not None:
        _require_mask(text_mask, text)

    with torch.autocast(visual.device.type, enabled=False):
        # Normalised before the product: dividing afterwards is cheaper, but then rounding, amplified by scale,
        # moves the scores by 4e-5 of their value against the golden files, and not by 2e-7.
        unit = unit_rows(visual)
        parts = []
        for start in range(0, text.shape[-2], _TEXT_BLOCK):
            some = slice(start, start + _TEXT_BLOCK)
            attention = torch.softmax(scale * (unit_rows(text[..., some, :]) @ unit.transpose(-1, -2)), dim=-1)
            if text_mask is not None:
                counts = text_mask[..., some].to(attention.device, non_blocking=True).unsqueeze(-1)
                attention = attention.masked_fill(~counts, -math.inf)
            parts.append(attention.amax(dim=-2))
    strongest = parts[0] if len(parts) == 1 else torch.stack(parts).amax(dim=0)
    # Whatever is not finite in the inputs leaves a NaN in its row of the softmax, so N values tell of N x D.
    if strongest.device.type == "cpu" and not bool(torch.isfinite(strongest).all()):
        require_finite(visual=visual.float())
        raise ValueError("NaN or infinity in text: nothing can be ranked by it")
    return strongest


def relevance_to_text(
    text: Tensor, visual: Tensor, *, text_mask: Tensor | None = None, words: str = "mean", sign: int = 1
) -> Tensor:
    """How relevant each visual token is to the text: its cosines to the text tokens in one number, scaled to [0, 1].

    CDPruner's relevance (arXiv 2506.10967) for models without CLIP's text encoder, with its min-max scaling over the
    image: the mean of the cosines; or their maximum, as AdaFV (arXiv 2501.09532) puts text tokens together. Where all
    are equally relevant it is 1. O((N + T) D) for the mean, O(T N D) for the maximum, whose largest table is (T, N),
    or (1024, N) for a longer text.

    Args:
        text: (T, D) input embeddings of the LLM.
        visual: (N, D) tokens of one image.
        text_mask: (T,) bool, True for the tokens that count. Default: all of them.
        words: ``"mean"`` or ``"max"`` over the text tokens. Default ``"mean"``.
        sign: 1, or -1: every cosine is negated before anything else is done with it. Default 1.

    Returns:
        (N,) float32 in [0, 1]. Where the mask leaves no token it is NaN (on the CPU: an error).

    Raises:
        TypeError: a dtype that is not floating; a mask that is not bool.
        ValueError: shapes that do not fit, no token, other ``words``, another ``sign``; on CPU tensors also NaN or
            infinity, or a mask that leaves none.
    """
    require_text(text, visual)
    require_known(WORDS, words=words)
    require_sign(sign)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        queries, counts = counted_words(text, text_mask)
        if words == "mean":
            # Masked tokens are zero and add nothing.
            counted = len(text) if counts is None else counts.sum()
            cosine = sign * (unit @ (queries.sum(dim=0) / counted))
        else:
            cosine = unit.new_full((len(unit),), -math.inf)
            for start in range(0, len(queries), _TEXT_BLOCK):
                some = slice(start, start + _TEXT_BLOCK)
                likeness = sign * (queries[some] @ unit.T)
                if counts is not None:
                    likeness = likeness.masked_fill(~counts[some].unsqueeze(-1), -math.inf)
                cosine = torch.maximum(cosine, likeness.amax(dim=0))
        return min_max(cosine)


def counted_words(text: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(T, D) unit vectors of the text tokens in float32, zero where they do not count, and the mask beside them."""
    queries, counts = text.float(), None
    if text_mask is not None:
        _require_mask(text_mask, text)
        counts = text_mask.to(queries.device, non_blocking=True)
        queries = queries.masked_fill(~counts.unsqueeze(-1), 0.0)
    if queries.device.type == "cpu":
        require_finite(text=queries)
    return unit_rows(queries), counts


def min_max(scores: Tensor) -> Tensor:
    """(N,) scores scaled to [0, 1] over the image; 1 where all are equal."""
    low, high = scores.aminmax()
    # NaN equals nothing, and what is infinite has no scale: both stay to be seen, for the caller.
    same = (high == low) & torch.isfinite(low)
    return torch.where(same, torch.ones_like(scores), (scores - low) / (high - low))


def require_text(text: Tensor, visual: Tensor) -> None:
    """(T, D) floating embeddings with T >= 1, as wide as the tokens."""
    require_floating(text=text)
    if text.ndim != 2 or 0 in text.shape or text.shape[-1] != visual.shape[-1]:
        raise ValueError(f"text (T, D) and visual (N, D) must share D, got {shape_of(text)} and {shape_of(visual)}")


def require_sign(sign: int) -> None:
    if isinstance(sign, bool) or sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, got {sign!r}")


def _require_mask(mask: Tensor, text: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"text_mask must be bool, got {mask.dtype}")
    if mask.shape != text.shape[:-1]:
        raise ValueError(f"text_mask {shape_of(mask)} does not fit text {shape_of(text)}")
    if mask.device.type == "cpu" and not bool(mask.any(dim=-1).all()):
        raise ValueError("text_mask leaves no text token")
