"""Which views have the same pixels: a tower that sees each view by itself gives the same of them."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a number, by bytes."""


def alike_views(*given: Tensor) -> tuple[int, ...]:
    """Of every view, the first that is the same in all that is given of them. Exact. Reads the device once, and once
    more for each view that seems to be another's twin.

    Args:
        given: (views, ...) each, such as pixels and masks. Where gradients of one are asked for, no views are alike:
            each has its own. A view with NaN is like none.
    """
    total = len(given[0])
    if total < 2 or any(one.requires_grad for one in given):
        return tuple(range(total))
    # Sums of bits, which have no rounding: they do not depend on the order in which a device adds.
    sums = [one.view(BITS[one.element_size()]).flatten(1).sum(dim=1, dtype=torch.int64) for one in given]
    firsts: dict[tuple[int, ...], list[int]] = {}
    found: list[int] = []
    for view, marks in enumerate(torch.stack([one.to(sums[0].device) for one in sums], dim=1).tolist()):
        others = firsts.setdefault(tuple(marks), [])
        first = next((one for one in others if all(torch.equal(some[one], some[view]) for some in given)), view)
        if first == view:
            others.append(view)
        found.append(first)
    return tuple(found)
