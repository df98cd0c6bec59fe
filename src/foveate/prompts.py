"""Shorten a prompt to what was kept, and give results back in terms of the prompt the user knows.

All of it is bookkeeping over token ids on the CPU: a few thousand integers, fetched from the device once per call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts as the user knows them, what a cache holds included.

    Args:
        ids: (B, S) int64 on the CPU, -1 where nobody knows what the cache holds.
        mask: (B, S) bool on the CPU, False where padding stands.
        cached: the part that a cache holds already; None without.
    """

    ids: Tensor
    mask: Tensor
    cached: CachedPrompt | None = None

    @property
    def fresh(self) -> Tensor:
        """(B, S) bool: what is neither padding nor cached."""
        fresh = self.mask.clone()
        if self.cached is not None:
            fresh[:, : self.cached.long_length] = False
        return fresh


def whole_prompt(ids: Tensor, mask: Tensor, cache: Any, placeholders: Iterable[int], only_new: bool = False) -> Prompt:
    """Puts what a cache holds and what a call brings together.

    Args:
        ids: (B, S) of the call; with a cache, the whole prompt or only what is not cached.
        mask: (B, S) or, with only what is not cached, wider.
        cache: the call's; None without.
        placeholders: ids that stand for images and videos.
        only_new: ``ids`` are never the whole prompt (a bare ``forward`` does not cut it).

    Raises:
        TypeError, ValueError: ids, mask and cache that do not go together, or a cache that cannot be continued.
    """
    for name, given in (("input_ids", ids), ("attention_mask", mask)):
        if not torch.is_tensor(given):
            raise TypeError(f"{name} is a {type(given).__name__}: tell the processor return_tensors='pt' for a tensor")
    ids = ids.cpu().long()
    if mask.ndim != 2 or mask.shape[0] != ids.shape[0] or mask.shape[1] < ids.shape[1]:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)} does not go with input_ids of shape {tuple(ids.shape)}: "
            "pruning needs the plain (batch, tokens) mask of the processor"
        )
    whole = mask.cpu().bool()
    length = cached_length(cache)
    if not length:
        if whole.shape != ids.shape:
            raise ValueError(
                f"attention_mask covers {whole.shape[1]} tokens and input_ids {ids.shape[1]}, without a cache between "
                "them"
            )
        return Prompt(ids, whole)
    cached = recall(cache)
    held = [keys for one in getattr(cache, "layers", ()) if torch.is_tensor(keys := getattr(one, "keys", None))]
    counts = [*(len(keys) for keys in held if keys.ndim == 4), *([] if cached is None else [len(cached.index)])]
    if {*counts} - {len(ids)}:
        raise ValueError(
            f"the cache was filled by {max(counts)} rows and {len(ids)} came with it: a cache of beams or of another "
            "batch cannot be continued under pruning"
        )
    if whole.shape[1] == ids.shape[1] and only_new:  # no mask was given: everything cached counts
        before = torch.ones(ids.shape[0], cached.long_length if cached else length, dtype=torch.bool, device="cpu")
        if cached is not None:
            before[:, : cached.ids.shape[1]] = cached.mask
        whole = torch.cat([before, whole], dim=1)
    missing = whole.shape[1] - ids.shape[1]
    if cached is None:
        known = ids[:, : max(0, length - missing)]
        if bool(torch.isin(known, torch.tensor(sorted(placeholders), dtype=ids.dtype, device="cpu")).any()):
            raise ValueError(
                "past_key_values holds an image that was not pruned by an attached call: fill the cache under the "
                "pruner too, or start without it"
            )
        index = torch.arange(length, device="cpu").expand(ids.shape[0], -1)
        cached = CachedPrompt(index, index, whole[:, :length], length)
    elif missing == 0 and not torch.equal(ids[:, : cached.ids.shape[1]], cached.ids):
        raise ValueError("these input_ids do not begin with the prompt that filled past_key_values")
    if missing:
        unknown = torch.full((ids.shape[0], missing), -1, dtype=ids.dtype, device="cpu")
        width = min(missing, cached.ids.shape[1])
        unknown[:, :width] = cached.ids[:, :width]
        ids = torch.cat([unknown, ids], dim=1)
    return Prompt(ids, whole, cached)


