"""How kept features reach the model: what the running thread delivers, and the hook that hands it out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from foveate.models.base import Family, Kept, Kind


@dataclass(frozen=True)
class Delivery:
    """The kept features of a call on their way into the model.

    Args:
        family: the model's adapter.
        rows: by kind, for every row of the batch what was kept of its images or videos, in order. A kind that is
            missing is not delivered: the model's own function answers for it.
        copies: by kind, the length along which generate may repeat their pixels; see ``Family.copies``.
        fill_mask: whether a forward without cache and mask needs an explicit mask (original positions look like
            packed sequences to the mask code).
    """

    family: Family
    rows: Mapping[Kind, Sequence[Sequence[Kept]]]
    copies: Mapping[Kind, int]
    fill_mask: bool = False


# What the running thread's innermost pruned call delivers; None outside of one. Set also marks "inside": everything the
# model's own generate does from there on (its forwards, an assistant's generate) passes through untouched.
_delivery: ContextVar[Delivery | None] = ContextVar("foveate_delivery", default=None)


def is_inside() -> bool:
    """Whether the running thread is inside a pruned call."""
    return _delivery.get() is not None


@contextmanager
def delivering(delivery: Delivery) -> Iterator[None]:
    token = _delivery.set(delivery)
    try:
        yield
    finally:
        _delivery.reset(token)


def _joined(row: Sequence[Kept]) -> Kept:
    features = torch.cat([one.features for one in row])
    planes = tuple(torch.cat(level) for level in zip(*(one.planes for one in row), strict=True))
    return Kept(features, planes, torch.cat([one.repeats for one in row]))


def deliver(features: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    """``get_image_features`` that hands out the kept features inside a pruned call, and is itself outside."""
    signature = inspect.signature(features)

    @functools.wraps(features)
    def delivered(*args: Any, **kwargs: Any) -> Any:
        delivery = _delivery.get()
        if delivery is None or kind not in delivery.rows:
            return features(*args, **kwargs)
        # Before 5.19, generate() repeats the pixels for beams and encodes afterwards; since then it repeats the
        # features. A fresh package each time: beam search changes it in place.
        times = delivery.family.copies(signature.bind(*args, **kwargs).arguments, kind) // delivery.copies[kind]
        rows = [row for row in delivery.rows[kind] for _ in range(times)]
        if delivery.family.joins_rows:
            rows = [[_joined(row)] for row in rows if row]
        flat = [one for row in rows for one in row]
        return delivery.family.package(flat, kind)

    return delivered


def fill_mask(arguments: dict[str, Any]) -> dict[str, Any]:
    """Gives a forward inside a pruned generate the mask that generate dropped, where its absence would be misread."""
    delivery = _delivery.get()
    if (
        delivery is not None
        and delivery.fill_mask
        and arguments.get("attention_mask") is None
        and arguments.get("past_key_values") is None
        and arguments.get("input_ids") is not None
    ):
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
    return arguments
