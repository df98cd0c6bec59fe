"""Draw a play: a textured background that stands still, and the actors on it, frame by frame."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from foveate.evaluation.clips.composing import RATE, Actor, Play
from foveate.evaluation.scenes.artwork import sprites
from foveate.evaluation.scenes.composing import margin_of
from foveate.evaluation.scenes.world import COLORS
from foveate.evaluation.textures import background


def times_of(play: Play) -> list[float]:
    """When each of its frames is shown first, seconds."""
    return [number / RATE for number in range(play.seconds * RATE)]


def pixel_box(actor: Actor, time: float, zoom: float) -> list[int]:
    """What it covers of a frame, [x0, y0, x1, y1] in pixels."""
    x0, y0, *_ = (round(edge * zoom) for edge in actor.box(time))
    side = max(1, int(actor.extent * zoom))  # the same wherever it is
    return [x0, y0, x0 + side, y0 + side]


def draw(play: Play, zoom: float, style: str, rng: np.random.Generator) -> tuple[Image.Image, ...]:
    """Its frames, RGB.

    Args:
        play: what happens.
        zoom: pixels per unit.
        style: which artwork, ``"noto"`` or ``"twemoji"``.
        rng: decides the background and the shades.
    """
    scenery = background(rng, round(play.width * zoom), round(play.height * zoom))
    shades = [float(rng.uniform(0.9, 1.05)) for _ in play.actors]
    dressed: dict[tuple[str, str | None], Image.Image] = {}
    frames = []
    for number, time in enumerate(times_of(play)):
        frame = scenery.copy()
        for actor, shade in zip(play.actors, shades, strict=True):
            if not actor.is_there(time):
                continue
            x0, y0, x1, _ = pixel_box(actor, time, zoom)
            look = actor.name, actor.color_at(time)
            if look not in dressed:
                dressed[look] = _dress(actor, look[1], x1 - x0, shade, style)
            frame.paste(dressed[look], (x0, y0), dressed[look])
        _tick(frame, number)
        frames.append(frame)
    return tuple(frames)


def _tick(frame: Image.Image, number: int) -> None:
    """Changes one corner's blue by 1 in every second frame: frames that are alike would be one in the file, and tools
    that count frames instead of reading when they are shown would see another film."""
    red, green, blue = (int(value) for value in np.asarray(frame)[0, 0])
    frame.putpixel((0, 0), (red, green, blue ^ (number & 1)))


def _dress(actor: Actor, color: str | None, side: int, shade: float, style: str) -> Image.Image:
    """The thing on its card, RGBA, ``side`` pixels square."""
    made = Image.new("RGBA", (side, side))
    margin = 0
    if color is not None:
        red, green, blue = (min(255, int(channel * shade)) for channel in COLORS[color])
        ImageDraw.Draw(made).rectangle((0, 0, side, side), fill=(red, green, blue, 255))
        margin = margin_of(side)
    sprite = sprites(style)[actor.name].resize((side - 2 * margin,) * 2, Image.Resampling.BICUBIC)
    made.alpha_composite(sprite, (margin, margin))
    return made
