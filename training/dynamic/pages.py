"""Pages full of words and numbers that say nothing: to learn to read from, since a document is mostly paper."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from foveate.evaluation.documents.faces import SEEN
from foveate.evaluation.documents.page import random_look
from foveate.evaluation.documents.panel import LARGE, SMALL, Panel, Word, draw
from foveate.evaluation.documents.papers import Form, Sign
from foveate.evaluation.documents.words import VOCABULARY
from foveate.evaluation.textures import add_grain
from training.dynamic.data import NAME_INDEX, Picture, Region, label, side_in_cells
from training.dynamic.grid import CELL, covered, lay_out
from training.dynamic.letters import spell

SIDES = (5, 10)
"""Cells of the shortest and of the longest side."""
NUMBERS = 0.3
"""How often a number is written."""
_LARGE_FIRST = 0.25
"""For so much of training small text comes in only little by little."""


def make_page(rng: np.random.Generator, progress: float) -> Picture:
    """A page of a few bands, each lettered in its own way.

    Args:
        rng: decides everything.
        progress: how far training is, from 0 to 1: text is large at first.
    """
    width, height = (CELL * int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    least = SMALL[0] + (LARGE[0] - SMALL[0]) * max(0.0, 1 - progress / _LARGE_FIRST)
    panels: list[tuple[Panel, int, int]] = []
    top, bands = 0, int(rng.integers(1, 4))
    for band in range(bands):
        bottom = height if band == bands - 1 else top + (height - top) // (bands - band)
        size = round(math.exp(rng.uniform(math.log(least), math.log(LARGE[1]))))
        look = random_look(rng, Sign if rng.random() < 0.3 else Form, SEEN, size)
        panels.append((_filled(Panel(look, rng), width, bottom - top), 0, top))
        top = bottom
    picture = Image.new("RGB", (width, height))
    draw(picture, panels)
    if rng.random() < 0.25:
        picture = add_grain(picture, rng)
    grid = lay_out(picture.size)
    regions, written = [], []
    for panel, _, y in panels:
        for mark in panel.marks:
            assert isinstance(mark, Word)
            written.append((mark, 0, y))
            x0, y0, x1, y1 = mark.box
            box, text = (x0, y0 + y, x1, y1 + y), mark.text.lower()
            regions.append(
                Region(
                    covered=covered(box, grid),
                    center=grid.at((x0 + x1) / 2, (box[1] + box[3]) / 2),
                    side=side_in_cells((x1 - x0) * (y1 - y0), grid),
                    name=text if text in NAME_INDEX else None,
                    number=int(text) if text.isdecimal() else None,
                )
            )
    return label(np.array(picture), grid, regions, [], spell(grid, written))


def _filled(panel: Panel, width: int, height: int) -> Panel:
    """Writes line after line, from wherever the first begins, until the band is full."""
    rng, em = panel.rng, panel.em
    down = int(rng.integers(0, panel.row // 2 + 1)) + math.ceil(0.7 * em)
    while down + 0.6 * em < height:
        x = int(rng.integers(1, em + 1))
        while True:
            if rng.random() < NUMBERS:
                text = str(int(rng.integers(10 ** int(rng.integers(0, 3)), 1000)))[: int(rng.integers(1, 4))]
            else:
                text = VOCABULARY[int(rng.integers(len(VOCABULARY)))]
            length = panel.length(text)
            if x + length >= width:
                break
            panel.word(f"{len(panel.marks)}", text, x, down)
            x += length + int(rng.integers(max(3, em // 4), max(5, em)))
        down += panel.row
    panel.close(width, height)
    return panel