@dataclass(frozen=True, eq=False)
class Plan:
    """How a batch of prompts was shortened.

    Args:
        index: (B, S') int64 on the CPU: for each position of the short prompt its column in the long one, -1: padding.
        ids: (B, S) int64 on the CPU, the long prompt.
        mask: (B, S) bool on the CPU, the long prompt's attention mask.
        start: first column of the short prompt that the ids of this call cover; before it lies a cache.
        long_start: the same in the long prompt.
        following: (B,) int64 on the CPU: the M-RoPE position of the first token that is not cached; None without.
    """

    index: Tensor
    ids: Tensor
    mask: Tensor
    start: int = 0
    long_start: int = 0
    following: Tensor | None = None

    @property
    def length(self) -> int:
        """S, tokens per row of the long prompt."""
        return self.mask.shape[1]

    @property
    def short_length(self) -> int:
        """S', tokens per row of the short prompt."""
        return self.index.shape[1]

    @functools.cached_property
    def padded(self) -> bool:
        """Whether some position of the short prompt is padding."""
        return bool((self.index.numpy() < 0).any())

    def shorten(self, values: Tensor, fill: Any) -> Tensor:
        """(..., B, S) to (..., B, S') on the device of ``values``; padding positions get ``fill``."""
        index = self.index.to(values.device)
        if not self.padded:
            return values.gather(-1, index.expand(*values.shape[:-2], *index.shape)).to(torch.result_type(values, fill))
        source = index.clamp(min=0).expand(*values.shape[:-2], *index.shape)
        return torch.where(index < 0, fill, values.gather(-1, source))

    def short_ids(self, ids: Tensor, fill: int) -> Tensor:
        """The ids of this call, shortened: those from ``start`` on when the call passed only what is not cached yet.

        Args:
            ids: (..., B, S) or (..., B, S - long_start) int64.
            fill: id for padding.
        """
        if ids.shape[-1] == self.length:
            return self.shorten(ids, fill)
        index = self.index[:, self.start :].to(ids.device)
        source = (index - self.long_start).clamp(min=0).expand(*ids.shape[:-2], *index.shape)
        return torch.where(index < 0, fill, ids.gather(-1, source))

    def short_mask(self, mask: Tensor) -> Tensor:
        """(B, S') in the dtype and on the device of the (B, S) mask."""
        return self.shorten(mask, 0)

    def expand(self) -> Tensor:
        """(B, S - long_start) int64: for every column of the long prompt, which of the short one speaks for it.

        A dropped token's is the nearest kept one before it: what the model had read by then.
        """
        short = torch.arange(self.short_length, device="cpu").expand_as(self.index)
        holds = torch.zeros(self.index.shape[0], self.length + 1, dtype=torch.int64, device="cpu")
        holds.scatter_reduce_(1, torch.where(self.index < 0, self.length, self.index), short, "amax")
        nearest = holds[:, :-1].cummax(dim=1).values
        return (nearest[:, self.long_start :] - self.start).clamp(min=0)


def make_plan(prompt: Prompt, repeats: Tensor) -> Plan:
    """Works out the short prompt.

    Args:
        prompt: the long one.
        repeats: (B, S) int64 on the CPU: how often each token stands in the short prompt. Padding is dropped and put
            back on the side where it was (on the left when there was none, as ``generate`` needs it). What is cached
            stays as it is.
    """
    ids, mask, cached = prompt.ids, prompt.mask, prompt.cached
    if cached is None:
        index = _pack(repeats * mask, left=not bool((~mask[:, -1]).any()) or bool((~mask[:, 0]).any()))
        return Plan(index, ids, mask)
    start = cached.long_length
    fresh = _pack((repeats * mask)[:, start:], left=True)
    fresh = torch.where(fresh < 0, fresh, fresh + start)
    index = torch.cat([cached.index, fresh], dim=1)
    return Plan(index, ids, mask, cached.index.shape[1], start, cached.following)


