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
STEP = 2**0.25
"""Between the scales of a side that are looked through, from the whole picture down."""
DRIFT = 0.01
"""By which whole pixels may change a picture's proportions where its sizes are held against each other."""

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class Resize:
    """A picture made smaller in place of pruning: the largest of which a model makes no more tokens than a budget says.

    Args:
        keep: the budget, as of any method: a fraction of the tokens of the picture as it is, or an int.
        or_fewest: what is done where the model makes more tokens of any size: False raises ValueError, True exceeds the
            budget, with the largest picture of which there are the fewest tokens; where the size does not matter, that
            is the picture as it is. Default False.

    Raises:
        TypeError, ValueError: see ``Keep``.
    """

    keep: float | int
    or_fewest: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep(self.keep).value)

    def size(self, size: Size, counts: Counts) -> Size:
        """The size of a picture that was of another.

        Args:
            size: what it is.
            counts: of the model.

        Raises:
            ValueError: the model makes more tokens of any picture of these proportions, unless ``or_fewest``.
        """
        patches = counts.patches(size)
        most = Keep(self.keep).budget(patches)
        if most == patches:
            return size  # with every patch, the row ends stay as well
        return shrunk(size, most, counts, or_fewest=self.or_fewest)

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


def shrunk(size: Size, most: int, counts: Callable[[Size], int], *, or_fewest: bool = False) -> Size:
    """The largest size of the same proportions of which there are at most ``most`` tokens, and at least one.

    Sizes are looked through from the whole picture down, since of tiles a smaller picture may have more tokens. The
    first that will do is then made as large as it may be. They are ``STEP`` apart: what would do between two of them
    and at neither is missed.

    Args:
        size: width and height; never exceeded.
        most: tokens, >= 1.
        counts: (width, height) -> tokens. What is given back has been counted.
        or_fewest: where there are more at any size, gives the largest of which there are the fewest: one that the
            processor would enlarge to the same number has lost more and saves nothing. Sizes so small that their
            proportions are others are left out then: what they save, another picture saves.

    Raises:
        ValueError: there are more at any size; the message says how few there may be, and whether the size matters.
    """
    scales, tried = _scales(size), list[int]()
    for side in scales:
        tried.append(counts(_scaled(size, side)))
        if 1 <= tried[-1] <= most:
            break
    else:
        if not or_fewest:
            raise ValueError(_out_of_reach(size, most, tried))
        most = min(count for side, count in zip(scales, tried, strict=True) if count >= 1 and _is_alike(size, side))
    place = next(place for place, count in enumerate(tried) if 1 <= count <= most)
    if place == 0:
        return size
    low, high = scales[place], scales[place - 1]
    while high / low > FINE and _scaled(size, low) != _scaled(size, high):
        middle = (low * high) ** 0.5
        if 1 <= counts(_scaled(size, middle)) <= most:
            low = middle
        else:
            high = middle
    return _scaled(size, low)


def _scales(size: Size) -> list[float]:
    """Of a side, from 1 down to where the shorter side is ``SHORTEST``."""
    scales, least = [1.0], min(1.0, SHORTEST / min(size))
    while scales[-1] > least:
        scales.append(max(least, scales[-1] / STEP))
    return scales


def _scaled(size: Size, side: float) -> Size:
    return max(1, round(size[0] * side)), max(1, round(size[1] * side))


def _is_alike(size: Size, side: float) -> bool:
    """Whether a scaled picture has the proportions of the whole one."""
    width, height = _scaled(size, side)
    return abs(width * size[1] / (height * size[0]) - 1) <= DRIFT


def _out_of_reach(size: Size, most: int, tried: list[int]) -> str:
    if 0 in tried:  # a shape rounds a side away
        return f"{NAME}: of {size[0]}x{size[1]} pixels no size between none and more than {most} tokens is known"
    few = min(tried)
    told = f"{NAME}: the budget for a picture of {size[0]}x{size[1]} pixels is {most} tokens, and "
    if len(set(tried)) == 1:
        told += f"this model makes {few} of any picture, because its processor brings all of them to one resolution"
    else:
        width, height = _scaled(size, _scales(size)[-1])
        told += f"of the smaller sizes tried, down to {width}x{height}, this model makes {few} at least"
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
