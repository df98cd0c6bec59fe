"""Backgrounds that drawn pictures stand on."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

_GRAIN_TILE = 256


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((_GRAIN_TILE, _GRAIN_TILE)).astype(np.float32)


def background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A colour or grey, perhaps with soft blobs, stripes or checks, and grain."""
    base = rng.uniform(60, 215, 3)
    if rng.random() < 0.5:
        base = np.clip(base.mean() + rng.uniform(-15, 15, 3), 0, 255)
    cells = int(rng.integers(2, 9))
    strength = rng.uniform(8, 45) if rng.random() < 0.6 else 0.0
    blobs = np.clip(base + rng.uniform(-strength, strength + 1e-6, (cells, cells, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.35:
        _add_pattern(picture, rng)
    if rng.random() < 0.6:
        picture = add_grain(picture, rng)
    return picture


def _add_pattern(picture: Image.Image, rng: np.random.Generator) -> None:
    """Stripes across, down, or both as checks, a shade darker or lighter."""
    width, height = picture.size
    period = rng.uniform(0.03, 0.18) * max(width, height)
    depth = int(rng.uniform(20, 90))
    mask = Image.new("L", picture.size)
    pen = ImageDraw.Draw(mask)
    kind = rng.integers(3)
    if kind != 1:
        for i in range(0, int(width / period) + 1, 2):
            pen.rectangle((i * period, 0, (i + 1) * period, height), fill=depth)
    if kind != 0:
        for i in range(0, int(height / period) + 1, 2):
            pen.rectangle((0, i * period, width, (i + 1) * period), fill=depth if kind == 1 else depth // 2)
    tone = (0, 0, 0) if rng.random() < 0.5 else (255, 255, 255)
    picture.paste(tone, (0, 0), mask)


def add_grain(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture under grain, weak or strong."""
    width, height = picture.size
    tile = np.roll(_grain(), rng.integers(0, _GRAIN_TILE, 2), (0, 1)) * rng.uniform(2, 16)
    grain = np.tile(tile.astype(np.int16), (height // _GRAIN_TILE + 1, width // _GRAIN_TILE + 1))[:height, :width]
    return Image.fromarray(np.clip(np.asarray(picture, np.int16) + grain[..., None], 0, 255).astype(np.uint8))
