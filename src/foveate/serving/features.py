"""Encoded images that wait for their next question: a least-recently-used cache in memory of a fixed size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAGE = 1 << 16
"""Bytes per page. An image of LLaVA-NeXT-7B has some 360 of them."""
ALIGN = 16
"""Every tensor starts at a multiple of so many bytes, so that it can be viewed in its own dtype."""


@dataclass(frozen=True)
class _Part:
    start: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Entry:
    pages: Tensor
    numbers: Sequence[int]
    parts: Sequence[_Part]
    note: Any


class FeatureCache:
    """Keeps groups of tensors by key, in pages of one buffer that is allocated at once: no fragmentation, no growth.

    Args:
        capacity: bytes; rounded down to whole pages. 0: keeps nothing.
        device: where the tensors are and the buffer lies.
    """

    def __init__(self, capacity: int, device: torch.device | str) -> None:
        count = capacity // PAGE
        self.buffer = torch.empty(count, PAGE, dtype=torch.uint8, device=device)
        self._free = list(range(count))
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used(self) -> int:
        """Bytes of the pages in use."""
        return (len(self.buffer) - len(self._free)) * PAGE

    def clear(self) -> None:
        """Forgets everything."""
        while self._entries:
            self._drop()

    def put(self, key: Hashable, tensors: Sequence[Tensor | None], note: Any = None) -> bool:
        """Copies tensors into the cache, in place of those that were used longest ago.

        Args:
            key: what they are found by.
            tensors: of any shape and dtype, on the cache's device.
            note: what goes along with them.

        Returns:
            Whether they were taken: not when they are larger than the whole cache.
        """
        parts: list[_Part | None] = []
        size = 0
        for one in tensors:
            if one is None:
                parts.append(None)
                continue
            parts.append(_Part(size, one.numel() * one.element_size(), tuple(one.shape), one.dtype))
            size += -(-parts[-1].size // ALIGN) * ALIGN  # type: ignore[union-attr]
        needed = -(-size // PAGE)
        if needed > len(self.buffer) or not needed:
            return False
        old = self._entries.pop(key, None)
        if old is not None:
            self._free += old.numbers
        while len(self._free) < needed:
            self._drop()
        numbers = [self._free.pop() for _ in range(needed)]
        pages = torch.tensor(numbers, dtype=torch.int64, device="cpu").to(self.buffer.device, non_blocking=True)
        flat = self.buffer.new_empty(needed * PAGE)
        for one, part in zip(tensors, parts, strict=True):
            if one is not None and part is not None and part.size:
                flat[part.start : part.start + part.size] = one.detach().contiguous().view(-1).view(torch.uint8)
        self.buffer.index_copy_(0, pages, flat.view(needed, PAGE))
        self._entries[key] = _Entry(pages, numbers, parts, note)  # type: ignore[arg-type]
        return True

    def get(self, key: Hashable) -> tuple[list[Tensor | None], Any] | None:
        """Copies of what was put under a key and its note, now the last to go; None where nothing is."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        flat = self.buffer.index_select(0, entry.pages).view(-1)
        found: list[Tensor | None] = [
            None if part is None else flat[part.start : part.start + part.size].view(part.dtype).view(part.shape)
            for part in entry.parts
        ]
        return found, entry.note

    def _drop(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self._free += entry.numbers
