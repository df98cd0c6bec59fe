"""What is taken for a photograph: no drawn scene, and most of what looks like a photograph."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from foveate.bundled.photographs import features, looks_like_photograph
from foveate.evaluation.drawn import Split
from foveate.evaluation.worlds import get_world

SCENES = 100


def like_a_photograph(seed: int) -> Image.Image:
    """Dead leaves: discs of power-law sizes in front of one another, textured, through a lens and a sensor, as JPEG."""
    rng = np.random.default_rng(seed)
    height, width = 300, 400
    frequency = np.maximum(np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]), 1 / width)
    waves = np.fft.fft2(rng.standard_normal((height, width))) / frequency
    texture = np.fft.ifft2(waves).real
    texture /= texture.std()
    scene = np.full((height, width, 3), 110.0)
    y, x = np.mgrid[:height, :width]
    for _ in range(300):
        radius = min(120.0, 5 / np.sqrt(rng.random()))
        down, right = rng.uniform(0, height), rng.uniform(0, width)
        near = (abs(y[:, 0] - down) <= radius), (abs(x[0] - right) <= radius)
        box = np.ix_(*near)
        inside = np.hypot(x[box] - right, y[box] - down) < radius
        tone = rng.normal(110, 45) + rng.normal(0, 15, 3)
        made = tone + rng.uniform(3, 18) * np.roll(texture, rng.integers(0, 300, 2), (0, 1))[box][..., None]
        scene[box] = np.where(inside[..., None], made, scene[box])
    scene = scene * (0.7 + 0.6 * x / width)[..., None]
    lens = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))
    sensed = np.asarray(lens) + rng.normal(0, 3, (height, width, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(sensed, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=88)
    return Image.open(stream)


@pytest.mark.parametrize("split", ["test", "style"])
def test_no_drawn_scene_is_taken_for_one(split: Split) -> None:
    scenes = get_world("scenes")
    for index in range(SCENES):
        picture = scenes.draw(31, split, index).picture
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        assert not looks_like_photograph(picture) and not looks_like_photograph(Image.open(stream)), index


def test_what_looks_like_a_photograph_is_taken_for_one() -> None:
    assert sum(looks_like_photograph(like_a_photograph(seed)) for seed in range(12)) >= 10


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (8, 8), (20000, 20)])
def test_any_size_is_looked_at(size: tuple[int, int]) -> None:
    assert np.isfinite(features(Image.new("RGB", size, "red"))).all()
    assert not looks_like_photograph(Image.new("RGB", size, "red"))
