"""The world of documents: a page, its picture, and what is asked about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.evaluation.documents.faces import SEEN, UNSEEN
from foveate.evaluation.documents.page import SIDES, Page, compose
from foveate.evaluation.documents.papers import PAPERS, Ask
from foveate.evaluation.drawn import Asked, Drawing, World, begun

#: Read a number or a word; compare numbers or lengths; find by place.
KINDS = ("number", "word", "comparison", "place")

#: Split -> families of fonts.
FONTS: dict[str, tuple[str, ...]] = {"train": SEEN, "test": SEEN, "style": UNSEEN}

#: Most questions of one kind about one document, on a sparse page and on a cluttered one.
_MOST = {False: 2, True: 1}


@dataclass(frozen=True)
class Sample:
    """A drawn page. ``asks`` are (number of the panel, question); ``questions`` the same with boxes in pixels."""

    page: Page
    picture: Image.Image
    asks: tuple[tuple[int, Ask], ...]
    questions: tuple[Asked, ...]
    rng: np.random.Generator


def make_sample(split: str, seed: int, index: int, *, clutter: bool | None = None, most: int = SIDES[1]) -> Sample:
    """Page number ``index`` of a split and seed.

    Every second one is cluttered, unless ``clutter`` says otherwise, and the kinds of documents take turns. No side has
    more than ``most`` pixels: what trains may begin with smaller pictures, of smaller text and fewer entries.
    """
    rng, clutter = begun(split, seed, index, clutter)
    page = compose(rng, clutter, index // 2 % len(PAPERS), FONTS[split], most)
    asks = tuple(_chosen(page, rng))
    return Sample(page, page.draw(), asks, tuple(_asked(page, *one) for one in asks), rng)


def _chosen(page: Page, rng: np.random.Generator) -> list[tuple[int, Ask]]:
    """A few questions of every kind about every document."""
    chosen = []
    for number, paper in enumerate(page.papers):
        left = dict.fromkeys(KINDS, _MOST[page.clutter])
        asks = list(paper.ask(rng))
        for i in rng.permutation(len(asks)):
            ask = asks[i]
            left[ask.kind] -= 1
            if left[ask.kind] >= 0:
                chosen.append((number, ask))
    return chosen


def _asked(page: Page, number: int, ask: Ask) -> Asked:
    boxes = [list(page.box(number, key)) for key in dict.fromkeys(ask.keys)]
    return Asked(ask.text, ask.answers, ask.kind, page.size(number, ask), boxes)


def _drawn(split: str, seed: int, index: int) -> Drawing:
    sample = make_sample(split, seed, index)
    return Drawing(sample.picture, sample.questions, sample.page.clutter, sample.rng)


DOCUMENTS = World("documents", KINDS, core=KINDS, drawn=_drawn, sized=KINDS, located=KINDS, written=KINDS)
