"""The pictures of the things: one sheet of 64-pixel sprites per style, package data.

``noto.png`` holds Noto Emoji images (Google, Apache-2.0), ``twemoji.png`` Twemoji graphics (Twitter and contributors,
CC BY 4.0). ``training/artwork.py`` makes both from the npm packages named in ``training/SOURCES.md``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.evaluation.scenes.world import CLASSES

#: Side of a sprite in a sheet, pixels.
SPRITE = 64

#: Style -> (file, vendor folder in the npm package).
SHEETS: dict[str, tuple[str, str]] = {"noto": ("noto.png", "google"), "twemoji": ("twemoji.png", "twitter")}


#: Split -> style. What is never trained on looks otherwise.
STYLES: dict[str, str] = {"train": "noto", "test": "noto", "style": "twemoji"}


def sheet_path(style: str) -> Path:
    """Where the sheet of a style lies."""
    return Path(__file__).with_name(SHEETS[style][0])


@lru_cache(maxsize=len(SHEETS))
def sprites(style: str) -> dict[str, Image.Image]:
    """The sprites of a style by name, RGBA, ``SPRITE`` pixels square."""
    sheet = Image.open(sheet_path(style)).convert("RGBA")
    columns = sheet.width // SPRITE
    boxes = ((i % columns * SPRITE, i // columns * SPRITE) for i in range(len(CLASSES)))
    return {name: sheet.crop((x, y, x + SPRITE, y + SPRITE)) for name, (x, y) in zip(CLASSES, boxes, strict=True)}


@lru_cache(maxsize=2 * len(CLASSES))
def opacity(style: str, name: str) -> np.ndarray:
    """Which part of its square a sprite covers: ``(SPRITE, SPRITE)`` in [0, 1]."""
    return np.asarray(sprites(style)[name].getchannel("A"), dtype=np.float32) / 255
