"""Scenes as samples, for training and for files: ordinary pictures and one JSONL of questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.evaluation.drawn import Asked, Drawing, World, begun
from foveate.evaluation.scenes.artwork import STYLES
from foveate.evaluation.scenes.asking import KINDS, Question, ask
from foveate.evaluation.scenes.composing import ZOOM, Scene, compose
from foveate.evaluation.scenes.drawing import draw


@dataclass(frozen=True)
class Sample:
    """A drawn scene with its questions: what training and the files are both made of."""

    scene: Scene
    picture: Image.Image
    boxes: list[list[int]]
    questions: list[Question]
    rng: np.random.Generator


def make_sample(split: str, seed: int, index: int, *, clutter: bool | None = None) -> Sample:
    """Scene number ``index`` of a split and seed. Every second one is cluttered, unless ``clutter`` says otherwise."""
    rng, clutter = begun(split, seed, index, clutter)
    scene = compose(rng, clutter)
    picture, boxes = draw(scene, rng.uniform(*ZOOM), STYLES[split], rng)
    return Sample(scene, picture, boxes, ask(scene, rng), rng)


def _drawn(split: str, seed: int, index: int) -> Drawing:
    sample = make_sample(split, seed, index)
    questions = tuple(
        Asked(one.text, one.answers, one.kind, one.size, [sample.boxes[i] for i in one.things])
        for one in sample.questions
    )
    return Drawing(sample.picture, questions, sample.scene.clutter, sample.rng)


SCENES = World(
    "scenes",
    KINDS,
    core=("presence", "attribute", "reading", "biggest"),  # what the bundled model answers well
    drawn=_drawn,
    halves={"presence": ("yes", "no")},
    sized=("presence", "attribute", "reading"),
    located=("presence", "attribute", "reading"),  # which name it, once
    written=("reading", "biggest", "counting", "position", "relation"),
)
