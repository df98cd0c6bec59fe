"""What stands in front of a question: a picture, or a clip's moments with their times, some of their tokens dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.dynamic.clips import Clip
from training.dynamic.data import Picture
from training.dynamic.grid import rope_extent, rope_places
from training.dynamic.words import BEFORE_IMAGE, START, STOP

VISUAL = -1
"""Where a visual token stands among ids."""


@dataclass(frozen=True)
class Lead:
    """What stands between ``BEFORE_IMAGE`` and ``AFTER_IMAGE``.

    Attributes:
        ids: (N,) words, and ``VISUAL``.
        places: (3, N) time, row and column of each.
        after: the place of what comes next.
    """

    ids: Tensor
    places: Tensor
    after: int


def lead(picture: Picture | Clip, kept: np.ndarray) -> Lead:
    """The prompt up to the question, as the stock processor and model have it.

    Args:
        picture: with M moments of C cells.
        kept: which of the M * C tokens are left, ascending. They keep their places, and a moment of which none is left
            keeps what is written around it.
    """
    ids: list[int] = []
    places: list[Tensor] = []
    at, moment = len(BEFORE_IMAGE), np.floor_divide(kept, picture.grid.cells)
    for number, stamp in enumerate(picture.stamps):
        own = torch.from_numpy(kept[moment == number] - number * picture.grid.cells)
        # A clip's moments stand between marks of their own, within those around the whole.
        start, stop = ([*stamp, START], [STOP]) if stamp else ([], [])
        ids += [*start, *[VISUAL] * len(own), *stop]
        places.append(_text(at, len(start)))
        at += len(start)
        places.append(rope_places(picture.grid, at)[:, own])
        at += rope_extent(picture.grid)
        places.append(_text(at, len(stop)))
        at += len(stop)
    return Lead(torch.tensor(ids), torch.cat(places, 1), at)


def _text(at: int, count: int) -> Tensor:
    """(3, count): the places of some words from ``at`` on."""
    return torch.arange(at, at + count).expand(3, -1)
