"""Shorten a prompt to what was kept, and give results back in terms of the prompt the user knows.

All of it is bookkeeping over token ids on the CPU: a few thousand integers, fetched from the device once per call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSpan:
    """Where one image stands in a batch of prompts.

    Args:
        row: its row in the batch.
        positions: (n,) int64, its placeholders' columns, ascending.
    """

    row: int
    positions: Tensor


def locate_images(
    ids: Tensor, mask: Tensor, image_token_id: int, placeholders: Sequence[int], kind: str = "image"
) -> list[ImageSpan]:
    """Assigns placeholders to images, row by row, in order.

    Args:
        ids: (B, S) int64 on the CPU.
        mask: (B, S) bool on the CPU, False where padding stands.
        image_token_id: the placeholder's id.
        placeholders: n of every image, in the order of ``pixel_values``.
        kind: what to call them in errors.

    Raises:
        ValueError: the prompts' placeholders are not those of the images; the message counts both.
    """
    spots = (ids == image_token_id) & mask
    per_row = spots.sum(dim=1).tolist()
    if sum(per_row) != sum(placeholders):
        raise ValueError(
            f"the prompts hold {sum(per_row)} {kind} placeholders, but the {len(placeholders)} {kind}(s) given need "
            f"{sum(placeholders)} ({', '.join(map(str, placeholders))}). Pass every {kind} with its prompt through the "
            f"model's own processor, with one {kind} token in the text for each {kind}."
        )
    spans: list[ImageSpan] = []
    image = 0
    for row, count in enumerate(per_row):
        columns = spots[row].nonzero()[:, 0]
        used = 0
        while used < count:
            take = placeholders[image]
            if used + take > count:
                raise ValueError(
                    f"row {row} of the batch holds {count} {kind} placeholders, which does not end at the border of "
                    f"one: {kind} {image} needs {take} and only {count - used} are left. They must come in prompt "
                    "order."
                )
            spans.append(ImageSpan(row, columns[used : used + take]))
            used, image = used + take, image + 1
    return spans


def text_after(span: ImageSpan, text: Tensor, answer: Tensor) -> Tensor:
    """(T,) int64 columns of the text that follows an image up to the prompt's end (METHOD: the released choice).

    Args:
        span: the image.
        text: (B, S) bool on the CPU, True for text.
        answer: (B, S) bool on the CPU, True for text with a label: the answer to be learned, which must not choose.

    Returns:
        The columns. Where nothing but labelled text follows, that; where nothing follows, all of the row's text;
        empty when the row has none.
    """
    row = text[span.row]
    following = row & (torch.arange(len(row)) > span.positions[-1])
    for candidates in (following & ~answer[span.row], following, row):
        columns = candidates.nonzero()[:, 0]
        if len(columns):
            break
    return columns


def turn_mask(ids: Sequence[int], ends: Sequence[Sequence[int]]) -> list[bool] | None:
    """Which of the tokens after an image belong to its own user turn: those up to the first end mark, mark included.

    Returns:
        One bool per token, or None when no end mark is there.
    """
    first = len(ids) + 1
    for end in ends:
        size = len(end)
        for start in range(len(ids) - size + 1):
            if list(ids[start : start + size]) == list(end):
                first = min(first, start + size)
                break
    return None if first > len(ids) else [place < first for place in range(len(ids))]


def turn_end(processor: Any) -> tuple[tuple[int, ...], ...]:
    """The token ids by which a processor's chat template ends a user's turn, for ``attach(..., turn_end=...)``.

    Raises:
        ValueError: the processor has no chat template, or it puts nothing after a user's text.
    """
    probe = "probe"
    tokenizer = getattr(processor, "tokenizer", processor)
    message = {"role": "user", "content": [{"type": "text", "text": probe}]}
    try:
        rendered = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"no usable chat template to read the end of a turn from: {error}") from error
    suffix = rendered.rpartition(probe)[2]
    with_suffix = tokenizer(probe + suffix, add_special_tokens=False)["input_ids"]
    alone = tokenizer(probe, add_special_tokens=False)["input_ids"]
    if with_suffix[: len(alone)] != alone or len(with_suffix) == len(alone):
        raise ValueError("this chat template puts nothing recognisable after a user's text; give turn_end yourself")
    return (tuple(with_suffix[len(alone) :]),)


def adds_special_tokens(processor: Any, prompt: str) -> bool:
    """Whether the tokenizer should add its special tokens: not to a prompt whose template has written BOS itself."""
    bos = processor.tokenizer.bos_token
    return not (bos and prompt.startswith(bos))


@dataclass(frozen=True)
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

    @property
    def dropped(self) -> int:
        """S - S'."""
        return self.length - self.short_length

    def shorten(self, values: Tensor, fill: Any) -> Tensor:
        """(..., B, S) to (..., B, S') on the device of ``values``; padding positions get ``fill``."""
        index = self.index.to(values.device)
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

    def positions(self, device: torch.device, *, from_mask: bool = True) -> Tensor:
        """(B, S') int64: every kept token's position in the long prompt.

        Args:
            device: where to put them.
            from_mask: count only unmasked tokens, as ``generate`` does; else columns, as a bare ``forward`` does.
        """
        long = (self.mask.long().cumsum(1) - 1).clamp(min=0)
        if not from_mask:
            long = torch.arange(self.length).expand_as(long)
        return self.shorten(long, 0).to(device)

    def text_positions(self) -> Tensor:
        """(B, S') int64: every token's position in the short prompt, padding not counted."""
        return ((self.index >= 0).long().cumsum(1) - 1).clamp(min=0)

    def expand(self) -> Tensor:
        """(B, S - long_start) int64: for every column of the long prompt, which of the short one speaks for it.

        A dropped token's is the nearest kept one before it: what the model had read by then.
        """
        short = torch.arange(self.short_length).expand_as(self.index)
        holds = torch.zeros(self.index.shape[0], self.length + 1, dtype=torch.int64)
        holds.scatter_reduce_(1, torch.where(self.index < 0, self.length, self.index), short, "amax")
        nearest = holds[:, :-1].cummax(dim=1).values
        return (nearest[:, self.long_start :] - self.start).clamp(min=0)


