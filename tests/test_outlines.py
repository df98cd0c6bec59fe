"""What was kept is told from what was dropped on any picture, by the contrast of the drawn pixels (WCAG 2.2)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import show
from foveate.colour_scale import scale, told_apart
from foveate.evaluation.documents import make_sample
from foveate.evaluation.worlds import STILL
from foveate.tokens import Geometry, Selection
from tests.test_show import grid, picture, routed, selection

ENOUGH = 3.0
"""Of what is no text, against what lies beside it: 1.4.11 of WCAG 2.2."""
ROWS, COLUMNS = 10, 12


def luminance(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) in 0 to 255 to relative luminance, as WCAG defines it."""
    parts = np.asarray(pixels, dtype=float) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    light, dark = np.maximum(one, other), np.minimum(one, other)
    return (light + 0.05) / (dark + 0.05)


def scattered(size: tuple[int, int], seed: int = 0) -> tuple[Selection, np.ndarray]:
    """A selection of every fifth patch or so, in clusters and alone, and (height, width) bool of where they lie."""
    width, height = size
    kept = np.random.default_rng(seed).random((ROWS, COLUMNS)) < 0.2
    tokens = torch.tensor(grid(0, ROWS, COLUMNS, (0, 0, width, height)))
    geometry = Geometry(
        *(tokens[:, column].long() for column in range(3)), tokens[:, 3:].float(), (height, width), ((ROWS, COLUMNS),)
    )
    edges = [
        np.rint(np.arange(count + 1) * side / count).astype(int) for count, side in ((ROWS, height), (COLUMNS, width))
    ]
    clear = np.zeros((height, width), dtype=bool)
    for row, column in np.argwhere(kept):
        clear[edges[0][row] : edges[0][row + 1], edges[1][column] : edges[1][column + 1]] = True
    return Selection(torch.from_numpy(np.flatnonzero(kept)), geometry), clear


def across_borders(shown: np.ndarray, clear: np.ndarray, reach: int) -> np.ndarray:
    """(n, reach + 2): luminance from the last kept pixel outwards, wherever a kept patch ends well within the picture
    and nothing else is kept so near."""
    lines = []
    bright = luminance(shown)
    for turns in range(4):
        light, mask = np.rot90(bright, turns), np.rot90(clear, turns)
        beside = mask.copy()  # and what is beside a line, whose own outline would meet it
        for far in range(1, reach + 2):
            beside[far:] |= mask[:-far]
            beside[:-far] |= mask[far:]
        last = mask[:, : -reach - 1]
        for offset in range(1, reach + 2):
            last = last & ~beside[:, offset : mask.shape[1] - reach - 1 + offset]
        rows, columns = np.nonzero(last)
        lines.append(light[rows[:, None], columns[:, None] + np.arange(reach + 2)])
    return np.concatenate(lines)


def contrasted(image: Image.Image, **options: bool) -> tuple[float, float]:
    """Of all places at the border of a kept patch, the part where a line has enough contrast against the kept pixel
    beside it, and that where one has against the dropped pixel."""
    chosen, clear = scattered(image.size)
    shown = np.asarray(show.overlay(image, chosen, **options))
    assert (shown[clear] == np.asarray(image)[clear]).all()
    wide = max(1, round(max(image.size) / 360))
    borders = across_borders(shown, clear, 2 * wide)
    assert len(borders) > 100
    kept, lines, dropped = borders[:, :1], borders[:, 1:-1], borders[:, -1:]
    return tuple(float((contrast(lines, beside).max(1) >= ENOUGH).mean()) for beside in (kept, dropped))  # type: ignore[return-value]


def plain(value: int) -> Image.Image:
    return Image.new("RGB", (360, 300), (value, value, value))


@pytest.mark.parametrize("value", [0, 60, 110, 128, 190, 255])
def test_any_plain_picture(value: int) -> None:
    assert contrasted(plain(value)) == (1.0, 1.0)
    assert max(contrasted(plain(value), outline=False)) == 0.0  # which is what the outline is for


