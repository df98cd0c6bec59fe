"""Which crops of a picture are worth encoding, by what its base view says: pure functions, without loops over tokens.

AdaFV's idea (arXiv 2501.09532) one level up: not which tokens reach the language model, but which crops reach the
vision tower. Ours; what it holds and what it loses is measured in docs/results.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import require_length, require_not_negative, shape_of

LEAST = 1e-12
"""Below this, a mass is none."""


def mass_in_boxes(scores: Tensor, boxes: Tensor, regions: Tensor) -> Tensor:
    """How much of some tokens' scores lies in each region of the picture, as shares of what lies in any. O(N C).

    A token's score is spread evenly over its box; what of it a region covers counts for that region.

    Args:
        scores: (N,) >= 0, such as saliency, of the tokens of one view.
        boxes: (N, 4) float, the (x0, y0, x1, y1) that each token sees, in pixels.
        regions: (C, 4) float, likewise; regions do not overlap.

    Returns:
        (C,) float32, summing to 1; where no score lies in any region, every region has the same.

    Raises:
        TypeError: scores that are not floating.
        ValueError: shapes that do not fit, no token, no region; on CPU tensors also NaN, infinity or a negative score.
    """
    if boxes.ndim != 2 or regions.ndim != 2 or boxes.shape[1] != 4 or regions.shape[1] != 4 or not len(regions):
        raise ValueError(f"boxes (N, 4) and regions (C, 4) are needed, got {shape_of(boxes)} and {shape_of(regions)}")
    require_length(len(boxes), scores=scores)
    require_not_negative("they are shared out among crops", scores=scores)
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)  # (N, C) pixels
    own = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=-1).clamp(min=LEAST)
    with torch.autocast(scores.device.type, enabled=False):
        mass = (scores.float() / own.float()) @ shared.float()
    whole = mass.sum()
    return torch.where(whole > LEAST, mass / whole.clamp(min=LEAST), torch.full_like(mass, 1 / len(mass)))


def mixed_masses(saliency: Tensor, relevance: Tensor) -> Tensor:
    """The masses of crops by saliency and by the text, mixed anew for every picture and question. O(C).

    Each side weighs as much as it distinguishes between crops: by its distance (Kullback-Leibler) from saying nothing,
    the same for every crop. A question that points nowhere leaves the choice to saliency, and the other way round;
    where neither says anything, they weigh alike.

    Args:
        saliency: (C,) shares that sum to 1, as ``mass_in_boxes`` gives them.
        relevance: (C,) likewise, of what the text points at.

    Returns:
        (C,) float32, summing to 1.

    Raises:
        TypeError, ValueError: as for ``mass_in_boxes``; shapes that differ.
    """
    require_length(len(saliency), saliency=saliency, relevance=relevance)
    both = torch.stack([saliency.float(), relevance.float()])
    told = (torch.xlogy(both, both).sum(dim=1) + math.log(len(saliency))).clamp(min=0)
    whole = told.sum()
    weights = torch.where(whole > LEAST, told / whole.clamp(min=LEAST), torch.full_like(told, 0.5))
    return weights @ both


def crops_holding(masses: Tensor, share: float) -> Tensor:
    """How many of the heaviest crops hold a share of the whole mass together, at least one. O(C log C).

    Args:
        masses: (C,) shares that sum to 1.
        share: in (0, 1].

    Returns:
        int64 without dimensions.
    """
    held = masses.sort(descending=True).values.cumsum(0)
    # All of them hold all of it, whatever rounding says.
    return (held < share - 1e-6).sum().clamp(max=len(masses) - 1) + 1
