"""The few types that travel: what there is (``VisualTokens``, ``TextTokens``) and what stays (``Selection``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveate.functional import Weights, merged
from foveate.functional.merge import spread
from foveate.geometry import Geometry as Geometry
from foveate.geometry import on_device as on_device
from foveate.keep import Keep as Keep


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The patch tokens of one image as its LLM would receive them; newlines and other structure left out.

    Args:
        features: (N, D) projected tokens, in the LLM's input space and in prompt order.
        geometry: where each of them lies.
        saliency: (N,) float32 >= 0, or None when the method does not read it.
        full_grid: True when every view's whole grid is there, views one after the other (no unpadding): what the
            released code assumes.
        keys: (N, d) attention keys of the encoder layer where saliency is read, averaged over its heads and over the
            patches merged into a token; None when the method does not read them.
        encoded: (N, d) what the vision encoder hands to the projector, averaged over the patches merged into a token;
            None when the method does not read it.
        compared: (N, d) what tokens are compared with one another by; None: their features. Set by ``Centered``.
        weight: (N,) float32 >= 0, how much each counts in that comparison; None: all alike. Set by ``Centered``.
        total: how many tokens the whole picture has, where only some of its views were encoded and these are fewer:
            budgets are of all of them. None: these are all.
    """

    features: Tensor
    geometry: Geometry
    saliency: Tensor | None = None
    full_grid: bool = False
    keys: Tensor | None = None
    encoded: Tensor | None = None
    compared: Tensor | None = None
    weight: Tensor | None = None
    total: int | None = None

    def __len__(self) -> int:
        return self.features.shape[0]

    def budget(self, keep: Keep) -> int:
        """K: how many of these tokens a budget leaves of their picture."""
        return min(keep.budget(len(self) if self.total is None else self.total), len(self))

    @property
    def likened(self) -> Tensor:
        """(N, d): what tokens are compared with one another by."""
        return self.features if self.compared is None else self.compared

    def some(self, places: Tensor, views: Sequence[int] | None = None) -> VisualTokens:
        """Some of them, for a method that is to choose among these alone. Budgets stay of all of them.

        Args:
            places: (M,) int64, which, ascending.
            views: the views that they belong to, ascending; None: read from the device.
        """
        if views is None:
            views = sorted(set(self.geometry.view.index_select(0, places).tolist()))

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.index_select(0, places)

        return VisualTokens(
            self.features.index_select(0, places),
            self.geometry.some(places, views),
            of(self.saliency),
            keys=of(self.keys),
            encoded=of(self.encoded),
            compared=of(self.compared),
            weight=of(self.weight),
            total=len(self) if self.total is None else self.total,
        )


@dataclass(frozen=True, eq=False)
class TextTokens:
    """The text that may guide the selection for one image, as the method's ``text_span`` has it.

    Args:
        embeddings: (T, D) the LLM's input embeddings.
        turn: (T,) bool on the CPU, True for tokens that ``text_span="turn"`` counts.
        special: (T,) bool on the CPU, True for special tokens (BOS, EOS, padding).
    """

    embeddings: Tensor
    turn: Tensor
    special: Tensor

    def __len__(self) -> int:
        return self.embeddings.shape[0]


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """What stays of one image, and why.

    Args:
        indices: (K,) int64, kept patch tokens, ascending; with the released variant a token may stand twice.
        geometry: where all N patch tokens lie.
        scores: by name (``"saliency"``, ``"text_to_image"``, ...), (N,) float32 each, as far as the method read them;
            NaN where a token was not encoded.
        shares: by name, how many of the K each side brought, as 0-d int64 tensors (``int(...)`` reads them; they
            stay on the device until somebody does).
        weights: (K, N), how much of each patch token makes up each kept one, which takes the place (position, box) of
            its index: a ``foveate.functional.Merge`` (``weights.dense()`` is the matrix), or a float32 tensor when the
            method made one. None: the kept tokens go as they are.
        encoded: (N,) bool, which patch tokens the vision tower encoded, where ``crops`` left some out; None: all.

    Raises:
        ValueError: ``weights`` of another shape.
        TypeError: ``weights`` of another dtype.
    """

    indices: Tensor
    geometry: Geometry
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Weights | None = None
    encoded: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if self.weights.shape != (len(self), self.total):
            raise ValueError(
                f"weights must be (kept, patch) tokens, ({len(self)}, {self.total}), got {tuple(self.weights.shape)}"
            )
        if self.weights.dtype != torch.float32:
            raise TypeError(f"weights must be float32, got {self.weights.dtype}")

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __repr__(self) -> str:
        return f"Selection({len(self)} of {self.total} tokens)"

    @property
    def total(self) -> int:
        """N, the patch tokens there were."""
        return len(self.geometry)

    @property
    def ratio(self) -> float:
        """K / N."""
        return len(self) / self.total

    @property
    def view(self) -> Tensor:
        """(K,) int64: each kept token's view."""
        return self.geometry.view[self.indices]

    @property
    def row(self) -> Tensor:
        """(K,) int64: its row in that view's grid."""
        return self.geometry.row[self.indices]

    @property
    def column(self) -> Tensor:
        """(K,) int64: its column in that view's grid."""
        return self.geometry.column[self.indices]

    @property
    def boxes(self) -> Tensor:
        """(K, 4) float32: its (x0, y0, x1, y1) in pixels of ``geometry.image_size``."""
        return self.geometry.boxes[self.indices]

    def boxes_in(self, height: int, width: int) -> Tensor:
        """(K, 4) float32: its (x0, y0, x1, y1) in pixels of the original ``height`` x ``width`` image."""
        return self.geometry.boxes_in(height, width)[self.indices]

    def gather(self, features: Tensor) -> Tensor:
        """(N, D) to (K, D): what stands in the kept places; merged in float32 where the method merges, autocast or not.

        Args:
            features: the image's N patch tokens, or anything else with a row for each. Gradients flow to them.
        """
        if self.weights is None:
            return features[self.indices.to(features.device)]
        return merged(self.weights, features)

    @property
    def encoded_views(self) -> tuple[int, ...]:
        """Which views were encoded: the base view, 0, and with ``crops`` those of the crops that were chosen.

        Reads them from the device.
        """
        if self.encoded is None:
            return tuple(range(len(self.geometry.grids)))
        return tuple(sorted(set(self.geometry.view[self.encoded].tolist())))

    def placed(self, places: Tensor, geometry: Geometry) -> Selection:
        """The same choice among more tokens, of which only these were encoded.

        Args:
            places: (N,) int64, which of the (M,) tokens of ``geometry`` the N are, ascending.
            geometry: where all M lie.
        """
        here = places.to(self.indices.device)
        encoded = torch.zeros(len(geometry), dtype=torch.bool, device=here.device).index_fill(0, here, True)
        scores = {
            name: score.new_full((len(geometry),), math.nan).index_copy(0, here.to(score.device), score)
            for name, score in self.scores.items()
        }
        weights = None if self.weights is None else spread(self.weights, places, len(geometry))
        return Selection(here[self.indices], geometry, scores, self.shares, weights, encoded)

    def mask(self) -> Tensor:
        """(N,) bool: True where a token stays."""
        kept = torch.zeros(self.total, dtype=torch.bool, device=self.indices.device)
        kept[self.indices] = True
        return kept
