"""Budgets in pixels: pictures are resized before the processor sees them, so that there is less, or more, to encode."""

from __future__ import annotations

import contextlib
import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags
from PIL.Image import Image, Resampling, merge
from torch import Tensor

from foveate.first_block import first_block_tokens
from foveate.images import MAX_PIXELS
from foveate.inputs import picture_list

AUTO: Literal["auto"] = "auto"
LARGEST = 16.0
"""The largest scale of a picture's number of pixels: four times each side."""
FEWEST = 256
"""The smallest number of pixels that can be asked for, 16 x 16: less is smaller than any model's patch, and a number
that small was meant as a scale."""
LEAST_AUTO = 0.1
"""The smallest scale that ``"auto"`` gives: a picture of one colour would vanish."""
REDUNDANCY, SPREAD = 0.6, 0.4
"""The two weights of APC."""


@dataclass(frozen=True)
class Pixels:
    """How large a picture is when the processor sees it.

    Args:
        value: a float in (0, 16], a scale of the picture's number of pixels: 0.25 is half of each side, 4.0 twice each
            side, 1.0 (and ``1``) the picture as it is. Or an int >= 256, at most so many pixels: a larger picture is
            scaled down to it, a smaller one stays as it is. Or ``"auto"``: each picture's own scale, see
            ``auto_scale``.

    Raises:
        TypeError: ``value`` is neither number nor text (bool and arrays included).
        ValueError: another text, NaN, zero, a negative number, a scale above 16, an int from 2 to 255.
    """

    value: float | int | str

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, str):
            if value != AUTO:
                raise ValueError(
                    f'pixels={value!r} is unknown: give a scale such as 0.25, a number of pixels, or "auto"'
                )
            return
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            shown = repr(value) if value is None or isinstance(value, bool) else type(value).__name__
            raise TypeError(
                'pixels must be a float (a scale of the number of pixels), an int (at most so many) or "auto", got '
                f"{shown}"
            )
        if isinstance(value, numbers.Integral) and value != 1:
            if value < FEWEST:
                raise ValueError(
                    f"pixels={value} is a number of pixels, of which there must be {FEWEST}; a scale is written with a "
                    "point, such as 0.5 or 2.0"
                )
            object.__setattr__(self, "value", int(value))
            return
        number = float(str(value)) if isinstance(value, np.floating) else float(value)
        if not 0.0 < number <= LARGEST:  # NaN fails both comparisons
            raise ValueError(
                f"pixels={value!r} is no scale: give a float in (0, {LARGEST:g}], such as 0.25 for half of each side, "
                "or an int for a number of pixels"
            )
        object.__setattr__(self, "value", number)

    @classmethod
    def parse(cls, text: str) -> Pixels:
        """From a command line: ``"0.25"``, ``"200000"`` or ``"auto"``. Raises ValueError for anything else."""
        value: float | int | str = text
        for read in (float, int):
            with contextlib.suppress(ValueError):
                value = read(text)
        return cls(value)

    @property
    def is_auto(self) -> bool:
        """Whether the scale depends on what is seen."""
        return self.value == AUTO

    @property
    def enlarges(self) -> bool:
        """Whether pictures become larger."""
        return isinstance(self.value, float) and self.value > 1

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture of a size when it is resized, in pixels: proportions kept, each at least 1.

        A scale rounds to the nearest pixel. A number of pixels is never exceeded: it rounds down, and a picture so thin
        that a pixel of its shorter side is too much becomes shorter.

        Raises:
            ValueError: ``"auto"``, which has no size of its own; more than ``images.MAX_PIXELS``.
        """
        if isinstance(self.value, str):
            raise ValueError('pixels="auto" gives every picture a scale of its own: foveate.resized finds it')
        if isinstance(self.value, int):
            if width * height <= self.value:
                return width, height
            side = math.sqrt(self.value / (width * height))
            sides = [max(1, math.floor(one * side)) for one in (width, height)]
            longer = sides.index(max(sides))
            sides[longer] = min(sides[longer], self.value // sides[1 - longer])
            return sides[0], sides[1]
        side = math.sqrt(self.value)
        found = max(1, round(width * side)), max(1, round(height * side))
        if found[0] * found[1] > max(MAX_PIXELS, width * height):
            raise ValueError(
                f"pixels={self.value:g} makes {found[0]}x{found[1]} pixels of {width}x{height}, more than the "
                f"{MAX_PIXELS} there may be: give a smaller scale"
            )
        return found


@overload
def resized(pictures: Image, pixels: Any, model: Any = None, processor: Any = None) -> Image: ...
@overload
def resized(pictures: Sequence[Image], pixels: Any, model: Any = None, processor: Any = None) -> list[Image]: ...
def resized(
    pictures: Image | Sequence[Image], pixels: Any, model: Any = None, processor: Any = None
) -> Image | list[Image]:
    """Pictures at another size, for whoever calls the processor: ``processor(images=foveate.resized(picture, 0.25))``.

    Proportions are kept, as far as whole pixels allow; the filter is Lanczos'. Mode and EXIF orientation stay; colours
    by number (P), black-and-white (1), HSV and a transparent colour, which cannot be filtered, become RGB, RGBA or L.
    Transparency is filtered apart from the colours, so that dropping it before or after is the same.

    Args:
        pictures: one picture, or several.
        pixels: see ``Pixels``.
        model, processor: for ``"auto"`` alone, which looks at the pictures with the model's encoder.

    Returns:
        A picture for a picture, a list for several. One that keeps its size is the same object.

    Raises:
        TypeError, ValueError: see ``Pixels``; no picture; ``"auto"`` without model and processor, or with a model whose
            encoder's first block is not known.
    """
    wanted = pixels if isinstance(pixels, Pixels) else Pixels(pixels)
    given = picture_list(pictures)
    if wanted.is_auto:
        if model is None or processor is None:
            raise ValueError('pixels="auto" looks at pictures with the model: give resized(..., model, processor) both')
        scales = [Pixels(auto_scale(first_block_tokens(model, processor, one))) for one in given]
    else:
        scales = [wanted] * len(given)
    found = [resized_to(one, scale.size(*one.size)) for one, scale in zip(given, scales, strict=True)]
    return found[0] if isinstance(pictures, Image) else found


def resized_to(picture: Image, size: tuple[int, int]) -> Image:
    """A picture at (width, height); see ``resized``."""
    if size == picture.size:
        return picture
    picture.load()  # some formats are turned upright by it, and forget their orientation
    info, orientation = dict(picture.info), None
    with contextlib.suppress(Exception):  # a broken EXIF block raises anything
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    keyed = "transparency" in info and picture.mode in ("1", "L", "RGB")
    if picture.mode in ("1", "P", "PA", "HSV") or keyed:
        grey = "L" if picture.mode == "1" else "RGB"
        picture = picture.convert("RGBA" if picture.has_transparency_data else grey)
        info.pop("transparency", None)  # one colour, which filtering would mix with others
    if picture.mode in ("RGBA", "LA"):
        found = merge(picture.mode, [band.resize(size, Resampling.LANCZOS) for band in picture.split()])
    else:
        found = picture.resize(size, Resampling.LANCZOS)
    found.info = info
    if orientation is not None:
        found.getexif()[ExifTags.Base.Orientation] = orientation
    return found


def auto_scale(tokens: Tensor) -> float:
    """The scale of ``pixels="auto"``: APC, which resizes a picture the less the more its patches differ.

    ``0.6 (1 - m) + 0.4 s``, m being the mean cosine similarity of the tokens behind the encoder's first block and s the
    spread of their distances: the form, the place and the weights are those of APC, the part of PACE that works before
    the encoder. The rest is ours, since no exact definition could be had: m and s are taken over all pairs of different
    tokens, s is the standard deviation of their cosine distances, the result is a scale of the number of pixels, held
    within [0.1, 1], and the views of a picture that is cut are taken together. It is computed from sums, without a
    matrix of pairs.

    Args:
        tokens: (N, d) of one picture, N >= 1.

    Returns:
        In [0.1, 1]; 1 of a single token.

    Raises:
        ValueError: tokens that are no numbers.
    """
    count = len(tokens)
    if count < 2:
        return 1.0
    pairs = count * (count - 1)
    with torch.autocast(tokens.device.type, enabled=False):
        units = F.normalize(tokens.detach().float(), dim=-1)
        mean = (float(units.sum(dim=0).square().sum()) - count) / pairs
        squares = (float(torch.linalg.matrix_norm(units.T @ units).square()) - count) / pairs
    if not math.isfinite(mean):
        raise ValueError(
            "the encoder's first block gives tokens that are no numbers: load the model in bfloat16 or float32, or "
            "give a scale such as 0.5"
        )
    spread = math.sqrt(max(0.0, squares - mean**2))
    return min(1.0, max(LEAST_AUTO, REDUNDANCY * (1 - mean) + SPREAD * spread))


def warn_fixed(family: Any) -> None:
    """Warns where a picture's size decides what is seen, but not how much of it there is to encode.

    It is no error: a model trained on small pictures may see enlarged ones worse, and whoever compares families should
    not have to leave some out. Python shows a warning once.
    """
    if family.fixed_resolution:
        warnings.warn(
            f"{family.title}'s processor makes the same square of every picture: pixels= changes how sharp it is, not "
            "how many tokens there are or what they cost",
            stacklevel=3,
        )
