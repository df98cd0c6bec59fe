"""How kept features reach the model: what the running thread delivers, and the hook that hands it out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from foveate.attention import untraced
from foveate.models.base import Family, is_stock
from foveate.models.encoded import Kept, Kind

REMEDY = "docs/adding_a_family.md says how to write an adapter for such a class."


@dataclass(frozen=True)
class Delivery:
    """The kept features of a call on their way into the model.

    Args:
        family: the model's adapter.
        rows: by kind, for every row of the batch what was kept of its images or videos, in order. A kind that is
            missing is not delivered: the model's own function answers for it.
        copies: by kind, the length along which generate may repeat their pixels; see ``Family.copies``.
        asked: the kinds that the model has asked for; filled while it runs.
        fill_mask: whether a forward without cache and mask needs an explicit mask (original positions look like
            packed sequences to the mask code).
    """

    family: Family
    rows: Mapping[Kind, Sequence[Sequence[Kept]]]
    copies: Mapping[Kind, int]
    fill_mask: bool = False
    asked: set[Kind] = field(default_factory=set)

    def require_asked(self) -> None:
        """Raises ValueError when the model had images and took them from elsewhere."""
        missed = [kind for kind, rows in self.rows.items() if any(rows) and kind not in self.asked]
        if missed:
            raise ValueError(
                f"{type(self.family.base).__name__}.forward did not ask its get_{missed[0]}_features, which is where a "
                "pruned call hands over what is kept: a class with a forward of its own must take its images from "
                f"there. {REMEDY}"
            )


# What the running thread's innermost pruned call delivers; None outside of one. Set also marks "inside": everything the
# model's own generate does from there on (its forwards, an assistant's generate) passes through untouched.
_delivery: ContextVar[Delivery | None] = ContextVar("foveate_delivery", default=None)


@untraced
def is_inside() -> bool:
    """Whether the running thread is inside a pruned call."""
    return _delivery.get() is not None


@contextmanager
def delivering(delivery: Delivery) -> Iterator[None]:
    token = _delivery.set(delivery)
    try:
        yield
    except Exception:
        if not (is_stock(type(delivery.family.model).forward) and is_stock(type(delivery.family.base).forward)):
            delivery.require_asked()  # the likelier cause
        raise
    finally:
        _delivery.reset(token)
    delivery.require_asked()


def checked(features: Callable[..., Any]) -> Callable[..., Any]:
    """``get_image_features`` with errors that say so when it is not transformers' own and unlike it."""
    if is_stock(features):
        return features
    name, signature = getattr(features, "__qualname__", repr(features)), inspect.signature(features)

    @functools.wraps(features, updated=())
    def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"{name} is not transformers' own and cannot be called like it: {error}. {REMEDY}"
            ) from None
        output = features(*args, **kwargs)
        if getattr(output, "pooler_output", None) is None:
            raise ValueError(
                f"{name} is not transformers' own and gives {type(output).__name__}, where an output with "
                f"pooler_output is expected. {REMEDY}"
            )
        return output

    return asked


def _joined(row: Sequence[Kept]) -> Kept:
    features = torch.cat([one.features for one in row])
    planes = tuple(torch.cat(level) for level in zip(*(one.planes for one in row), strict=True))
    return Kept(features, planes, torch.cat([one.repeats for one in row]))


def deliver(features: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    """``get_image_features`` that hands out the kept features inside a pruned call, and is itself outside."""
    signature = inspect.signature(features)

    @untraced
    @functools.wraps(features, updated=())  # what torch.compile left on it is not true of this one
    def delivered(*args: Any, **kwargs: Any) -> Any:
        delivery = _delivery.get()
        if delivery is None or kind not in delivery.rows:
            return features(*args, **kwargs)
        delivery.asked.add(kind)
        # Before 5.19, generate() repeats the pixels for beams and encodes afterwards; since then it repeats the
        # features. A fresh package each time: beam search changes it in place.
        times = delivery.family.copies(signature.bind(*args, **kwargs).arguments, kind) // delivery.copies[kind]
        rows = [row for row in delivery.rows[kind] for _ in range(times)]
        if delivery.family.joins_rows:
            rows = [[_joined(row)] for row in rows if row]
        flat = [one for row in rows for one in row]
        return delivery.family.package(flat, kind)

    return delivered


@untraced
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
