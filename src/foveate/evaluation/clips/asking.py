"""Questions about a play, in plain English, with their answers, and where and when the answer can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.clips.composing import Actor, Play, Spell
from foveate.evaluation.scenes.world import CLASSES, NUMBER_WORDS, with_article

KINDS = ("shown", "what", "when", "where", "color", "often")

_ONCE = 1.0
"""Seconds after something began in which its beginning can be seen."""
_CLEARLY_ASIDE = 0.12
"""Least distance from the middle for left and right, as a part of the stage."""
_CLEARLY_FIRST = 1.0
"""Least seconds between two beginnings of which one is the first."""


@dataclass(frozen=True)
class Question:
    """A question about a play.

    Attributes:
        seen: who is asked about, and when the answer can be seen of each; empty when it is nowhere.
        size: "small" or "large", the size of what is asked about, of the smallest where there are several; "none" when
            it is never there.
    """

    text: str
    answers: tuple[str, ...]
    kind: str
    seen: tuple[tuple[Actor, Spell], ...]

    @property
    def size(self) -> str:
        sizes = {actor.size for actor, _ in self.seen}
        return "small" if "small" in sizes else "large" if sizes else "none"


def ask(play: Play, rng: np.random.Generator) -> list[Question]:
    """Ask about a play. As many questions of what is shown are answered yes as no."""
    by_part = {part: [actor for actor in play.actors if actor.part == part] for part in
               ("still", "visitor", "mover", "turner", "blinker")}  # fmt: skip
    askers = (_shown(play, rng), _appearing(play, by_part["visitor"], rng), _moving(by_part["mover"], rng))
    asked = [question for asker in askers for question in asker]
    asked += [_turning(actor, rng) for actor in by_part["turner"]]
    return asked + [_blinking(actor, rng) for actor in by_part["blinker"]]


def _pick(rng: np.random.Generator, *texts: str) -> str:
    return texts[rng.integers(len(texts))]


def _whole(actor: Actor) -> tuple[tuple[Actor, Spell], ...]:
    """Whenever it is there."""
    return tuple((actor, spell) for spell in actor.spells)


def _beginning(actor: Actor) -> tuple[tuple[Actor, Spell], ...]:
    start, end = actor.spells[0]
    return ((actor, (start, min(start + _ONCE, end))),)


def _shown(play: Play, rng: np.random.Generator) -> Iterator[Question]:
    """Of something that does something, where there is any, and of something that does not come."""
    if not play.actors:
        return
    forms = ("Is there {} in the video?", "Do you see {}?", "Is there {}?")
    actor = play.actors[0] if rng.random() < 0.5 else play.actors[rng.integers(len(play.actors))]
    yield Question(_pick(rng, *forms).format(with_article(actor.name)), ("yes",), "shown", _whole(actor))
    absent = [name for name in CLASSES if name not in {one.name for one in play.actors}]
    name = absent[rng.integers(len(absent))]
    yield Question(_pick(rng, *forms).format(with_article(name)), ("no",), "shown", ())


def _appearing(play: Play, visitors: list[Actor], rng: np.random.Generator) -> Iterator[Question]:
    """What, when and where: a blinker would do as well, so what appears is asked only where there is none."""
    alone = len(visitors) == 1 and not any(actor.part == "blinker" for actor in play.actors)
    for actor in visitors:
        start = actor.spells[0][0]
        if alone:
            text = _pick(rng, "What appears in the video?", "What appears and was not there before?")
            yield Question(text, (actor.name,), "what", _whole(actor))
        half = "first" if start < play.seconds / 2 else "second"
        text = f"Does the {actor.name} appear in the first or in the second half?"
        yield Question(text, (half, f"{half} half"), "when", _beginning(actor))
        x0, _, x1, _ = actor.box(start)
        aside = (x0 + x1) / 2 / play.width - 0.5
        if abs(aside) >= _CLEARLY_ASIDE:
            text = f"Does the {actor.name} appear on the left or on the right?"
            yield Question(text, ("right" if aside > 0 else "left",), "where", _beginning(actor))
    if len(visitors) == 2:
        one, other = visitors
        apart = other.spells[0][0] - one.spells[0][0]
        if abs(apart) >= _CLEARLY_FIRST:
            text = f"What appears first, the {one.name} or the {other.name}?"
            first = one if apart > 0 else other
            yield Question(text, (first.name,), "when", _beginning(one) + _beginning(other))


def _moving(movers: list[Actor], rng: np.random.Generator) -> Iterator[Question]:
    for actor in movers:
        assert actor.to is not None and actor.when is not None
        seen = ((actor, actor.when),)
        if len(movers) == 1:
            yield Question(_pick(rng, "What moves in the video?", "Which object moves?"), (actor.name,), "what", seen)
        way = actor.to[0] - actor.corner[0], actor.to[1] - actor.corner[1]
        axis = int(way[0] == 0)
        words = (("left", "right"), ("up", "down"))[axis]
        text = f"Does the {actor.name} move {'to the left or to the right' if axis == 0 else 'up or down'}?"
        yield Question(text, (words[int(way[axis] > 0)],), "where", seen)


def _turning(actor: Actor, rng: np.random.Generator) -> Question:
    assert actor.turned is not None and actor.when is not None and actor.color is not None
    if rng.random() < 0.5:
        text = f"What color does the card of the {actor.name} turn?"
        return Question(text, (actor.turned,), "color", ((actor, actor.when),))
    text = f"What color is the card of the {actor.name} at first?"
    return Question(text, (actor.color,), "color", ((actor, (0.0, actor.when[0])),))


def _blinking(actor: Actor, rng: np.random.Generator) -> Question:
    times = len(actor.spells)
    text = _pick(rng, "How often does the {} appear?", "How many times does the {} appear?")
    return Question(text.format(actor.name), (str(times), NUMBER_WORDS[times]), "often", _whole(actor))
