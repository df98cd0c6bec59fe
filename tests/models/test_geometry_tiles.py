"""InternVL, Aya Vision, Ovis2: one bright patch painted into a black picture is found where its token's box says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from foveate.models.tiles import arrangements, misfits
from tests.encoding import encode
from tests.tiny import IMAGE, ROWS, SIDE
from tests.tiny.tiles import COLUMN, GRID, LINE, TOKENS, write_run, write_tagged
from tests.tiny.tiles import END as LAST
from tests.tiny.tiles import START as FIRST

try:  # the PIL processors: no torchvision needed
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil as OcrImages
    from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil as OvisImages
except ImportError:  # before 5.10
    from transformers import GotOcr2ImageProcessor as OcrImages  # type: ignore[assignment]
    from transformers import Ovis2ImageProcessor as OvisImages  # type: ignore[assignment]

FAMILIES = [family for family in ("internvl", "aya_vision", "ovis2") if family in ROWS]
CELL = 28
"""Pixels of a tile per token: two patches of 14."""
SIZES = [(300, 420), (420, 300), (333, 333), (160, 640), (640, 160), (97, 131), (50, 50)]


def processed(family: str, picture: Image.Image) -> tuple[Tensor, list[int], tuple[int, int] | None]:
    """Tiles, the ids that stand for them, and the grid where the processor tells it."""
    images = OvisImages if family == "ovis2" else OcrImages
    output = images(size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=6)(
        picture, return_tensors="pt"
    )
    tiles = output["pixel_values"]
    if family != "ovis2":
        write = write_run if family == "internvl" else write_tagged
        return tiles, write(0, len(tiles) * TOKENS), None
    rows, columns = output["grids"][0].tolist()
    line = [token for _ in range(columns) for token in (*[IMAGE] * TOKENS, COLUMN)][:-1]
    crops = [token for _ in range(rows) for token in (*line, LINE)][:-1] if rows * columns > 1 else []
    return tiles, [FIRST, *[IMAGE] * TOKENS, GRID, *crops, LAST], (rows, columns)


def geometry_of(family: str, picture: Image.Image) -> tuple[Any, Tensor, tuple[int, int] | None]:
    tiles, ids, grid = processed(family, picture)
    prompt = torch.tensor([[1, *ids, 5]])
    inputs = {"pixel_values": tiles, "input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    (image,) = encode(ROWS[family].make("sdpa"), inputs, saliency=False)
    return image.tokens.geometry, tiles, grid


def speckled(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(5).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def painted(size: tuple[int, int], box: Tensor) -> Image.Image:
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    left, top, right, bottom = (int(value) for value in box.round().tolist())
    pixels[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
    return Image.fromarray(pixels)


def brightest(tile: Tensor) -> tuple[int, int]:
    means = tile.mean(0).unfold(0, CELL, CELL).unfold(1, CELL, CELL).mean((-1, -2))
    return divmod(int(means.argmax()), means.shape[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_boxes(family: str, size: tuple[int, int]) -> None:
    geometry, tiles, grid = geometry_of(family, speckled(size))
    assert len(geometry) == len(tiles) * TOKENS
    assert grid is None or geometry.image_size == (grid[0] * SIDE, grid[1] * SIDE)
    assert not geometry.cropped
    boxes = geometry.boxes_in(*size)
    for token in range(len(geometry)):
        seen, tiles, _ = geometry_of(family, painted(size, boxes[token]))
        assert seen.image_size == geometry.image_size  # the same arrangement was found again
        view = int(geometry.view[token])
        tile = tiles[view if family == "ovis2" else view - 1]  # the whole view comes first, or last
        assert brightest(tile) == (int(geometry.row[token]), int(geometry.column[token])), token


@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_views(family: str) -> None:
    """Tokens stand tile after tile, as in the prompt; view 0 is always the whole picture."""
    geometry, tiles, _ = geometry_of(family, speckled((420, 300)))
    assert len(tiles) > 2
    views = list(range(len(tiles))) if family == "ovis2" else [*range(1, len(tiles)), 0]
    assert geometry.view.view(-1, TOKENS)[:, 0].tolist() == views
    whole = geometry.boxes[geometry.view == 0]
    height, width = geometry.image_size
    assert whole[0].tolist() == [0, 0, width / 2, height / 2]


def test_a_single_tile_is_view_0() -> None:
    for family in FAMILIES:
        geometry, tiles, _ = geometry_of(family, speckled((50, 50)))
        assert len(tiles) == 1
        assert geometry.view.tolist() == [0] * TOKENS
        assert geometry.image_size == (SIDE, SIDE)


def test_arrangements() -> None:
    assert arrangements(1) == arrangements(2) == [(1, 1)]
    assert arrangements(7) == [(2, 3), (3, 2), (1, 6), (6, 1)]
    assert arrangements(10)[0] == (3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 6), (6, 1)])
def test_only_the_right_arrangement_looks_like_the_whole(grid: tuple[int, int], dtype: torch.dtype) -> None:
    picture = torch.rand(3, grid[0] * SIDE, grid[1] * SIDE, generator=torch.Generator().manual_seed(0))
    crops = picture.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).flatten(0, 1)
    whole = torch.nn.functional.interpolate(picture[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0]
    known = arrangements(7)
    errors = misfits(crops.to(dtype), whole.to(dtype), known)
    assert known[int(errors.argmin())] == grid
    assert errors.min() < 0.5 * errors.sort().values[1]
