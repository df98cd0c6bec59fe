"""Pictures by UUID: bounded by their pixels, the one used longest ago goes first."""

from __future__ import annotations

import threading

import numpy as np
import torch
from PIL import Image

from foveate.serving.picture_cache import PictureCache, pixel_bytes

SIDE = 10
BYTES = SIDE * SIDE * 3


def picture(color: str = "red") -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), color)


def test_bytes_of_pixels() -> None:
    assert pixel_bytes(picture()) == BYTES
    assert pixel_bytes(picture().convert("L")) == SIDE * SIDE
    assert pixel_bytes(np.zeros((SIDE, SIDE, 3), np.float32)) == 4 * BYTES
    assert pixel_bytes(torch.zeros(3, SIDE, SIDE)) == 4 * BYTES


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = PictureCache(2 * BYTES)
    kept = {name: picture(color) for name, color in (("a", "red"), ("b", "blue"), ("c", "green"))}
    cache.put("a", kept["a"])
    cache.put("b", kept["b"])
    assert cache.get("a") is kept["a"]
    cache.put("c", kept["c"])
    assert [cache.get(name) for name in "abc"] == [kept["a"], None, kept["c"]]
    assert cache.used == 2 * BYTES


def test_a_uuid_that_comes_again_takes_no_second_place() -> None:
    cache = PictureCache(2 * BYTES)
    cache.put("other", picture("blue"))
    for color in ("red", "green", "white"):
        cache.put("a", picture(color))
    assert cache.get("a").getpixel((0, 0)) == (255, 255, 255)
    assert cache.get("other") is not None
    assert cache.used == 2 * BYTES


def test_what_does_not_fit_is_not_kept_nor_what_it_stood_for() -> None:
    cache = PictureCache(BYTES)
    cache.put("a", picture())
    cache.put("a", picture().resize((SIDE, SIDE + 1)))
    assert (cache.get("a"), cache.used) == (None, 0)
    nothing = PictureCache(0)
    nothing.put("a", picture())
    assert nothing.get("a") is None


def test_many_threads() -> None:
    """Every picture that comes back is the one of its name, and the bound holds."""
    cache = PictureCache(5 * BYTES)
    wrong: list[object] = []

    def work(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for number in draw.integers(0, 20, 2000).tolist():
            found = cache.get(str(number))
            if found is None:
                cache.put(str(number), Image.new("RGB", (SIDE, SIDE), (number, 0, 0)))
            elif found.getpixel((0, 0)) != (number, 0, 0):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < cache.used <= 5 * BYTES
