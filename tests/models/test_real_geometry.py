"""Released checkpoints' geometry: one bright patch in a black picture changes the token whose box was painted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from foveate import versions
from tests.encoding import encode

real = pytest.importorskip("tests.tiny.real", reason="image processors without torchvision came with 5.10")
REAL = {
    **real.REAL,
    **pytest.importorskip("tests.tiny.real_packed").REAL,
    **pytest.importorskip("tests.tiny.real_rope").REAL,
}


def painted(size: tuple[int, int], box: Tensor) -> tuple[Image.Image, Tensor]:
    """The picture, and what of it is bright: (x0, y0, x1, y1) in whole pixels."""
    left, top, right, bottom = (int(value) for value in box.round().tolist())
    left, top = min(left, size[1] - 1), min(top, size[0] - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels), torch.tensor([left, top, right, bottom])


def speckled(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(5).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


# Stock Mistral 3 itself fails on an image of one token, as LightOnOCR does.
FAILS = [("mistral3", (28, 28)), ("lighton-ocr", (28, 28))]
ALIKE = {
    "qwen2-vl", "qwen3.5", "qwen2.5-omni", "qwen3-omni", "cohere-compass", "glm-4.6v", "glm-ocr", "glmga",
    "glm-5.3-flash", "hyperclova-x", "smolvlm-2.2b", "qianfan-ocr", "llava-next-video", "granite-vision", "lighton-ocr",
}  # fmt: skip
"""Cut as another one of these, which is shown pictures of all sizes. These are shown a few, and not the largest, on
which an encoder takes seconds."""
FEW = {(768, 1024), (28, 28)}
CASES = [
    (name, size)
    for name in REAL
    for size in real.SIZES
    if (name, size) not in FAILS and (name not in ALIKE or size in FEW)
]


def test_those_alike_are_there() -> None:
    assert transformers.__version__ != versions.NEWEST or REAL.keys() >= ALIKE


@pytest.mark.parametrize("name, size", CASES, ids=[f"{name}-{height}x{width}" for name, (height, width) in CASES])
def test_boxes(name: str, size: tuple[int, int]) -> None:
    row = REAL[name]
    model = row.make()
    inputs = row.inputs(model, speckled(size))
    (image,) = encode(model, inputs, saliency=False)
    assert size not in row.counts or image.placeholders == row.counts[size]
    geometry, patches = image.tokens.geometry, image.slots >= 0
    boxes = geometry.boxes_in(*size)
    black, white = (
        row.features(model, row.process(Image.new("RGB", size[::-1], colour)))[patches] for colour in ("black", "white")
    )
    span = (white - black).norm(dim=1)
    checked = 0
    few = 1 if len(geometry) > 8000 else 2 if size[0] > 2000 else 3  # an encoder's run for each
    for token in real.spots(geometry, few):
        sides = boxes[token, 2:] - boxes[token, :2]
        if sides.max() <= 0:  # nothing but padding
            continue
        picture, bright = painted(size, boxes[token])
        light = (row.features(model, row.process(picture))[patches] - black).norm(dim=1) / span
        light[geometry.view != geometry.view[token]] = 0
        light[(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)] = 0  # padding, which shows neither black nor white
        found = int(light.argmax())
        if sides.min() >= 6:
            assert found == token
        else:  # a pixel or two: as near as their rounding allows
            near = boxes[found].view(2, 2).mean(0) - bright.view(2, 2).float().mean(0)
            assert (near.abs() <= sides / 2 + 1).all()
        checked += 1
    assert checked
