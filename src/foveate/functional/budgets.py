"""How many tokens an image needs, by what is known of it before the LLM: pure functions of one image's scores.

They return 0-d tensors where the scores lie: how many that is, is only known to who waits for them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import accumulator, require_not_negative, require_scores


def least_reaching(covered: Tensor, share: float) -> Tensor:
    """How many of a ranking's first tokens reach a share of what can be reached. O(K).

    Args:
        covered: (K,) ascending, in [0, 1]: what the first k reach, over what all tokens do; such as the second result
            of :func:`foveate.functional.cosine_cover`.
        share: in (0, 1].

    Returns:
        0-d int64 in [1, K]: the smallest k with ``covered[k - 1] >= share``; K where none has.

    Raises:
        TypeError: not floating.
        ValueError: no value, ``share`` outside (0, 1]; on CPU tensors also NaN or infinity.
    """
    require_share(share)
    require_scores(covered=covered)
    if covered.ndim != 1:
        raise ValueError(f"covered must be (K,), got {tuple(covered.shape)}")
    return ((covered < share).sum() + 1).clamp(max=len(covered))


def effective_tokens(score: Tensor) -> Tensor:
    """The number of tokens that a score speaks of: exp of the entropy of ``score / sum(score)``. O(N).

    N equal scores speak of N tokens, a single one of 1.

    Args:
        score: (N,) >= 0.

    Returns:
        0-d floating in [1, N]; N where the sum is 0.

    Raises:
        TypeError: not floating.
        ValueError: no token; on CPU tensors also NaN, infinity or a negative score.
    """
    require_scores(score=score)
    if score.ndim != 1:
        raise ValueError(f"score must be (N,), got {tuple(score.shape)}")
    require_not_negative("it has no share then", score=score)
    values = score.to(accumulator(score.device)).clamp(min=0)
    total = values.sum()
    values = torch.where(total > 0, values / torch.where(total > 0, total, 1.0), 1 / len(values))
    entropy: Tensor = torch.special.entr(values).sum()
    return entropy.exp().clamp(1.0, float(len(values)))


def require_share(share: float) -> None:
    """Raises unless a share is a number in (0, 1]."""
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"share must be a number in (0, 1], got {share!r} ({type(share).__name__})")
    if not (math.isfinite(share) and 0 < share <= 1):
        raise ValueError(f"share must be in (0, 1], got {share!r}")
