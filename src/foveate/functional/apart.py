"""Salient tokens that keep their distance, by how much there is in the image: pure functions of one image's tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    descending,
    directions,
    everything,
    ranks,
    require_budget,
    require_length,
    require_vectors,
    require_weights,
)
from foveate.functional.steps import may_look, repeat, rows_of


def effective_rank(visual: Tensor) -> Tensor:
    """In how many directions the tokens lie: ``exp(- sum q log q)``, q the singular values divided by their sum.

    From the eigenvalues of the smaller of ``X X^T`` and ``X^T X``, in float64, as half of the digits are lost in their
    roots: O(N D min(N, D)). Waits for an accelerator, since torch looks whether the factorisation has worked.

    Args:
        visual: (N, D) tokens X of one image, at their lengths.

    Returns:
        0-d float32 in [1, min(N, D)]; 1 when all are zero.

    Raises:
        TypeError: ``visual`` is not floating.
        ValueError: a shape that does not fit, no token; on CPU tensors also NaN or infinity. On an accelerator the
            result is NaN then.
    """
    require_vectors(visual=visual)
    with torch.autocast(visual.device.type, enabled=False):
        rows = visual.to(accumulator(visual.device))
        rows = rows if len(rows) <= rows.shape[1] else rows.T
        gram = rows @ rows.T
        finite = torch.isfinite(gram).all()
        values = torch.linalg.eigvalsh(torch.where(finite, gram, 0.0)).clamp(min=0).sqrt()
    total = values.sum()
    part = values / torch.where(total > 0, total, 1.0)
    return torch.where(finite, torch.exp(-torch.xlogy(part, part).sum()), math.nan).float()


def salient_and_apart(
    visual: Tensor, saliency: Tensor, budget: int, step: float | Tensor = 0.01, limit: float = 2.0
) -> tuple[Tensor, Tensor]:
    """The most salient tokens, each of which removes what is too like it: AgilePruner (arXiv 2603.01236).

    The token of rank ``i`` by saliency, counted from 1, has the threshold ``min(step * i, limit)``. The first is kept,
    and of the others go those whose distance ``1 - cos`` to it is below its threshold; then the next one that is left,
    and so on until K are kept. Where fewer than K are left in the end, the most salient of those that went fill up.
    O(K N D) time, O(N D) memory; on an accelerator with N <= 8192 O(N^2 D) and O(N^2).

    Args:
        visual: (N, D) tokens of one image.
        saliency: (N,).
        budget: K >= 1; with N <= K everything is kept.
        step: by how much the threshold grows from rank to rank, >= 0; a float, or 0-d. Default 0.01.
        limit: the threshold grows no larger, in [0, 2]. Default 2: as far as two tokens can be apart.

    Returns:
        kept (min(K, N)) int64, ascending, distinct; and the threshold of every token, (N,) float32. Ties go to the
        earlier token.

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, no token, ``budget`` < 1, options outside of their ranges; on CPU tensors
            also NaN or infinity.
    """
    budget = require_budget(budget)
    if not 0.0 <= limit <= 2.0:  # NaN fails too
        raise ValueError(f"limit must be in [0, 2], got {limit!r}")
    if not isinstance(step, Tensor) or step.device.type == "cpu":
        require_weights(step=float(step))
    with torch.autocast(visual.device.type, enabled=False):
        unit = directions(visual)
        tokens = len(unit)
        require_length(tokens, saliency=saliency)
        order = descending(saliency)[1]
        here = torch.arange(tokens, device=unit.device)
        growing = ((here + 1) * step).clamp(max=limit).float()  # by rank
        threshold = growing.index_select(0, ranks(order))
        if tokens <= budget:
            return everything(saliency), threshold
        # From here on a token is its rank.
        unit = unit.index_select(0, order)
        left = torch.ones(tokens, dtype=torch.uint8, device=unit.device)
        chosen = torch.zeros(budget, dtype=torch.int64, device=unit.device)

        def stays(some: Tensor, likeness: Tensor) -> Tensor:
            """uint8: 1 where a token is far enough from each of some that are chosen, and none of them itself."""
            far = likeness.neg_().add_(1) >= growing.index_select(0, some).unsqueeze(-1)
            return far.to(torch.uint8).scatter_(1, some.unsqueeze(-1), 0)

        stays_beside = rows_of(unit, stays)

        def choose(token: Tensor) -> bool:
            if may_look(left) and not bool(left.any()):
                return True
            # The first that is left; when none is, the first of all, which is chosen already.
            torch.argmax(left, dim=0, keepdim=True, out=token)
            left.bitwise_and_(stays_beside(token))
            return False

        done = repeat(choose, budget, chosen)
    filled = torch.ones_like(left).index_fill_(0, chosen[:done], 0).sort(stable=True).indices[:budget]
    return order.index_select(0, filled).sort().values, threshold
