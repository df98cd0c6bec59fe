"""How kept features reach the model: what the running call delivers, and the hooks that hand it out."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import torch

from foveate.arguments import cache_in
from foveate.attention import suspended, untraced
from foveate.models.base import Family
from foveate.models.encoded import Kept, Kind
from foveate.models.stock import is_stock
from foveate.prompts import cached_length, is_remembered
from foveate.views import PromptView

TOWER_STATES = (
    "last_hidden_state", "hidden_states", "attentions", "high_res_vision_last_hidden_state",
    "high_res_vision_hidden_states", "high_res_vision_attentions",
)  # fmt: skip
"""What ``get_image_features`` gives beside features; from 5.24 on, forward hands it on as ``image_outputs``."""
REMEDY = "docs/adding_a_family.md says how to write an adapter for such a class."


@dataclass(frozen=True, eq=False)
class Delivery:
    """The kept features of a call on their way into the model.

    Args:
        family: the model's adapter.
        rows: by kind, for every row of the batch what was kept of its images or videos, in order. A kind that is
            missing is not delivered: the model's own function answers for it.
        pixels: by kind, the pixels that the call brought, and what generate made of them for beams: what comes with
            others is no part of it.
        cache: the call's KV cache; None without.
        copies: by kind, the length along which generate may repeat them; see ``Family.copies``.
        stock: by kind, what the model's own function gave, where all of it is kept.
        view: how the caller's own code sees the prompt; None in a forward, which runs none.
        fill_mask: whether a forward without cache and mask needs an explicit mask (original positions look like
            packed sequences to the mask code).
        asked: the kinds that the model has asked for; filled while it runs.
    """

    family: Family
    rows: Mapping[Kind, Sequence[Sequence[Kept]]] = field(default_factory=dict)
    pixels: Mapping[Kind, list[Any]] = field(default_factory=dict)
    cache: Any = None
    copies: Mapping[Kind, int] = field(default_factory=dict)
    stock: Mapping[Kind, Any] = field(default_factory=dict)
    view: PromptView | None = None
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

    def holds(self, arguments: Mapping[str, Any], whole: bool = False) -> bool:
        """Whether a call of the model is part of the running one: its images, where any come, are this delivery's, the
        prompt has places for what is left of them, and its cache is no other call's.

        Args:
            arguments: the call's.
            whole: it brings a prompt also where it brings no images (``generate``).
        """
        cache = cache_in(arguments)
        if cache is not self.cache and is_remembered(cache):
            return False
        brought = [kind for kind in self.family.placeholder_ids if self.family.has(arguments, kind)]
        if not all(self.brings(kind, arguments) for kind in brought):
            return False
        if not whole and not brought:
            return True
        ids = arguments.get("input_ids" if arguments.get("inputs") is None else "inputs")
        return ids is None or (whole and cached_length(cache) > 0) or self._fits(ids)

    def brings(self, kind: Kind, arguments: Mapping[str, Any]) -> bool:
        """Whether the images of a kind among some arguments are this delivery's."""
        brought = arguments.get(self.family.inputs_of(kind)[0])
        return any(_same(brought, ours) for ours in self.pixels.get(kind, ()))

    def _fits(self, ids: torch.Tensor) -> bool:
        places: dict[int, int] = {}
        for kind, rows in self.rows.items():
            token = self.family.placeholder_ids[kind]
            kept = sum(len(one.features) for row in rows for one in row)
            places[token] = places.get(token, 0) + kept * (len(ids) // len(rows))
        return all(int((ids == token).sum()) == count for token, count in places.items())

    def repeated(self, arguments: Mapping[str, Any]) -> None:
        """Takes note of pixels that generate has repeated for beams or several returns."""
        for kind, known in self.pixels.items():
            pixels = arguments.get(self.family.inputs_of(kind)[0])
            if pixels is not None:
                known.append(pixels)

    def hand_out(self, kind: Kind, arguments: Mapping[str, Any]) -> Any:
        """The features of a kind as the model's own function would return them.

        Args:
            kind: which are asked for.
            arguments: of that function.
        """
        self.asked.add(kind)
        # Before 5.18, generate() repeats the pixels for beams and encodes afterwards; since then it repeats the
        # features. A fresh package each time: beam search changes it in place.
        times = self.family.copies(arguments, kind) // self.copies[kind]
        if times == 1 and kind in self.stock:
            return copy.copy(self.stock[kind])
        rows = [row for row in self.rows[kind] for _ in range(times)]
        if self.family.joins_rows:
            rows = [[_joined(row)] for row in rows if row]
        return self.family.package([one for row in rows for one in row], kind)


def features_alone(output: Any) -> Any:
    """What a model's own ``get_image_features`` gave, less the tower's states: they would be held while the LLM runs,
    and are not the stock ones, since layers that no feature comes from may have been skipped."""
    # An attribute of its own, once.
    if not isinstance(output, Mapping) or not {"pooler_output", "deepstack_features"} & output.keys():
        return output
    # Some outputs must have a field for them (a tower's from timm).
    own: Any = type(output)
    empty = {one.name: None for one in fields(own) if one.name in TOWER_STATES and one.default is MISSING}
    return own(**empty, **{name: value for name, value in output.items() if name not in TOWER_STATES})


# What the running thread's (or task's) innermost pruned call delivers; None outside of one, and in the caller's own
# code that it runs.
_delivery: ContextVar[Delivery | None] = ContextVar("foveate_delivery", default=None)


@untraced
def running(family: Family) -> Delivery | None:
    """The pruned call of this very model that is running here: everything that its own generate does from there on (its
    forwards, an assistant's generate) passes through untouched."""
    delivery = _delivery.get()
    return delivery if delivery is not None and delivery.family is family else None


@contextmanager
def delivering(delivery: Delivery) -> Iterator[None]:
    """Runs the model's own code on what is delivered.

    Raises:
        ValueError: it did not take it.
    """
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


@contextmanager
def assisting(delivery: Delivery) -> Iterator[None]:
    """Runs a ``generate`` that is part of the running one: what it is given sees the caller's prompt already."""
    token = _delivery.set(replace(delivery, view=None))
    try:
        yield
    finally:
        _delivery.reset(token)


@contextmanager
def outside() -> Iterator[None]:
    """Runs code that is not the model's: what it asks of any model is a call of its own."""
    token = _delivery.set(None)
    try:
        with suspended():
            yield
    finally:
        _delivery.reset(token)


def _same(brought: Any, ours: Any) -> bool:
    """Whether pixels are the same ones: the object, its memory, or at least its values."""
    if brought is ours:
        return True
    if isinstance(brought, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(brought) == len(ours) and all(_same(one, other) for one, other in zip(brought, ours, strict=True))
    if not torch.is_tensor(brought) or not torch.is_tensor(ours) or brought.shape != ours.shape:
        return False
    if brought.device == ours.device and brought.dtype == ours.dtype and brought.data_ptr() == ours.data_ptr():
        return True
    return torch.equal(brought, ours.to(brought.device, brought.dtype))  # hooks may have moved it


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


def deliver(features: Callable[..., Any], kind: Kind, family: Family) -> Callable[..., Any]:
    """``get_image_features`` that hands out the kept features inside a pruned call, and is itself outside."""

    @functools.wraps(features, updated=())  # what torch.compile left on it is not true of this one
    def delivered(*args: Any, **kwargs: Any) -> Any:
        return _delivered(features, kind, family, args, kwargs)

    return delivered


@untraced
def _delivered(
    features: Callable[..., Any], kind: Kind, family: Family, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    delivery = running(family)
    if delivery is None or kind not in delivery.rows:
        return features(*args, **kwargs)
    arguments = inspect.signature(features).bind(*args, **kwargs).arguments
    return delivery.hand_out(kind, arguments) if delivery.brings(kind, arguments) else features(*args, **kwargs)


@untraced
def fill_mask(delivery: Delivery, arguments: dict[str, Any]) -> dict[str, Any]:
    """Gives a forward inside a pruned generate the mask that generate dropped, where its absence would be misread."""
    if (
        delivery.fill_mask
        and arguments.get("attention_mask") is None
        and cache_in(arguments) is None
        and arguments.get("input_ids") is not None
    ):
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
    return arguments
