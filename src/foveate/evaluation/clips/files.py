"""Clips as samples: animated pictures without loss, and one JSONL of questions with their boxes and times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.evaluation.clips.asking import KINDS, Question, ask
from foveate.evaluation.clips.composing import RATE, Actor, Play, Spell, compose
from foveate.evaluation.clips.drawing import draw, pixel_box, times_of
from foveate.evaluation.drawn import Asked, Drawing, World, begun
from foveate.evaluation.scenes.artwork import STYLES

ZOOM = (1.0, 1.5)


@dataclass(frozen=True)
class Sample:
    """A drawn play with its questions; ``zoom`` is pixels per unit."""

    play: Play
    zoom: float
    frames: tuple[Image.Image, ...]
    questions: list[Question]
    rng: np.random.Generator


def make_sample(split: str, seed: int, index: int, *, clutter: bool | None = None) -> Sample:
    """Clip number ``index`` of a split and seed. Every second one is cluttered, unless ``clutter`` says otherwise."""
    rng, clutter = begun(split, seed, index, clutter)
    play = compose(rng, clutter)
    zoom = float(rng.uniform(*ZOOM))
    frames = draw(play, zoom, STYLES[split], rng)
    return Sample(play, zoom, frames, ask(play, rng), rng)


def places(play: Play, actor: Actor, spell: Spell, zoom: float) -> list[tuple[list[int], list[float]]]:
    """Where an actor is during a spell: boxes in pixels, and [start, end) of each in seconds."""
    found: list[tuple[list[int], list[float]]] = []
    for time in times_of(play):
        if spell[0] <= time < spell[1] and actor.is_there(time):
            box, end = pixel_box(actor, time, zoom), time + 1 / RATE
            if found and found[-1][0] == box and found[-1][1][1] == time:
                found[-1][1][1] = end
            else:
                found.append((box, [time, end]))
    return found


def _drawn(split: str, seed: int, index: int) -> Drawing:
    sample = make_sample(split, seed, index)
    questions = []
    for one in sample.questions:
        seen = [place for actor, spell in one.seen for place in places(sample.play, actor, spell, sample.zoom)]
        boxes, times = [box for box, _ in seen], [time for _, time in seen]
        questions.append(Asked(one.text, one.answers, one.kind, one.size, boxes, times))
    return Drawing(sample.frames[0], tuple(questions), sample.play.clutter, sample.rng, sample.frames, RATE)


CLIPS = World(
    "clips",
    KINDS,
    core=("what", "when", "where", "color", "often"),
    drawn=_drawn,
    halves={"shown": ("yes", "no")},
    sized=("what", "when", "where", "color", "often"),
    filmed=True,
)
