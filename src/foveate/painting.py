"""What is laid over a picture: values of patches, a veil where they were dropped, an outline around what was kept,
stripes where none was encoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from foveate.tokens import Selection

DARK, LIGHT = (17, 17, 17), (255, 206, 0)
"""The two lines of an outline, the dark one beside what was kept: against whatever lies beside them, one of the two has
a contrast of more than 3 (WCAG 2.2, 1.4.11), and yellow is no rule of a table."""
VEIL = 0.3, 105.0
"""What dropped patches fade to: that part of their lightness above a grey, so that they are darker than kept ones on a
white page and lighter in a black picture."""


def faded(
    shown: Image.Image,
    original: tuple[int, int],
    selection: Selection,
    views: Sequence[int] | None,
    dim: float,
    outline: bool = True,
) -> Image.Image:
    """The picture with kept patches clear; see ``foveate.show.overlay``."""
    kept = selection.mask().cpu().numpy().astype(np.float32)
    clear = np.nan_to_num(painted(selection, kept, original, shown.size, views)) > 0
    pixels = np.asarray(shown, dtype=np.float32)
    veil = VEIL[0] * pixels.mean(axis=2, keepdims=True) + VEIL[1]
    dropped = (1 - dim) * pixels + dim * veil
    absent = missing(selection, original, shown.size, views)
    if absent.any():
        dropped = np.where(absent[..., None], striped(pixels), dropped)
    mixed = np.where(clear[..., None], pixels, dropped)
    if outline:
        for line, colour in zip(outlines(clear), (DARK, LIGHT), strict=True):
            mixed[line] = colour
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))


def outlines(clear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two lines around what is clear, one around the other, both outside of it.

    Args:
        clear: (height, width) bool.

    Returns:
        (height, width) bool of each: the inner one and the outer one.
    """
    wide = line_width(clear.shape)
    inner = _grown(clear, wide)
    return inner & ~clear, _grown(inner, wide) & ~inner


def line_width(shape: tuple[int, ...]) -> int:
    """Pixels of one line on a picture of that (height, width)."""
    return max(1, round(max(shape[:2]) / 360))


def _grown(area: np.ndarray, by: int) -> np.ndarray:
    """An area and all that is at most so many pixels from it, across, down or both."""
    for axis in (0, 1):
        wider = np.pad(area, [(by, by) if axis == one else (0, 0) for one in (0, 1)])
        area = np.asarray(np.lib.stride_tricks.sliding_window_view(wider, 2 * by + 1, axis=axis).any(axis=-1))
    return area


def missing(
    selection: Selection, original: tuple[int, int], size: tuple[int, int], views: Sequence[int] | None
) -> np.ndarray:
    """(height, width) bool: where a view was not encoded."""
    if selection.encoded is None:
        return np.zeros(size[::-1], dtype=bool)
    absent = 1.0 - selection.encoded.cpu().numpy().astype(np.float32)
    found: np.ndarray = np.nan_to_num(painted(selection, absent, original, size, views)) > 0
    return found


def striped(pixels: np.ndarray) -> np.ndarray:
    """(height, width, 1) in 0 to 255: grey, with slanted stripes, and what was there hardly to be seen."""
    height, width = pixels.shape[:2]
    wide = max(2, round(max(height, width) / 120))
    slant = (np.arange(height)[:, None] + np.arange(width)[None, :]) // wide % 2
    return 0.15 * pixels.mean(axis=2, keepdims=True) + 0.85 * np.where(slant, 150.0, 205.0)[..., None]


def painted(
    selection: Selection,
    values: np.ndarray,
    original: tuple[int, int],
    size: tuple[int, int],
    views: Sequence[int] | None,
) -> np.ndarray:
    """(height, width) of ``size``: each patch's value over its box, the largest where boxes overlap, NaN where none is.

    ``original`` and ``size`` are (width, height): boxes are those of the original picture, drawn at another size.
    """
    width, height = size
    boxes = selection.geometry.boxes_in(original[1], original[0]).cpu().numpy()
    # Neighbours share an edge and so its rounding: no gaps, no overlaps.
    edges = np.rint(boxes * ([width / original[0], height / original[1]] * 2)).astype(int)
    edges = edges.clip(0, [width, height, width, height])
    values_at = np.full((height, width), np.nan, dtype=np.float32)
    view = selection.geometry.view.cpu().numpy()
    for place in np.flatnonzero(np.ones_like(view) if views is None else np.isin(view, views)):
        x0, y0, x1, y1 = edges[place]
        spot = values_at[y0:y1, x0:x1]
        np.fmax(spot, values[place], out=spot)
    return values_at
