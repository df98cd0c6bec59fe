"""Rows of an attention matrix from queries and keys, averaged over heads; the matrix itself is never whole.

And what is read of patches, put together for tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Queries per chunk when the mean received attention is read: bounds the working set to heads x 256 x N.
QUERY_CHUNK = 256
# Logits per chunk on a CPU: 1 MiB of float32 stays in the cache from the product to the sum, which takes a third of the
# time that going through memory takes.
CPU_CHUNK = 2**18


def cls_attention(query: Tensor, key: Tensor, scaling: float, last: bool = False) -> Tensor:
    """The attention CLS pays to each patch, averaged over heads, CLS itself left out.

    Args:
        query: (V, H, 1 + P, d), CLS first.
        key: (V, H, 1 + P, d).
        scaling: factor on the dot products.
        last: CLS stands last instead.

    Returns:
        (V, P) float32. Sums to 1 minus what CLS pays to itself. Source: FasterVLM (arXiv 2412.01818), eq. 4.
    """
    query, key = _precise(query[:, :, -1:] if last else query[:, :, :1]), _precise(key)
    logits = query @ key.transpose(-1, -2) * scaling
    row = logits.softmax(dim=-1).mean(dim=1)[:, 0].float()
    return row[:, :-1] if last else row[:, 1:]


def received_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """The attention each token receives, averaged over heads and queries: saliency for encoders without CLS.

    Args:
        query: (V, H, P, d).
        key: (V, H, P, d).
        scaling: factor on the dot products.
        mask: broadcastable to (V, H, P, P), additive or bool (True: may be attended to), or (V, P), True where no
            padding stands (as FlashAttention takes it), or None.

    Returns:
        (V, P) float32, each row summing to 1. Queries go in chunks: no (P, P) matrix is ever whole.
    """
    (views, heads, queries), length = query.shape[:3], key.shape[2]
    if mask is not None:
        if mask.ndim == 2:
            mask = mask[:, None, None].bool()
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        mask = mask.expand(views, heads, queries, length)
    key = _precise(key)
    total = torch.zeros(views, length, dtype=torch.float32, device=key.device)
    for part in _chunks(views, heads, queries, length, key.device):
        logits = (_precise(query[part]) @ key[part[:2]].transpose(-1, -2)).mul_(scaling)
        if mask is not None:
            logits = logits + mask[part]
        total[part[0]] += logits.softmax(dim=-1).sum(dim=(1, 2))
    return total / (heads * queries)


def shared_out(key: Tensor, heads: int) -> Tensor:
    """(V, H, P, d) keys of every query head from (V, h, P, d), each shared by H / h heads that follow one another."""
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], dim=1)


def _precise(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _chunks(
    views: int, heads: int, queries: int, length: int, device: torch.device
) -> Iterator[tuple[slice, slice, slice]]:
    """What of (V, H, P) queries is taken at once: on an accelerator few large products, on a CPU many small ones."""
    rows = QUERY_CHUNK
    if device.type == "cpu":
        rows = max(1, min(rows, queries, CPU_CHUNK // length))
        steps = (1, max(1, CPU_CHUNK // (rows * length)), rows)
    else:
        steps = (views, heads, rows)
    whole = (views, heads, queries)
    starts = (range(0, count, step) for count, step in zip(whole, steps, strict=True))
    for place in itertools.product(*starts):
        view, head, row = (slice(start, start + step) for start, step in zip(place, steps, strict=True))
        yield view, head, row


def over_patches(rows: Sequence[Tensor], sources: Tensor, device: torch.device, mean: bool) -> Tensor | None:
    """(N,) or (N, d) float32: the sum or the mean over the patches of every token; None where nothing was read.

    Args:
        rows: (P,) or (P, d) float32 each: what was read of patches, which are numbered through all of them.
        sources: (N,) or (N, m) int64: the patches of each token. A negative one stands for none.
        device: of the tokens.
        mean: the mean rather than the sum.
    """
    if not rows:
        return None
    values = torch.cat([row.to(device) for row in rows])
    sources = sources.to(device)
    if sources.ndim == 1:
        return values[sources]
    there = (sources >= 0).float().view(*sources.shape, *[1] * (values.ndim - 1))
    pooled = (values[sources.clamp(min=0)] * there).sum(dim=1)
    return pooled / there.sum(dim=1) if mean else pooled


def parts(
    query: Tensor, key: Tensor, mask: Tensor | None, segments: Sequence[int] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """What attends within itself: its queries, its keys, and the mask that is left to heed.

    Args:
        query, key: (V, H, P, d) as an attention function is given them, with its ``mask``.
        segments: see ``foveate.attention.Recorder``.
    """
    views, length = len(query), query.shape[2]
    if segments is None or (views == 1 and length < sum(segments)):  # all views alike, or one of many
        yield query, key, mask
    elif views == 1 and length == sum(segments):  # a mask would only keep them apart
        for part, other in zip(query.split(list(segments), dim=2), key.split(list(segments), dim=2), strict=True):
            yield part, other, None if len(segments) > 1 else mask
    else:  # each filled up to the same length: what fills it asks for nothing
        for view, real in enumerate(segments):
            yield query[view : view + 1, :, :real], key[view : view + 1, :, :real], None
