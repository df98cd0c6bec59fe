"""What a document is put together from: words and shapes at whole pixels, each with its box and its key."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from foveate.evaluation.documents.faces import face, ink
from foveate.evaluation.documents.words import CASES

Box = tuple[int, int, int, int]
Color = tuple[int, int, int]

#: Sizes of text in pixels (of the em square). Nothing in between, so that "small" and "large" mean what they say.
SMALL = (12, 18)
LARGE = (24, 44)


@dataclass(frozen=True)
class Word:
    """A word or number as it is written. ``box`` is that of its ink; ``(x, y)`` where its baseline begins."""

    key: str
    box: Box
    text: str
    x: int
    y: int
    family: str
    bold: bool
    size: int
    fill: Color

    def draw(self, pen: ImageDraw.ImageDraw, dx: int, dy: int) -> None:
        pen.text(
            (self.x + dx, self.y + dy),
            self.text,
            font=face(self.family, self.bold, self.size),
            fill=self.fill,
            anchor="ls",
        )


@dataclass(frozen=True)
class Shape:
    """A filled or outlined shape. ``points`` are corners in pixels; ``kind`` names Pillow's way to draw it."""

    key: str
    box: Box
    kind: str
    points: tuple[tuple[int, int], ...]
    fill: Color | None
    outline: Color | None = None
    width: int = 1

    def draw(self, pen: ImageDraw.ImageDraw, dx: int, dy: int) -> None:
        points = [(x + dx, y + dy) for x, y in self.points]
        if self.kind == "line":
            pen.line(points, fill=self.fill, width=self.width)
        elif self.kind == "polygon":
            pen.polygon(points, fill=self.fill)
        elif self.kind == "ellipse":
            pen.ellipse(points, fill=self.fill)
        else:
            assert self.kind == "rectangle"
            pen.rectangle(points, fill=self.fill, outline=self.outline, width=self.width)


@dataclass(frozen=True)
class Look:
    """How a document is written: ``size`` in pixels; ``faint`` is for lines, ``accent`` for bars and headings."""

    family: str
    bold: bool
    size: int
    case: str
    ink: Color
    paper: Color
    faint: Color
    accent: Color


def luminance(color: Color) -> float:
    """How light a colour looks, 0 to 255."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def readable_on(color: Color) -> Color:
    """Black or white, whichever stands out."""
    return (10, 10, 10) if luminance(color) > 120 else (250, 250, 250)


class Panel:
    """One document being laid out, in pixels from its own upper left corner.

    Heights are told by the middle of capitals: a word at ``y`` has as much of an ``H`` above ``y`` as below.
    """

    def __init__(self, look: Look, rng: np.random.Generator) -> None:
        self.look, self.rng = look, rng
        self.em = look.size
        self.row = math.ceil(look.size * rng.uniform(1.45, 1.9))
        self.marks: list[Word | Shape] = []
        self.width = self.height = 0

    def heading_size(self) -> int:
        """A size for a heading that is as small or as large as the rest."""
        most = SMALL[1] if self.em <= SMALL[1] else LARGE[1]
        return min(most, round(self.em * self.rng.uniform(1, 1.3)))

    def written(self, word: str) -> str:
        """The word in this document's case."""
        return CASES[self.look.case](word)

    def length(self, *words: str, size: int | None = None, bold: bool | None = None) -> int:
        """How far the longest of the words reaches, pixels."""
        font = face(self.look.family, self.look.bold if bold is None else bold, size or self.em)
        return max(math.ceil(max(font.getlength(text), font.getbbox(text)[2])) for text in map(self.written, words))

    def word(
        self,
        key: str,
        word: str,
        x: int,
        y: int,
        *,
        align: str = "left",
        size: int | None = None,
        bold: bool | None = None,
        fill: Color | None = None,
    ) -> Box:
        """Writes a word whose left end, middle or right end is at ``x`` and returns the box of its ink."""
        size, bold = size or self.em, self.look.bold if bold is None else bold
        text = self.written(word)
        length = math.ceil(face(self.look.family, bold, size).getlength(text))
        x -= {"left": 0, "middle": length // 2, "right": length}[align]
        y -= ink(self.look.family, bold, size, "H")[1] // 2
        x0, y0, x1, y1 = ink(self.look.family, bold, size, text)
        box = (x + x0, y + y0, x + x1, y + y1)
        self.marks.append(Word(key, box, text, x, y, self.look.family, bold, size, fill or self.look.ink))
        return box

    def rectangle(self, key: str, box: Box, fill: Color | None, outline: Color | None = None, width: int = 1) -> None:
        """A rectangle that covers ``box`` exactly."""
        x0, y0, x1, y1 = box
        self.marks.append(Shape(key, box, "rectangle", ((x0, y0), (x1 - 1, y1 - 1)), fill, outline, width))

    def rule(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """A faint line across or down."""
        self.rectangle("", (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), self.look.faint)

    def polygon(self, key: str, points: list[tuple[int, int]], fill: Color) -> None:
        """A filled polygon."""
        across, down = zip(*points, strict=True)
        box = (min(across), min(down), max(across) + 1, max(down) + 1)
        self.marks.append(Shape(key, box, "polygon", tuple(points), fill))

    def dot(self, key: str, x: int, y: int, radius: int, fill: Color) -> None:
        """A filled circle."""
        box = (x - radius, y - radius, x + radius + 1, y + radius + 1)
        self.marks.append(Shape(key, box, "ellipse", ((x - radius, y - radius), (x + radius, y + radius)), fill))

    def lines(self, points: list[tuple[int, int]], fill: Color, width: int) -> None:
        """A line through points."""
        across, down = zip(*points, strict=True)
        box = (min(across) - width, min(down) - width, max(across) + width, max(down) + width)
        self.marks.append(Shape("", box, "line", tuple(points), fill, width=width))

    def close(self, width: int, height: int) -> None:
        """Says how large the document is."""
        self.width, self.height = int(width), int(height)

    def box(self, key: str) -> Box:
        """What the marks of a key cover together."""
        boxes = [mark.box for mark in self.marks if mark.key == key]
        assert boxes, f"nothing is called {key}"
        return union(boxes)

    def smallest(self, keys: list[str] | tuple[str, ...]) -> int:
        """The smallest size of text among the marks of some keys, pixels."""
        return min(mark.size for mark in self.marks if isinstance(mark, Word) and mark.key in keys)


def union(boxes: list[Box]) -> Box:
    """The box around boxes."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def draw(
    picture: Image.Image, panels: list[tuple[Panel, int, int]], without: frozenset[tuple[int, str]] = frozenset()
) -> None:
    """Draws documents at their places, leaving out the marks of ``(number of the panel, key)`` in ``without``."""
    pen = ImageDraw.Draw(picture)
    for number, (panel, x, y) in enumerate(panels):
        pen.rectangle((x, y, x + panel.width - 1, y + panel.height - 1), fill=panel.look.paper)
        for mark in panel.marks:
            if not mark.key or (number, mark.key) not in without:
                mark.draw(pen, x, y)
