"""Encoded images in a ``FeatureCache``: what they hold of tensors, and the rest as a note."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from foveate.models.encoded import NEWLINE, EncodedImage
from foveate.serving.features import FeatureCache
from foveate.tokens import Geometry, VisualTokens

_PLACES = ("view", "row", "column", "boxes")
_NOTHING = torch.empty(0, device="cpu")


def put(cache: FeatureCache, key: Any, image: EncodedImage) -> None:
    """Keeps an image, or a piece of a video, if the cache has room for it at all."""
    tokens, place = image.tokens, image.tokens.geometry
    note = dataclasses.replace(
        image,
        tokens=VisualTokens(_NOTHING, _placed(place, [_NOTHING] * len(_PLACES)), None, tokens.full_grid),
        stream=None, planes=(),
    )  # fmt: skip
    tensors = [
        image.stream,
        tokens.saliency,
        tokens.keys,
        tokens.encoded,
        *(getattr(place, name) for name in _PLACES),
        *image.planes,
    ]
    cache.put(key, tensors, note)


def get(cache: FeatureCache, key: Any) -> EncodedImage | None:
    """What was kept under a key; None when it has gone."""
    found = cache.get(key)
    if found is None:
        return None
    (stream, saliency, keys, encoded, *rest), note = found
    assert stream is not None
    geometry = _placed(note.tokens.geometry, rest[: len(_PLACES)])
    features = stream
    if bool((note.slots == NEWLINE).any()):
        features = stream[(note.slots >= 0).nonzero()[:, 0].to(stream.device)]
    tokens = VisualTokens(features, geometry, saliency, note.tokens.full_grid, keys, encoded)
    image: EncodedImage = dataclasses.replace(note, tokens=tokens, stream=stream, planes=tuple(rest[len(_PLACES) :]))
    return image


def _placed(geometry: Geometry, values: Sequence[Any]) -> Geometry:
    """A geometry with other tensors."""
    named: dict[str, Any] = dict(zip(_PLACES, values, strict=True))
    return dataclasses.replace(geometry, **named)
