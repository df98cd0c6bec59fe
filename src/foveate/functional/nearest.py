"""Dropped tokens that live on in the kept one most like them: a pure function of one image's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.functional.common import directions, shape_of
from foveate.functional.merge import Merge

_BLOCK = 1 << 20  # cells of a table that is built piece by piece (4 MiB)


def merge_into_nearest(visual: Tensor, kept: Tensor, threshold: float = -1.0) -> Merge:
    """Weights that put every dropped token into its nearest kept one, which becomes the mean of itself and those.

    Nearest is by the cosine, in float32. It is what VisionZip (arXiv 2412.04467) and ToMe (arXiv 2210.09461) do with
    what they merge, here for any choice of tokens. How many tokens a kept one stands for is how many entries its row
    has that are not zero. O(K N D) time; no table of K or more rows and N columns is made whole.

    Args:
        visual: (N, D) tokens of one image.
        kept: (K,) int64 in [0, N), ascending, 1 <= K <= N. A token that stands there twice takes others up the first
            time only.
        threshold: a dropped token joins only where its cosine is at least this, in [-1, 1]. Default -1: all join.

    Returns:
        weights (K, N), ``1 / n`` for each of n. Ties go to the earlier kept token.

    Raises:
        TypeError: ``visual`` is not floating, ``kept`` not int64.
        ValueError: shapes that do not fit, no token, ``threshold`` outside [-1, 1]; on CPU tensors also NaN, infinity,
            or places that do not ascend within [0, N).
    """
    if not -1.0 <= threshold <= 1.0:  # NaN fails too
        raise ValueError(f"threshold must be in [-1, 1], got {threshold!r}")
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        _require_places(kept, tokens)
        aims = unit.index_select(0, kept).T
        blocks = torch.split(unit, max(1, _BLOCK // len(kept)))
        # The clamp: rounding must not take a cosine below what lets every token join.
        likest = [(block @ aims).clamp_(-1.0, 1.0).max(dim=-1) for block in blocks]
    likeness = torch.cat([most.values for most in likest])
    row = torch.cat([most.indices for most in likest])
    none = torch.full_like(row, len(kept))
    row = torch.where(likeness >= threshold, row, none).index_fill(0, kept, len(kept))
    # Kept tokens come first, each in a row of its own, even where it equals another.
    here = torch.arange(tokens, device=row.device)
    own = torch.arange(len(kept), device=row.device)
    return Merge.means(torch.cat([own, row]), torch.cat([kept, here]), (len(kept), tokens))


def _require_places(kept: Tensor, tokens: int) -> None:
    if kept.dtype != torch.int64:
        raise TypeError(f"kept must be int64, got {kept.dtype}")
    if kept.ndim != 1 or not 1 <= len(kept) <= tokens:
        raise ValueError(f"kept must be (K,) with 1 <= K <= {tokens}, got {shape_of(kept)}")
    if kept.device.type == "cpu":
        ascending = not bool((kept.diff() < 0).any())
        if not ascending or int(kept[0]) < 0 or int(kept[-1]) >= tokens:
            raise ValueError(f"kept must ascend within [0, {tokens})")
