"""Downsampling alone, the baseline at equal cost: a picture so small that the model itself makes few tokens of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image, new

from foveate.inputs import probe_inputs
from foveate.models import family_for
from foveate.pixels import resized_to
from foveate.tokens import Keep

NAME = "resize"
"""What evaluation and benchmarks call it."""
SHORTEST = 8
"""Pixels of the shorter side below which no smaller picture is tried: processors take thinner ones for other things."""
FINE = 1.005
"""Two scales of a side that are nearer are not told apart."""

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class Resize:
    """A picture made smaller in place of pruning: the largest of which a model makes no more tokens than a budget says.

    Args:
        keep: the budget, as of any method: a fraction of the tokens of the picture as it is, or an int.

    Raises:
        TypeError, ValueError: see ``Keep``.
    """

    keep: float | int

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep(self.keep).value)

    def size(self, size: Size, counts: Counts) -> Size:
        """The size of a picture that was of another.

        Args:
            size: what it is.
            counts: of the model.

        Raises:
            ValueError: the model makes more tokens of any picture of these proportions.
        """
        patches = counts.patches(size)
        most = Keep(self.keep).budget(patches)
        return size if most == patches else shrunk(size, most, counts)  # with every patch, the row ends stay as well

    def picture(self, picture: Image, counts: Counts) -> Image:
        """The smaller picture; the same object where all of its tokens may stay. Raises ValueError as ``size``."""
        return resized_to(picture, self.size(picture.size, counts))


class Counts:
    """How many tokens a model makes of pictures: its own processor is asked, once per size, and nothing is encoded.

    Args:
        placeholders: (width, height) -> tokens of such a picture that the LLM gets.
        newlines: (width, height) -> how many of them end rows, and carry no patch.
    """

    def __init__(self, placeholders: Callable[[Size], int], newlines: Callable[[Size], int] = lambda size: 0) -> None:
        self._placeholders, self._newlines = placeholders, newlines
        self._known: dict[Size, int] = {}

    @classmethod
    def of(cls, model: Any, processor: Any) -> Counts:
        """Those of a stock model and its processor."""
        family = family_for(model)

        def placeholders(size: Size) -> int:
            _, prompt = probe_inputs(processor, model, [new("RGB", size)])
            return int(torch.eq(prompt, family.image_token_id).sum())

        return cls(placeholders, lambda size: family.newlines((size[1], size[0])))

    def __call__(self, size: Size) -> int:
        """Tokens of a picture that the LLM gets, row ends included."""
        if size not in self._known:
            self._known[size] = self._placeholders(size)
        return self._known[size]

    def patches(self, size: Size) -> int:
        """Those of them that carry patches, of which budgets speak."""
        return self(size) - self._newlines(size)


def shrunk(size: Size, most: int, counts: Callable[[Size], int]) -> Size:
    """The largest size of the same proportions of which there are at most ``most`` tokens, as bisection finds it.

    Args:
        size: width and height; never exceeded.
        most: tokens, >= 1.
        counts: (width, height) -> tokens. Where it does not grow evenly with the size, as with tiles, a larger one may
            do too; what is given back has been counted.

    Raises:
        ValueError: there are more at any size; the message says how few there may be, and whether the size matters.
    """

    def at(side: float) -> Size:
        return max(1, round(size[0] * side)), max(1, round(size[1] * side))

    whole = counts(size)
    if whole <= most:
        return size
    least = min(1.0, SHORTEST / min(size))
    low = max(least, (most / whole) ** 0.5)
    high, tried = 1.0, {size: whole}
    while (found := counts(at(low))) > most:
        tried[at(low)] = found
        if low <= least:
            raise ValueError(_out_of_reach(size, most, tried))
        low, high = max(least, low / 2), low
    while high / low > FINE and at(low) != at(high):
        middle = (low * high) ** 0.5
        if counts(at(middle)) <= most:
            low = middle
        else:
            high = middle
    if counts(at(low)) < 1:  # a shape rounds a side away
        raise ValueError(
            f"{NAME}: of {size[0]}x{size[1]} pixels no size between none and more than {most} tokens is known"
        )
    return at(low)


def _out_of_reach(size: Size, most: int, tried: dict[Size, int]) -> str:
    fewest = min(tried.values())
    told = f"{NAME}: the budget for a picture of {size[0]}x{size[1]} pixels is {most} tokens, and "
    if len(set(tried.values())) == 1:
        told += f"this model makes {fewest} of any picture, because its processor brings all of them to one resolution"
    else:
        last = list(tried)[-1]
        told += f"of the smaller sizes tried, down to {last[0]}x{last[1]}, this model makes {fewest} at least"
    return f"{told}: leave {NAME} out, give a larger budget, or use a model of dynamic resolution, such as Qwen-VL"


def is_resize(name: str) -> bool:
    """Whether a name stands for this baseline.

    Raises:
        ValueError: with options, of which it has none.
    """
    first, *options = name.split(":")
    if first == NAME and options:
        raise ValueError(f"{name!r}: {NAME} has no options; its budget is --keep, and it holds no method")
    return first == NAME
