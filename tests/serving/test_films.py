"""Videos in pieces: put together again they are what they were."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from foveate.models.encoded import NEWLINE, EncodedImage, grid_geometry
from foveate.serving import encoded_cache
from foveate.serving.features import PAGE, FeatureCache
from foveate.serving.films import joined, lengths
from foveate.tokens import VisualTokens

STEPS, ROWS, COLUMNS = 7, 3, 4
EACH = ROWS * COLUMNS


@pytest.mark.parametrize(
    "count, tokens, most, wanted",
    [(7, 12, 24, [2, 2, 2, 1]), (7, 12, 23, [1] * 7), (7, 12, 5, [1] * 7), (7, 12, 84, [7]), (1, 12, 999, [1])],
)
def test_lengths(count: int, tokens: int, most: int, wanted: list[int]) -> None:
    assert lengths(count, tokens, most) == wanted


def video(first: int, end: int, seconds: float | None, newline: bool) -> EncodedImage:
    """Some steps of one that is always the same, as an encoder gives them."""
    draw = torch.Generator().manual_seed(0)
    whole = {name: torch.randn(STEPS * EACH, width, generator=draw) for name, width in
             (("features", 8), ("keys", 5), ("encoded", 6), ("plane", 8), ("saliency", 1))}  # fmt: skip
    mine = {name: values[first * EACH : end * EACH] for name, values in whole.items()}
    boxes = torch.tensor([[0, 0, 56, 42]]).expand(end - first, -1)
    geometry = grid_geometry([(ROWS, COLUMNS)] * (end - first), boxes, (42, 56), torch.device("cpu"))
    tokens = VisualTokens(
        mine["features"], geometry.as_frames(seconds), mine["saliency"][:, 0].exp(), True, mine["keys"], mine["encoded"]
    )
    if not newline:
        return EncodedImage.of_patches(tokens, (mine["plane"],), "video")
    slots = torch.arange(len(tokens) + 1)
    slots[-1] = NEWLINE
    stream = torch.cat([tokens.features, torch.full((1, 8), 9.0)])
    return EncodedImage(tokens, len(slots), slots, torch.zeros_like(slots), stream, (), "video")


def same(one: object, other: object) -> bool:
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, part.name), getattr(other, part.name)) for part in dataclasses.fields(one)
        )
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("newline", [False, True])
@pytest.mark.parametrize("seconds", [None, 0.5])
@pytest.mark.parametrize("parts", [[7], [3, 3, 1], [1] * 7])
def test_joined(parts: list[int], seconds: float | None, newline: bool) -> None:
    """Also when the pieces have been in the cache."""
    cache, pieces, start = FeatureCache(64 * PAGE, "cpu"), [], 0
    for part in parts:
        encoded_cache.put(cache, start, video(start, start + part, seconds, newline))
        piece = encoded_cache.get(cache, start)
        assert piece is not None
        pieces.append(piece)
        start += part
    assert same(joined(pieces, seconds), video(0, STEPS, seconds, newline))
