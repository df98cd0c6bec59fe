"""Training samples: drawn by the suite's own code, seen through the model's own views, labelled patch by patch."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from PIL import Image

from foveate.evaluation.scenes.asking import Question
from foveate.evaluation.scenes.files import make_sample
from foveate.evaluation.scenes.world import COLORS
from training.views import TOKENS, Canvas, centers, coverage, lay_out, packed_order, views
from training.words import DIGITS, ID, THINGS

IGNORE = -100
NOTHING = len(THINGS)
#: A patch belongs to a thing that covers this part of it, or this part of what the thing covers of its fullest patch.
_COVERED = 0.18
_OF_FULLEST = 0.4
#: A patch less covered than this shows background; between the two it is not used.
_UNCOVERED = 0.05
_LEAST_CENTER = 0.04
_COLOR_INDEX = {name: i for i, name in enumerate(COLORS)}
_THING_INDEX = {name: i for i, name in enumerate(THINGS)}


@dataclass(frozen=True)
class View:
    """One training picture, with T = views * TOKENS patches.

    Attributes:
        pixels: (views, VIEW, VIEW, 3) uint8.
        order: (N,) the patch behind each visual token of the prompt, -1 for newlines.
        thing: (T,) index in ``THINGS``, ``NOTHING`` or ``IGNORE``.
        color, digit: (T,) index in ``COLORS`` and ``DIGITS``, or ``IGNORE``.
        center: (T,) whether the patch holds the middle of its thing.
        side: (T,) side of the patch's thing in hundreds of units, 0 where there is none.
        share: (views, len(THINGS) + 1) how much of each view is of which thing.
        questions: what can be asked.
        names: names of the scene's things.
    """

    pixels: np.ndarray
    order: np.ndarray
    thing: np.ndarray
    color: np.ndarray
    digit: np.ndarray
    center: np.ndarray
    side: np.ndarray
    share: np.ndarray
    questions: list[Question]
    names: list[str]


def make_view(seed: int, index: int, canvases: tuple[Canvas, ...], clutter: float) -> View:
    """Draw training scene number ``index``; it is cluttered with probability ``clutter``."""
    chance = np.random.default_rng([seed, index, 7]).random()
    sample = make_sample("train", seed, index, clutter=bool(chance < clutter))
    picture = sample.picture
    if sample.rng.random() < 0.4:
        picture = through_jpeg(picture, int(sample.rng.integers(75, 96)))
    layout = lay_out(*picture.size, canvases)
    things = sample.scene.things
    covered = coverage(sample.scene, layout)
    tokens = layout.views * TOKENS
    label = np.full(tokens, NOTHING, np.int64)
    color = np.full(tokens, IGNORE, np.int64)
    digit = np.full(tokens, IGNORE, np.int64)
    center = np.zeros(tokens, np.float32)
    side = np.zeros(tokens, np.float32)
    share = np.zeros((layout.views, NOTHING + 1), np.float32)
    if things:
        owner, most = covered.argmax(0), covered.max(0)
        label[most >= _UNCOVERED] = IGNORE
        held = centers(sample.scene, layout)
        for i, thing in enumerate(things):
            # The fullest patch is looked for in the base view and in the crops apart.
            fullest = np.repeat([covered[i, :TOKENS].max(), covered[i, TOKENS:].max()], [TOKENS, tokens - TOKENS])
            own = (owner == i) & (most >= np.minimum(_COVERED, np.maximum(_OF_FULLEST * fullest, _LEAST_CENTER)))
            label[own] = _THING_INDEX[thing.name]
            side[own] = thing.side / 100
            if thing.color is not None:
                color[own] = _COLOR_INDEX[thing.color]
            if thing.number is not None:
                # A small sign's number cannot be read in the base view, where it is about ten pixels high.
                legible = own.copy()
                legible[:TOKENS] &= thing.size == "large"
                digit[legible] = thing.number
            center[held[i] & (owner == i)] = 1
            share[:, _THING_INDEX[thing.name]] += covered[i].reshape(layout.views, TOKENS).sum(1)
    share[:, NOTHING] = share.sum(1) < 0.3
    share /= share.sum(1, keepdims=True)
    return View(
        pixels=views(picture, layout),
        order=packed_order(layout),
        thing=label,
        color=color,
        digit=digit,
        center=center,
        side=side,
        share=share,
        questions=sample.questions,
        names=[thing.name for thing in things],
    )


def through_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """The picture as it is after being saved as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def make_batch(seed: int, first: int, count: int, canvases: tuple[Canvas, ...], clutter: float) -> list[View]:
    """Scenes ``first`` to ``first + count - 1``."""
    return [make_view(seed, first + i, canvases, clutter) for i in range(count)]


Result = TypeVar("Result")


def ahead(work: Callable[..., Result], tasks: Iterator[tuple], workers: int) -> Iterator[Result]:
    """Results of ``work(*task)`` in order, computed by ``workers`` processes a few tasks ahead (0: here and now)."""
    if workers == 0:
        for task in tasks:
            yield work(*task)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, *task))
            if len(waiting) > 2 * workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


THING_IDS = [ID[name] for name in THINGS]
COLOR_IDS = [ID[name] for name in COLORS]
DIGIT_IDS = [ID[digit] for digit in DIGITS]
