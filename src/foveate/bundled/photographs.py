"""Whether a picture looks like a photograph and not like the drawn scenes that the bundled model knows.

A scene has flat cards and signs on a background of one grey grain; in a photograph noise, texture and colour change
from place to place, on every scale. What is measured are histograms over blocks of 8 x 8 pixels: of what a plane leaves
of brightness and of two colour differences, of the second in terms of the first, and of the steps between neighbouring
blocks. A linear discriminant was fitted to them (training/photographs.py).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL.Image import Image, Resampling

SIDE = 400
"""The longer side at which pictures are looked at, pixels; smaller ones as they are."""
BLOCK = 8
FEWEST = 64
"""Blocks, below which nothing can be told."""
EDGES = (-1.0, 0.4, 0.8, 1.2, 1.8, 2.7, 4.0, 6.0, 9.0, 13.5, 20.0, 30.0, np.inf)
RATIO_EDGES = (-1.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3, np.inf)
WEIGHTS = (
    -0.417, 0.365, 0.235, 0.226, 0.026, 0.11, 0.041, -0.051, -0.143, -0.026, 0.347, 0.114, 0.182, -0.347, -0.166,
    0.112, -0.2, -0.09, 0.085, 0.129, 0.062, -0.091, -0.083, -0.15, -0.237, -0.205, 0.178, 0.031, 0.027, 0.075,
    -0.048, -0.147, -0.011, -0.173, -0.207, -0.024, -0.163, -0.424, -0.096, 0.068, 0.149, 0.062, 0.016, 0.019,
    0.109, 0.19, 0.19, -0.039, -0.117, -0.148, -0.04, -0.039, 0.142, 0.247, 0.166, -0.082, -0.901,
)  # fmt: skip
THRESHOLD = -0.176


def features(image: Image) -> np.ndarray:
    """(57,) float64: square roots of five histograms, see above; zeros for one of fewer blocks than tell."""
    scale = SIDE / max(image.size)
    small = image.convert("RGB")
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        small = small.resize(size, Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    rows, columns = (side // BLOCK for side in pixels.shape[:2])
    if rows * columns < FEWEST:
        return np.zeros(4 * (len(EDGES) - 1) + len(RATIO_EDGES) - 1)
    grid = pixels[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3)
    blocks = grid.transpose(0, 2, 1, 3, 4).reshape(rows * columns, BLOCK * BLOCK, 3)
    grey = blocks.mean(-1)
    light, red, blue = map(_beside_plane, (grey, blocks[..., 0] - blocks[..., 1], blocks[..., 2] - grey))
    means = grid.mean((1, 3))
    steps = np.concatenate([np.abs(np.diff(means, axis=axis)).max(-1).ravel() for axis in (1, 0)])
    ratio = np.maximum(red, blue) / (light + 0.5)
    parts = [_histogram(one, EDGES) for one in (light, red, blue, steps)] + [_histogram(ratio, RATIO_EDGES)]
    return np.sqrt(np.concatenate(parts))


def looks_like_photograph(image: Image) -> bool:
    """Whether a picture looks like a photograph: none of 200 scenes that were drawn anew, most photographs."""
    found = features(image)
    return bool(found.any()) and float(found @ np.array(WEIGHTS)) > THRESHOLD


def _histogram(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    counts: np.ndarray = np.histogram(values, edges)[0] / max(1, len(values))
    return counts


@lru_cache(maxsize=1)
def _projector() -> np.ndarray:
    """(64, 64): takes a plane out of a block."""
    down, right = np.mgrid[:BLOCK, :BLOCK] - (BLOCK - 1) / 2
    plane = np.stack([np.ones(BLOCK * BLOCK), right.ravel(), down.ravel()], 1)
    return (np.eye(BLOCK * BLOCK) - plane @ np.linalg.pinv(plane)).astype(np.float32)


def _beside_plane(blocks: np.ndarray) -> np.ndarray:
    """(B,) standard deviations of what is left of (B, 64) blocks."""
    left: np.ndarray = (blocks @ _projector()).std(1)
    return left
