"""Questions about a scene, in plain English, with their answers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.scenes.composing import Scene
from foveate.evaluation.scenes.world import CLASSES, NUMBER_WORDS, SIGN, plural, with_article

KINDS = ("presence", "attribute", "reading", "counting", "biggest", "position", "relation")

#: The biggest thing's side over the next one's must be at least this to be asked for.
_CLEARLY_BIGGER = 1.3
#: Least distance from the middle (position) and between two things (relation), as a part of the plane.
_CLEARLY_ASIDE = 0.12
_CLEARLY_APART = 0.2


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        things: indices in ``scene.things`` of what is asked about; empty when that is nowhere.
        size: "small" or "large", the size of what is asked about, of the smallest where there are several; "none" when
            what is asked about is not in the scene.
    """

    text: str
    answers: tuple[str, ...]
    kind: str
    size: str
    things: tuple[int, ...]


def ask(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Ask about a scene.

    As many presence questions are answered yes as no; the biggest thing is asked for only in sparse scenes, where one
    stands out; everything but counting and presence is asked only of things that are there once.
    """
    count = Counter(thing.name for thing in scene.things)
    single = [i for i, thing in enumerate(scene.things) if count[thing.name] == 1]
    rng.shuffle(single)

    def question(text: str, answers: tuple[str, ...], kind: str, *things: int) -> Question:
        sizes = {scene.things[i].size for i in things}
        size = "small" if "small" in sizes else "large" if sizes else "none"
        return Question(text, answers, kind, size, things)

    asked: list[Question] = []
    for asker in (_presence, _attribute, _reading, _counting, _biggest, _position, _relation):
        asked += [question(*parts) for parts in asker(scene, single, count, rng)]
    return asked


_Parts = Iterator[tuple]  # (text, answers, kind, *things)


def _pick(rng: np.random.Generator, *texts: str) -> str:
    return texts[rng.integers(len(texts))]


def _presence(scene: Scene, single: list[int], count: Counter[str], rng: np.random.Generator) -> _Parts:
    forms = ("Is there {}?", "Do you see {}?", "Is there {} in the picture?")
    present = list(count)
    # A sign is asked for as rarely when absent as it is among the things that are present.
    absent = [name for name in (*CLASSES, SIGN) if name not in count]
    pairs = min(2, len(present))
    for name in rng.choice(present, pairs, replace=False):
        things = (i for i, thing in enumerate(scene.things) if thing.name == name)
        yield (_pick(rng, *forms).format(with_article(str(name))), ("yes",), "presence", *things)
    for name in rng.choice(absent, pairs, replace=False):
        yield _pick(rng, *forms).format(with_article(str(name))), ("no",), "presence"


def _attribute(scene: Scene, single: list[int], count: Counter[str], rng: np.random.Generator) -> _Parts:
    for i in [i for i in single if scene.things[i].color][:2]:
        text = _pick(rng, "What color is the card of the {}?", "What color is the card behind the {}?")
        yield text.format(scene.things[i].name), (str(scene.things[i].color),), "attribute", i


def _reading(scene: Scene, single: list[int], count: Counter[str], rng: np.random.Generator) -> _Parts:
    for i in single:
        number = scene.things[i].number
        if number is not None:
            text = _pick(rng, "What number is on the sign?", "Which number is on the sign?")
            yield text, (str(number), NUMBER_WORDS[number]), "reading", i


def _counting(scene: Scene, single: list[int], count: Counter[str], rng: np.random.Generator) -> _Parts:
    groups = [name for name in count if count[name] > 1]
    names = groups or [scene.things[i].name for i in single if scene.things[i].name != SIGN]
    if names:
        name = names[0]
        things = (i for i, thing in enumerate(scene.things) if thing.name == name)
        text = _pick(rng, "How many {} are there?", "How many {} do you see?")
        yield (text.format(plural(name)), (str(count[name]), NUMBER_WORDS[count[name]]), "counting", *things)


def _biggest(scene: Scene, single: list[int], count: Counter[str], rng: np.random.Generator) -> _Parts:
    sides = sorted((thing.side for thing in scene.things), reverse=True)
    if scene.clutter or not sides or scene.things[0].size != "large":
        return
    if len(sides) == 1 or sides[0] >= _CLEARLY_BIGGER * sides[1]:
        yield (
            _pick(rng, "What is the biggest object?", "Which object is the biggest?"),
            (scene.things[0].name,),
            "biggest",
            0,
        )


def _position(scene: Scene, single: list[int], count: Counter[str], rng: np.random.Generator) -> _Parts:
    across = bool(rng.random() < 0.5)
    extent = scene.width if across else scene.height
    words, text = (("left", "right"), "Is the {} on the left or on the right?")
    if not across:
        words, text = (("top", "bottom"), "Is the {} at the top or at the bottom?")
    for i in single:
        aside = scene.things[i].center[0 if across else 1] / extent - 0.5
        if abs(aside) >= _CLEARLY_ASIDE:
            yield text.format(scene.things[i].name), (words[int(aside > 0)],), "position", i
            return


def _relation(scene: Scene, single: list[int], count: Counter[str], rng: np.random.Generator) -> _Parts:
    axis = int(rng.integers(2))
    extent = (scene.width, scene.height)[axis]
    before, after = (("to the left of", "to the right of"), ("above", "below"))[axis]
    for i, j in itertools.pairwise(single):
        apart = (scene.things[j].center[axis] - scene.things[i].center[axis]) / extent
        if abs(apart) < _CLEARLY_APART:
            continue
        word, true = (before, apart > 0) if rng.random() < 0.5 else (after, apart < 0)
        text = f"Is the {scene.things[i].name} {word} the {scene.things[j].name}?"
        yield text, ("yes" if true else "no",), "relation", i, j
        return
