"""Pictures of documents that are drawn, and the counting of identical tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

pytest.importorskip("transformers.models.ovis2.image_processing_pil_ovis2")
pytest.importorskip("matplotlib")

from benchmarks.drawn_documents import KINDS
from benchmarks.identical_tiles import PROCESSORS, count, tiles_of


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=list(PROCESSORS))
def test_all_tiles_of_a_blank_picture_are_copies_and_none_of_noise(processor: Any) -> None:
    blank = Image.new("RGB", (1000, 1000), "white")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    tiles = len(tiles_of(processor, blank))
    assert tiles >= 5
    # A square fills the canvas, which has no border that would tell crops from the whole.
    assert count(processor, [blank]) == (tiles, tiles - 1)
    assert count(processor, [noise]) == (tiles, 0)
    assert count(processor, [blank, noise, blank]) == (3 * tiles, 2 * (tiles - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_a_picture(kind: str) -> None:
    first, again, other = (KINDS[kind](seed) for seed in (3, 3, 4))
    assert not ImageChops.difference(first, again).getbbox()
    assert first.size != other.size or ImageChops.difference(first, other).getbbox()
