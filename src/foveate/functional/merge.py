"""Kept tokens that are put together from several: a sparse (K, N) matrix, and its product with features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK = 1 << 22  # values of features that are upcast at a time (16 MiB)


@dataclass(frozen=True, eq=False, repr=False)
class Merge:
    """K tokens put together from N, by the entries of the (K, N) matrix that are not zero.

    ``merge @ features`` are the K tokens; ``second @ first`` puts together what has been put together before;
    ``merge[indices]`` are some of the K. All of them cost as much as there are entries, and none waits for the device.

    Args:
        starts: (K,) int64, where the entries of every row begin: ascending from 0, equal to the next for an empty row.
        tokens: (E,) int64 in [0, N): the token of every entry, row after row.
        weights: (E,) float32: how much of it.
        total: N.
        earlier: what the N were put together from, when they were; then the matrix is the product of both.

    Raises:
        TypeError: other dtypes.
        ValueError: shapes that do not fit; on the CPU also entries outside of the matrix.
    """

    starts: Tensor
    tokens: Tensor
    weights: Tensor
    total: int
    earlier: Merge | None = None

    def __post_init__(self) -> None:
        for name, tensor, dtype in (
            ("starts", self.starts, torch.int64),
            ("tokens", self.tokens, torch.int64),
            ("weights", self.weights, torch.float32),
        ):
            if tensor.dtype != dtype:
                raise TypeError(f"{name} of a merge must be {dtype}, got {tensor.dtype}")
            if tensor.ndim != 1:
                raise ValueError(f"{name} of a merge must have one dimension, got {tuple(tensor.shape)}")
        if len(self.starts) == 0 or len(self.tokens) != len(self.weights):
            raise ValueError(
                f"a merge needs a row, and a weight for every token, got {len(self.starts)} rows, {len(self.tokens)} "
                f"tokens and {len(self.weights)} weights"
            )
        if self.earlier is not None and len(self.earlier) != self.total:
            raise ValueError(f"a merge of {self.total} tokens does not fit one that makes {len(self.earlier)}")
        if self.tokens.device.type == "cpu" and len(self.tokens):
            low, high = self.tokens.aminmax()
            if low < 0 or high >= self.total:
                raise ValueError(f"tokens of a merge must be in [0, {self.total}), got {int(low)} to {int(high)}")
        if self.starts.device.type == "cpu":
            ascending = not bool((self.starts.diff() < 0).any())
            if int(self.starts[0]) != 0 or int(self.starts[-1]) > len(self.tokens) or not ascending:
                raise ValueError(f"starts of a merge must ascend from 0 to at most {len(self.tokens)}")

    @classmethod
    def picking(cls, indices: Tensor, total: int) -> Merge:
        """K of N tokens as they are.

        Args:
            indices: (K,) int64 in [0, N), repeated ones too.
            total: N.
        """
        here = torch.arange(len(indices), device=indices.device)
        return cls(here, indices, torch.ones(len(indices), device=indices.device), total)

    @classmethod
    def of_entries(cls, rows: Tensor, tokens: Tensor, weights: Tensor, shape: tuple[int, int]) -> Merge:
        """From entries in any order; those of a row stay in theirs. O(E log E).

        Args:
            rows: (E,) int64 in [0, K].
            tokens: (E,) int64 in [0, N).
            weights: (E,) float32.
            shape: (K, N).
        """
        ordered, order = rows.sort(stable=True)
        starts = torch.searchsorted(ordered, torch.arange(shape[0], device=rows.device))
        return cls(starts, tokens.index_select(0, order), weights.index_select(0, order), shape[1])

    @classmethod
    def means(cls, rows: Tensor, tokens: Tensor, shape: tuple[int, int]) -> Merge:
        """Every kept token the mean of its members: ``1 / n`` of each of n. O(E log E).

        Args:
            rows: (E,) int64 in [0, K]: which kept token each is a member of; K: of none.
            tokens: (E,) int64 in [0, N), distinct.
            shape: (K, N).
        """
        kept = shape[0]
        count = rows.new_zeros(kept + 1).scatter_add(0, rows, torch.ones_like(rows))
        weights = 1 / count.index_select(0, rows).float()
        # How many belong to none only the device knows; they stay, as nothing of the last row.
        weights = torch.where(rows < kept, weights, 0.0)
        return cls.of_entries(rows.clamp(max=kept - 1), tokens, weights, shape)

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        return f"Merge({len(self)} from {self.shape[1]} tokens)"

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return len(self.starts), self.total if self.earlier is None else self.earlier.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """float32."""
        return self.weights.dtype

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self.weights.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Merge:
        """The same on another device."""
        starts, tokens, weights = (
            part.to(device, non_blocking=non_blocking) for part in (self.starts, self.tokens, self.weights)
        )
        earlier = None if self.earlier is None else self.earlier.to(device, non_blocking)
        return Merge(starts, tokens, weights, self.total, earlier)

    def dense(self) -> Tensor:
        """(K, N) float32, whole: for people and tests, as it may be large."""
        entries = torch.arange(len(self.tokens), device=self.device)
        rows = torch.searchsorted(self.starts, entries, right=True) - 1
        own = torch.zeros(len(self), self.total, device=self.device)
        own = own.index_put((rows, self.tokens), self.weights, accumulate=True)
        return own if self.earlier is None else merged(own, self.earlier)

    @overload
    def __matmul__(self, other: Merge) -> Merge: ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    def __matmul__(self, other: Merge | Tensor) -> Merge | Tensor:
        return merged(self, other)

    def __rmatmul__(self, other: Tensor) -> Tensor:
        return merged(other, self)

    def __getitem__(self, indices: Tensor) -> Merge:
        return Merge.picking(indices, len(self)) @ self

    def _of(self, rows: Tensor) -> Tensor:
        """The product with (N, d) float32 or float64 on the device, one row's entries after the other.

        No sum depends on the order in which an accelerator gets to it, and (E, d) is never made.
        """
        if self.earlier is not None:
            rows = self.earlier._of(rows)
        weights = self.weights.to(rows.dtype)
        return torch.nn.functional.embedding_bag(self.tokens, rows, self.starts, mode="sum", per_sample_weights=weights)


Weights = Merge | Tensor
"""How much of each of N tokens makes up each of K: a ``Merge``, or a (K, N) float32 tensor."""


@overload
def merged(weights: Merge, of: Merge) -> Merge: ...
@overload
def merged(weights: Weights, of: Tensor) -> Tensor: ...
@overload
def merged(weights: Tensor, of: Weights) -> Tensor: ...
def merged(weights: Weights, of: Weights) -> Weights:
    """The product: kept tokens from features, or from others that were put together before.

    In float32 (float64 for float64 features), autocast or not; a gradient flows to the features. Features of half
    precision are upcast some columns at a time.

    Args:
        weights: (K, N).
        of: (N, ...) features, rows to be weighed; or the (N, M) weights of an earlier merge.

    Returns:
        (K, ...) of the dtype and on the device of the features; of two merges a (K, M) ``Merge``, and a (K, M) tensor
        when either is one.

    Raises:
        ValueError: shapes that do not fit.
    """
    if of.shape[:1] != weights.shape[1:]:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit {tuple(of.shape)}: one row each is needed")
    if isinstance(of, Merge):
        if isinstance(weights, Merge):
            return replace(weights, earlier=of if weights.earlier is None else merged(weights.earlier, of))
        of = of.dense()
    dtype = torch.promote_types(of.dtype, torch.float32)
    flat = of.flatten(1) if of.ndim > 1 else of.unsqueeze(1)
    with torch.autocast(of.device.type, enabled=False):
        if isinstance(weights, Merge):
            there = weights.to(of.device)
            width = flat.shape[1] if of.dtype == dtype else max(1, _BLOCK // len(of))
            parts = [there._of(some.to(dtype)).to(of.dtype) for some in torch.split(flat, max(1, width), dim=1)]
            made = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        else:
            made = (weights.to(of.device, dtype) @ flat.to(dtype)).to(of.dtype)
    return made.view(len(weights), *of.shape[1:])


def spread(weights: Weights, places: Tensor, total: int) -> Weights:
    """The same weights where the N tokens are some of more: those that they are not weigh nothing.

    Args:
        weights: (K, N).
        places: (N,) int64 in [0, total), distinct: which of them the N are.
        total: how many there are, M.

    Returns:
        (K, M).
    """
    if not isinstance(weights, Merge):
        wide = weights.new_zeros(len(weights), total)
        return wide.index_copy(1, places.to(weights.device), weights)
    if weights.earlier is not None:
        earlier = spread(weights.earlier, places, total)
        assert isinstance(earlier, Merge)
        return replace(weights, earlier=earlier)
    return replace(weights, tokens=places.to(weights.device)[weights.tokens], total=total)


def sizes(weights: Weights) -> Tensor:
    """(K,) float32: how many of the N tokens each of K is put together from: those whose weight is not zero. O(E).

    Of what was put together twice, the sizes of the parts add up, as if no token went into two of them.

    Args:
        weights: (K, N).
    """
    if not isinstance(weights, Merge):
        return (weights != 0).sum(dim=1).float()
    there = (weights.weights != 0).float()
    if weights.earlier is not None:
        there = there * sizes(weights.earlier)[weights.tokens]
    ends = pad(there.double().cumsum(0), (1, 0))
    after = pad(weights.starts[1:], (0, 1), value=len(there))
    return (ends[after] - ends[weights.starts]).float()
