"""In the worker: videos in pieces of a few frames. No frame sees another in the encoders that are served, so a piece is
encoded as a video of its own: a long one is never in the tower as a whole, and its pieces are cached one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.models.encoded import NEWLINE, EncodedImage
from foveate.tokens import Geometry, VisualTokens

PIECE = 2048
"""Visual tokens of a piece at most, where a single frame has no more."""


def lengths(count: int, tokens: int, most: int) -> list[int]:
    """How many frames (or whatever is one step of a grid) each of a video's pieces has.

    Args:
        count: of the video's.
        tokens: visual tokens of one.
        most: of a piece, where one has no more.
    """
    each = max(1, most // max(1, tokens))
    return [min(each, count - start) for start in range(0, count, each)]


def joined(pieces: Sequence[EncodedImage], seconds: float | None = None) -> EncodedImage:
    """A video as if it had been encoded at once.

    Args:
        pieces: of it, in order of time.
        seconds: from one of its frames to the next; None: not known.
    """
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return first

    def all_of(values: Sequence[Tensor | None]) -> Tensor | None:
        found = [one for one in values if one is not None]
        return torch.cat(found) if len(found) == len(pieces) else None

    parts = [one.tokens for one in pieces]
    tokens = VisualTokens(
        torch.cat([one.features for one in parts]),
        _placed([one.geometry for one in parts], seconds),
        all_of([one.saliency for one in parts]),
        all(one.full_grid for one in parts),
        all_of([one.keys for one in parts]),
        all_of([one.encoded for one in parts]),
    )
    # A newline ends the whole video, and none of its pieces but the last.
    ended = last.slots is not None and bool((last.slots == NEWLINE).any())
    streams = [tokens.features]
    if ended and last.stream is not None:
        streams.append(last.stream[-1:])
    slots = torch.arange(len(tokens) + ended, device="cpu")
    lines = None
    if ended:
        slots[-1] = NEWLINE
        lines = torch.zeros_like(slots)
    planes = tuple(torch.cat(level) for level in zip(*(one.planes for one in pieces), strict=True))
    return EncodedImage(tokens, len(slots), slots, lines, torch.cat(streams), planes, "video")


def _placed(parts: Sequence[Geometry], seconds: float | None) -> Geometry:
    """Frames that follow each other, a piece's first one where the one before it ends."""
    starts, found = 0, []
    for one in parts:
        found.append(one.view + starts)
        starts += len(one.grids)
    whole = replace(
        parts[0],
        view=torch.cat(found),
        row=torch.cat([one.row for one in parts]),
        column=torch.cat([one.column for one in parts]),
        boxes=torch.cat([one.boxes for one in parts]),
        grids=tuple(grid for one in parts for grid in one.grids),
    )
    return whole.as_frames(seconds)