def whole_plan(prompt: Prompt) -> Plan:
    """The plan that drops nothing of a prompt without a cache."""
    return Plan(torch.where(prompt.mask, torch.arange(prompt.ids.shape[1], device="cpu"), -1), prompt.ids, prompt.mask)


def _pack(repeats: Tensor, left: bool) -> Tensor:
    rows = [np.repeat(np.arange(repeats.shape[1]), row) for row in repeats.numpy()]
    width = max(len(row) for row in rows)
    index = np.full((len(rows), width), -1, dtype=np.int64)
    for number, row in enumerate(rows):  # one step per prompt, not per token
        index[number, slice(width - len(row), None) if left else slice(len(row))] = row
    return torch.from_numpy(index)


@dataclass(frozen=True, eq=False)
class CachedPrompt:
    """The part of a prompt that a KV cache holds, as left behind on the cache by the call that filled it.

    Args:
        index: (B, c) int64: for each cached position its column in the long prompt, -1 for padding.
        ids: (B, S0) int64, the long prompt of the call that filled it.
        mask: (B, S0) bool, False where that prompt was padded.
        long_length: columns of the long prompt that the cache stands for.
        following: (B,) int64: the M-RoPE position of the token that follows; None without.
        bias: (B, c) float32: what is added to the attention logits of every cached position; None: nothing.
    """

    index: Tensor
    ids: Tensor
    mask: Tensor
    long_length: int
    following: Tensor | None = None
    bias: Tensor | None = None

    def grown_to(self, cached: int) -> CachedPrompt:
        """The same after generated tokens joined the cache, ``cached`` positions in all.

        Raises:
            ValueError: the cache is shorter than the prompt it was filled with (cropped).
        """
        known = self.index.shape[1]
        if cached < known:
            raise ValueError(
                f"this cache holds {cached} positions, fewer than the {known} of the pruned prompt that filled it: a "
                "cropped cache cannot be continued under pruning. Start without past_key_values."
            )
        grown = cached - known
        new = torch.arange(self.long_length, self.long_length + grown, device="cpu").expand(self.index.shape[0], -1)
        following = None if self.following is None else self.following + grown
        bias = None if self.bias is None else torch.nn.functional.pad(self.bias, (0, grown))
        return CachedPrompt(
            torch.cat([self.index, new], dim=1), self.ids, self.mask, self.long_length + grown, following, bias
        )


_CACHE_ATTRIBUTE = "_foveate_prompt"


def remember(cache: Any, plan: Plan, following: Tensor | None = None, bias: Tensor | None = None) -> None:
    """Leaves on a cache which prompt it holds, so that a later turn can go on from the long ids."""
    if cache is not None and not isinstance(cache, tuple):
        setattr(cache, _CACHE_ATTRIBUTE, CachedPrompt(plan.index, plan.ids, plan.mask, plan.length, following, bias))


@dataclass(frozen=True)
class UnevenPrompt:
    """What stands on a cache whose layers hold different tokens: it cannot be continued.

    Args:
        method: the method that filled it.
    """

    method: str

    def grown_to(self, cached: int) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(
            f"this cache was filled under {self.method}, which prunes inside the LLM: its layers hold different "
            "tokens, and it cannot be continued. Start without past_key_values."
        )


def mark_uneven(cache: Any, method: str) -> None:
    """Leaves on a cache that ``method`` left its layers with different tokens, so that nobody goes on from it."""
    if cache is not None and not isinstance(cache, tuple):
        setattr(cache, _CACHE_ATTRIBUTE, UnevenPrompt(method))


def is_remembered(cache: Any) -> bool:
    """Whether ``remember`` left a prompt on a cache that still holds something."""
    return getattr(cache, _CACHE_ATTRIBUTE, None) is not None and cached_length(cache) > 0


def recall(cache: Any) -> CachedPrompt | None:
    """What ``remember`` left on a cache, grown to what it holds now; None for an empty or a bare model's cache."""
    known: CachedPrompt | UnevenPrompt | None = getattr(cache, _CACHE_ATTRIBUTE, None)
    length = cached_length(cache)
    return known.grown_to(length) if known is not None and length else None


def cached_length(cache: Any) -> int:
    """Positions a cache holds; 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())
