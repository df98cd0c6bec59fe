"""How kept features reach the model: what the running thread delivers, and the hook that hands it out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


@dataclass(frozen=True)
class Delivery:
    """The kept features of a call on their way into the model.

    Args:
        rows: for every row of the batch, the (m, D) features of its images, in order.
        images: how many images there are.
        fill_mask: whether a forward without cache and mask needs an explicit mask (original positions look like
            packed sequences to the mask code).
    """

    rows: Sequence[Sequence[Tensor]]
    images: int
    fill_mask: bool


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


def deliver(features: Callable[..., Any]) -> Callable[..., Any]:
    """``get_image_features`` that hands out the kept features inside a pruned call, and is itself outside."""

    @functools.wraps(features)
    def delivered(*args: Any, **kwargs: Any) -> Any:
        delivery = _delivery.get()
        if delivery is None or delivery.images == 0:
            return features(*args, **kwargs)
        pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        # Before 5.19, generate() repeats pixel_values for beams and encodes afterwards; since then it repeats the
        # features. A fresh list each time: beam search changes it in place.
        times = len(pixels) // delivery.images
        flat = [image for row in delivery.rows for _ in range(times) for image in row]
        return BaseModelOutputWithPooling(pooler_output=flat)  # type: ignore[arg-type]  # a list, as stock gives it

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
