"""Pages full of words and numbers that say nothing: to learn to read from, since a document is mostly paper.

They begin easy: capitals of one font and size that stand where patches stand. Patches are seen as they are cut, and a
letter that may be cut anywhere looks different every time: so begun, no letter was told from another after 500 steps
(9 % right, as many as are an "a"), and 85 % after 80 steps of easy pages.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from PIL import Image

from foveate.evaluation.documents.faces import SEEN
from foveate.evaluation.documents.page import random_look
from foveate.evaluation.documents.panel import LARGE, SMALL, Panel, Word, draw
from foveate.evaluation.documents.papers import Form, Sign
from foveate.evaluation.documents.words import VOCABULARY
from foveate.evaluation.textures import add_grain
from training.dynamic.data import NAME_INDEX, Picture, Region, label, side_in_cells
from training.dynamic.grid import CELL, PATCH, covered, lay_out
from training.dynamic.letters import spell

SIDES = (5, 9)
"""Cells of the shortest and of the longest side."""
NUMBERS = 0.3
"""How often a number is written."""
_EASY = "dejavu mono", 23
"""The font and size of the first pages, pixels: its letters are as wide as a patch."""


def make_page(rng: np.random.Generator, hard: float = 1.0) -> Picture:
    """A page of a few bands, each lettered in its own way.

    Args:
        rng: decides everything.
        hard: from 0, where letters lie in patches, to 1, where they are as in documents. Bands differ by half of it.
    """
    width, height = (CELL * int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    panels: list[tuple[Panel, int, int]] = []
    bands = int(rng.integers(1, 4))
    tops = [height * band // bands // CELL * CELL for band in range(bands + 1)]
    for top, bottom in pairwise(tops):
        harder = min(1.0, hard * rng.uniform(0.5, 1.5)) if hard < 1 else 1.0
        family, easy_size = _EASY
        least, most = (easy_size + (end - easy_size) * harder for end in (SMALL[0], LARGE[1]))
        size = round(math.exp(rng.uniform(math.log(least), math.log(most))))
        families = SEEN if rng.random() < harder else (family,)
        look = random_look(rng, Sign if rng.random() < 0.3 else Form, families, size)
        if rng.random() >= harder:
            look = replace(look, case="upper")
        panels.append((_filled(Panel(look, rng), width, bottom - top, harder), 0, top))
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


def _filled(panel: Panel, width: int, height: int, hard: float) -> Panel:
    """Writes line after line until the band is full. Words and lines begin where a patch does, or up to ``hard`` of one
    behind."""
    rng, em = panel.rng, panel.em

    def placed(least: float) -> int:
        return math.ceil(least / PATCH) * PATCH + int(rng.integers(0, round(PATCH * hard) + 1))

    down = placed(0.5 * em)
    while down + 0.6 * em < height:
        x = int(rng.integers(0, round(em * hard) + 1))
        while True:
            if rng.random() < NUMBERS:
                text = str(int(rng.integers(10 ** int(rng.integers(0, 3)), 1000)))[: int(rng.integers(1, 4))]
            else:
                text = VOCABULARY[int(rng.integers(len(VOCABULARY)))]
            length = panel.length(text)
            if x + length >= width:
                break
            panel.word(f"{len(panel.marks)}", text, x, down)
            gap = int(rng.integers(max(3, em // 4), max(5, em)))
            x = x + length + gap if rng.random() < hard else placed(x + length + em // 4)
        down = down + panel.row if rng.random() < hard else placed(down + 1.1 * em)
    panel.close(width, height)
    return panel