def make_plan(
    ids: Tensor,
    mask: Tensor,
    repeats: Tensor,
    cached: CachedPrompt | None = None,
) -> Plan:
    """Works out the short prompt.

    Args:
        ids: (B, S) int64 on the CPU, the long prompt.
        mask: (B, S) bool on the CPU.
        repeats: (B, S) int64 on the CPU: how often each token stands in the short prompt. Padding is dropped and put
            back on the side where it was (on the left when there was none, as ``generate`` needs it).
        cached: the part of the prompt that a cache holds already, which stays as it is.
    """
    if cached is None:
        index = _pack(repeats * mask, left=not bool((~mask[:, -1]).any()) or bool((~mask[:, 0]).any()))
        return Plan(index, ids, mask)
    start = cached.long_length
    fresh = _pack((repeats * mask)[:, start:], left=True)
    fresh = torch.where(fresh < 0, fresh, fresh + start)
    index = torch.cat([cached.index, fresh], dim=1)
    return Plan(index, ids, mask, cached.index.shape[1], start, cached.following)


def _pack(repeats: Tensor, left: bool) -> Tensor:
    columns = torch.arange(repeats.shape[1])
    rows = [torch.repeat_interleave(columns, row) for row in repeats]
    width = max(len(row) for row in rows)
    index = torch.full((len(rows), width), -1, dtype=torch.int64)
    for number, row in enumerate(rows):  # one step per prompt, not per token
        if left:
            index[number, width - len(row) :] = row
        else:
            index[number, : len(row)] = row
    return index


@dataclass(frozen=True)
class CachedPrompt:
    """The part of a prompt that a KV cache holds, as left behind on the cache by the call that filled it.

    Args:
        index: (B, c) int64: for each cached position its column in the long prompt, -1 for padding.
        ids: (B, S0) int64, the long prompt of the call that filled it.
        mask: (B, S0) bool, False where that prompt was padded.
        long_length: columns of the long prompt that the cache stands for.
        following: (B,) int64: the M-RoPE position of the token that follows; None without.
    """

    index: Tensor
    ids: Tensor
    mask: Tensor
    long_length: int
    following: Tensor | None = None

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
        new = torch.arange(self.long_length, self.long_length + grown).expand(self.index.shape[0], -1)
        following = None if self.following is None else self.following + grown
        return CachedPrompt(
            torch.cat([self.index, new], dim=1), self.ids, self.mask, self.long_length + grown, following
        )


_CACHE_ATTRIBUTE = "_foveate_prompt"


def remember(cache: Any, plan: Plan, following: Tensor | None = None) -> None:
    """Leaves on a cache which prompt it holds, so that a later turn can go on from the long ids."""
    if cache is not None and not isinstance(cache, tuple):
        setattr(cache, _CACHE_ATTRIBUTE, CachedPrompt(plan.index, plan.ids, plan.mask, plan.length, following))


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