def test_any_colour() -> None:
    for colour in itertools.product((0, 128, 255), repeat=3):
        assert contrasted(Image.new("RGB", (180, 150), colour)) == (1.0, 1.0), colour


def test_a_busy_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert contrasted(Image.fromarray(noise)) == (1.0, 1.0)


@pytest.mark.parametrize("world", STILL.values(), ids=lambda world: world.name)
def test_drawn_pictures(world) -> None:
    for index in range(6):
        assert contrasted(world.draw(3, "test", index).picture) == (1.0, 1.0), index


def test_screens() -> None:
    """Pages that hold a screen with buttons, which draws frames of its own."""
    found = 0
    for index in range(60):
        sample = make_sample("test", 5, index)
        if any("screen" in type(part).__module__ for part in vars(sample.page).get("papers", ())):
            found += 1
            assert contrasted(sample.picture) == (1.0, 1.0), index
    assert found >= 3


def test_a_white_page_and_a_black_picture_fade_to_grey() -> None:
    """What was kept is the lighter on a white page, and the darker in a black picture."""
    for value, sign in ((255, -1), (0, 1)):
        chosen, clear = scattered((360, 300))
        shown = luminance(np.asarray(show.overlay(plain(value), chosen, outline=False)))
        assert contrast(shown[clear].mean(), shown[~clear].mean()) > 1.5
        assert np.sign(shown[~clear].mean() - shown[clear].mean()) == sign


def test_the_outline_surrounds_what_is_kept_and_nothing_else() -> None:
    image = plain(255)
    chosen, clear = scattered(image.size)
    shown = np.asarray(show.overlay(image, chosen)).astype(int)
    faded = np.asarray(show.overlay(image, chosen, outline=False)).astype(int)
    drawn = (shown != faded).any(axis=2)
    near = np.zeros_like(clear)
    for row, column in np.argwhere(clear):
        near[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = True
    assert (drawn == (near & ~clear)).all()


def test_colour_bars_have_no_number_twice() -> None:
    for low, high in ((0.0101, 0.0104), (0.0, 1.0), (3e-9, 3.00001e-9), (-0.2, 0.3), (1234.0, 1234.5)):
        marks = scale(np.array([low, (low + high) / 2, high]))[2]
        labels = told_apart(marks)
        assert len(set(labels)) == len(marks) and all(float(a) < float(b) for a, b in itertools.pairwise(labels))
        if len(marks) == 3:  # each is nearer to its own number than to another one
            assert [min(marks, key=lambda mark: abs(mark - float(label))) for label in labels] == marks


def test_flat_maps_are_flat() -> None:
    assert scale(np.full(5, 0.3))[2] == [pytest.approx(0.3)]
    low, high, marks = scale(np.array([1.0, 1.01]))
    assert high - low == pytest.approx(0.101) and (low + high) / 2 == pytest.approx(1.005) and len(marks) == 3
    assert scale(np.array([0.2, 0.4]))[:2] == (0.2, 0.4)
    assert scale(np.zeros(3)) == (-0.5, 0.5, [0.0]) == scale(np.zeros(0))
    # On the panels: a difference of 2 % takes less than a fifth of the lightness that one of 200 % does.
    spans = []
    for factor in (1.02, 3.0):
        figure = show.figure(plain(255), selection([0], {"saliency": torch.linspace(1.0, factor, 12)}))
        maps = [axes for block in figure.subfigs for axes in block.axes if axes.get_title(loc="left")][1::2]
        shown = [np.asarray(axes.get_images()[0].get_array()).mean(axis=2) for axes in maps]
        spans.append(max(map(np.max, shown)) - min(map(np.min, shown)))
    assert spans[0] < spans[1] / 5


@pytest.mark.parametrize("stripes", [False, True])
def test_a_figure_says_what_outline_grey_and_stripes_mean(stripes: bool) -> None:
    figure = show.figure(picture(), routed([0], (0, 1)) if stripes else selection([0]))
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ["kept", "dropped", *(["not encoded"] if stripes else [])]
