"""Pictures of both worlds for training: drawn by the suites' own code, with what is where told by what drew it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from foveate.evaluation.documents.panel import Word
from foveate.evaluation.documents.papers import Ask
from foveate.evaluation.documents.sample import Sample as Document
from foveate.evaluation.documents.sample import make_sample as make_document
from foveate.evaluation.scenes.files import Sample as SceneSample
from foveate.evaluation.scenes.files import make_sample as make_scene
from foveate.evaluation.scenes.world import COLORS
from training.data import through_jpeg
from training.dynamic.clips import SCALES, Clip, make_clip
from training.dynamic.data import NAME_INDEX, Asked, Picture, Region, label, side_in_cells
from training.dynamic.grid import Grid, covered, lay_out, resized
from training.dynamic.letters import spell
from training.dynamic.pages import make_page
from training.dynamic.presets import Mix
from training.views import cover

#: Key of a mark on a document -> keys of what it is the value of; ``{}`` stands for what follows the first colon.
_VALUE_OF = {
    "value": ("label:{}",),
    "far": ("place:{}",),
    "way": ("place:{}",),
    "drawn": ("label:{}",),
    "sum": ("total",),
    "line": ("bus",),
}
_ROUNDS = 6
"""How often a document is asked everything once, each time about other entries."""
_BUTTONS = {"word": "button:{}", "button": "word:{}"}


def make_batch(seed: int, first: int, count: int, mix: Mix, progress: float) -> list[Picture | Clip]:
    """Pictures ``first`` to ``first + count - 1``.

    Args:
        seed, first, count: which pictures.
        mix: of what.
        progress: how far training is, from 0 to 1.
    """
    return [make_picture(seed, first + number, mix, progress) for number in range(count)]


def make_picture(seed: int, index: int, mix: Mix, progress: float) -> Picture | Clip:
    """Training picture number ``index``, or clip."""
    rng = np.random.default_rng([seed, index, 7])
    if mix.clips and rng.random() < mix.clips:
        return make_clip(seed, index, clutter=bool(rng.random() < 0.5), scale=float(rng.choice(SCALES)))
    if rng.random() < _between(mix.pages, progress):
        return make_page(rng)
    clutter = bool(rng.random() < _between(mix.clutter, progress))
    most = int(rng.choice(mix.sides, p=mix.often))
    if rng.random() < mix.documents:
        return _document(make_document("train", seed, index, clutter=clutter, most=most), mix.questions, rng)
    return _scene(make_scene("train", seed, index, clutter=clutter), most, rng)


def _between(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress


def _scene(sample: SceneSample, most: int, rng: np.random.Generator) -> Picture:
    picture = _at_most(_perhaps_jpeg(sample.picture, rng), most)
    scene = sample.scene
    grid = lay_out(picture.size, (scene.width, scene.height))
    edges = grid.edges()
    regions = [
        Region(
            covered=cover(thing, *edges).ravel(),
            center=grid.at(*thing.center),
            side=side_in_cells(thing.side**2, grid),
            name=thing.name,
            number=thing.number,
            color=thing.color,
        )
        for thing in scene.things
    ]
    asked = [Asked(one.text, one.answers[0], one.kind, one.things) for one in sample.questions]
    return label(resized(picture, grid), grid, regions, asked)


def _document(sample: Document, most: int, rng: np.random.Generator) -> Picture:
    picture = _perhaps_jpeg(sample.picture, rng)
    grid = lay_out(picture.size)
    regions: list[Region] = []
    places: dict[tuple[int, str], int] = {}
    for number, (panel, x, y) in enumerate(sample.page.panels):
        words = {mark.key: mark.text.lower() for mark in panel.marks if isinstance(mark, Word)}
        for mark in panel.marks:
            if mark.key:
                x0, y0, x1, y1 = mark.box
                places[number, mark.key] = len(regions)
                regions.append(_region(mark.key, words, (x0 + x, y0 + y, x1 + x, y1 + y), sample, number, grid))
    asked = [
        Asked(ask.text, ask.answers[0], ask.kind, tuple(places[number, key] for key in dict.fromkeys(ask.keys)))
        for number, ask in _asks(sample, most, rng)
    ]
    written = [(mark, x, y) for panel, x, y in sample.page.panels for mark in panel.marks if isinstance(mark, Word)]
    return label(resized(picture, grid), grid, regions, asked, spell(grid, written))


def _asks(sample: Document, most: int, rng: np.random.Generator) -> list[tuple[int, Ask]]:
    """At most so many questions about a document, by panel: the suite's own, then others that it could have asked."""
    asks = {(number, ask.text): ask for number, ask in sample.asks}
    for _ in range(_ROUNDS):
        if len(asks) >= most:
            break
        more = [(number, ask) for number, paper in enumerate(sample.page.papers) for ask in paper.ask(rng)]
        for place in rng.permutation(len(more)):
            number, ask = more[place]
            asks.setdefault((number, ask.text), ask)
    return [(number, ask) for (number, _), ask in asks.items()][:most]


def _region(
    key: str, words: dict[str, str], box: tuple[int, int, int, int], sample: Document, number: int, grid: Grid
) -> Region:
    """What a mark on a document is to be seen as."""
    kind, _, rest = key.partition(":")
    paper = sample.page.papers[number]
    text = words.get(key, "")
    color = None
    if kind in _BUTTONS:
        color = paper.buttons[int(rest)][1] or None  # type: ignore[attr-defined]
        text = text or words[_BUTTONS[kind].format(rest)]
    elif kind == "way":
        text = paper.ways[int(rest)][1]  # type: ignore[attr-defined]
    if kind == "cell":
        row, _, column = rest.partition(":")
        heads: tuple[str, ...] = (f"row:{row}", f"column:{column}")
    elif kind == "tick":
        heads = (f"option:{paper.ticked}",)  # type: ignore[attr-defined]
    else:
        heads = tuple(head.format(rest) for head in _VALUE_OF.get(kind, ()))
    x0, y0, x1, y1 = box
    return Region(
        covered=covered(box, grid),
        center=grid.at((x0 + x1) / 2, (y0 + y1) / 2),
        side=side_in_cells((x1 - x0) * (y1 - y0), grid),
        name=text if text in NAME_INDEX else None,
        number=int(text) if text.isdecimal() else None,
        color=color if color in COLORS else None,
        keys=tuple(words[head] for head in heads if words.get(head) in NAME_INDEX),
    )


def _perhaps_jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return through_jpeg(picture, int(rng.integers(75, 96))) if rng.random() < 0.4 else picture


def _at_most(picture: Image.Image, most: int) -> Image.Image:
    """The picture, made smaller if a side is longer than ``most`` pixels."""
    scale = most / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
