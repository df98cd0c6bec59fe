"""What an image's tokens share, taken out of how they are compared: pure functions of one image's tokens.

Source: Cen-Prune, "Centering before Pruning" (arXiv 2608.30263). Tokens of one image point much the same way, so that
their raw cosines hardly tell them apart; how far a token is from what they share is kept as its weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.functional.common import accumulator, directions, require_known, require_vectors

SCALES = ("min-max", "sigmoid")
"""How distinctiveness becomes a weight."""

_ROUNDING = 1e-6
"""Part of a value that float32 cannot tell from none once values of its size were subtracted from one another."""


def centered(visual: Tensor, standardized: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens without their mean, and the tokens that distinctiveness is read from (equations 3, 9 and 10).

    O(N D) time and memory.

    Args:
        visual: (N, D) tokens of one image.
        standardized: True divides every dimension by its standard deviation over the tokens first, for features whose
            variance lies in few dimensions. A dimension that does not vary is left out (the paper adds an epsilon,
            whose size it does not say). Default False.

    Returns:
        ``x_i - mean(x)``, zero for a token that equals the mean up to float32's rounding; and ``x_i``: both (N, D)
        float32, divided by the standard deviations where asked for.

    Raises:
        TypeError: ``visual`` is not floating.
        ValueError: another shape, no token; on CPU tensors also NaN or infinity.
    """
    require_vectors(visual=visual)
    with torch.autocast(visual.device.type, enabled=False):
        raw = visual.float()
        mean = raw.mean(dim=0, dtype=accumulator(raw.device)).float()
        rest = raw - mean
        if standardized:
            spread = rest.square().mean(dim=0).sqrt()
            varies = spread > _ROUNDING * mean.abs()
            scale = torch.where(varies, 1 / torch.where(varies, spread, 1.0), 0.0)
            raw, rest, mean = raw * scale, rest * scale, mean * scale
        least = _ROUNDING * mean.norm()
        return rest.masked_fill_((rest.norm(dim=-1) <= least).unsqueeze(-1), 0.0), raw


def distinctiveness(visual: Tensor, scale: str = "min-max") -> Tensor:
    """How unlike the image's other tokens each one is: ``g_i = - mean over j != i of cos(x_i, x_j)`` (equation 5).

    O(N D): the mean is the cosine to the sum of all directions, less the token's own part.

    Args:
        visual: (N, D) tokens of one image, as they are: not centered.
        scale: ``"min-max"`` to [0, 1] over the image, 1 where all are alike (equation 11); or ``"sigmoid"`` of the
            z-score over the image, 0.5 where all are alike (equation 12). Default ``"min-max"``.

    Returns:
        (N,) float32 in [0, 1].

    Raises:
        TypeError: ``visual`` is not floating.
        ValueError: another shape, no token, another ``scale``; on CPU tensors also NaN or infinity.
    """
    require_known(SCALES, scale=scale)
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        real = accumulator(unit.device)
        own = unit.square().sum(dim=-1, dtype=real)  # 1, or 0 for a token without a direction
        toward = (unit @ unit.sum(dim=0, dtype=real).float()).to(real)
        score = -(toward - own) / max(1, len(unit) - 1)
        low, high = score.aminmax()
        # Rounding must rank nothing; what is not finite fails the comparison and stays to be seen.
        alike = high - low <= _ROUNDING
        if scale == "min-max":
            found = torch.where(alike, 1.0, (score - low) / torch.where(alike, 1.0, high - low))
        else:
            rest = score - score.mean()
            found = torch.sigmoid(torch.where(alike, 0.0, rest / torch.where(alike, 1.0, rest.square().mean().sqrt())))
        return found.float()
