"""Draw a composed scene: a textured background, cards, sprites and signs, at a zoom."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.evaluation.scenes.artwork import sprites
from foveate.evaluation.scenes.composing import Scene, Thing, margin_of
from foveate.evaluation.scenes.world import COLORS
from foveate.evaluation.textures import background

_PLATES = ((255, 255, 255), (250, 240, 190), (225, 235, 255))
_INK = (15, 15, 15)


def draw(scene: Scene, zoom: float, style: str, rng: np.random.Generator) -> tuple[Image.Image, list[list[int]]]:
    """Draw a scene.

    Args:
        scene: what to draw.
        zoom: pixels per unit.
        style: which artwork, ``"noto"`` or ``"twemoji"``.
        rng: decides the background and the shades.

    Returns:
        The picture (RGB) and, for each thing of the scene, its box in pixels [x0, y0, x1, y1].
    """
    size = round(scene.width * zoom), round(scene.height * zoom)
    picture = background(rng, *size)
    boxes = []
    for thing in scene.things:
        box = [max(0, round(edge * zoom)) for edge in thing.box]
        box[2], box[3] = min(box[2], size[0]), min(box[3], size[1])
        _draw_thing(picture, thing, box, style, rng)
        boxes.append(box)
    return picture, boxes


def _draw_thing(picture: Image.Image, thing: Thing, box: list[int], style: str, rng: np.random.Generator) -> None:
    x0, y0, x1, y1 = box
    side = min(x1 - x0, y1 - y0)
    if thing.number is not None:
        plate = _sign(side, thing.number, _PLATES[rng.integers(len(_PLATES))])
        picture.paste(plate, (x0, y0), plate)
        return
    if thing.color is not None:
        shade = rng.uniform(0.9, 1.05)
        card = tuple(min(255, int(channel * shade)) for channel in COLORS[thing.color])
        ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill=card)
        margin = margin_of(side)
        x0, y0, side = x0 + margin, y0 + margin, side - 2 * margin
    sprite = sprites(style)[thing.name].resize((side, side), Image.Resampling.BICUBIC)
    picture.paste(sprite, (x0, y0), sprite)


def _sign(side: int, number: int, color: tuple[int, int, int]) -> Image.Image:
    plate = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(plate)
    top = round(side * 0.04)
    edge = max(1, side // 14)
    pen.rounded_rectangle((0, top, side - 1, side - 1 - top), max(2, side // 8), (*color, 255), (*_INK, 255), edge)
    pen.text((side / 2, side / 2), str(number), font=_font(round(side * 0.8)), fill=(*_INK, 255), anchor="mm")
    return plate


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("scenes need a Pillow built with FreeType to draw numbers")
    return font
