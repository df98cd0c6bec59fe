"""Which crops a question asks for, worked out one by one from the stock model in double precision.

Nothing here comes from the package but where tokens lie (``Geometry``), which has tests of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.models.test_encoders import Materialised, double, in_double
from tests.reference import newline_mask
from tests.tiny import ROWS

TEXT = range(2, 80)
"""Ids that are words in the prompts of ``tests.tiny``: no special tokens, marks or placeholders."""


@cache
def _double(name: str) -> Any:
    """The stock model in double precision; its attention matrices go to whoever is registered."""
    ALL_ATTENTION_FUNCTIONS.register("materialised", Materialised())
    try:
        return double(ROWS[name])
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["materialised"]


def words(inputs: dict[str, Tensor], row: int, behind: int | None = None) -> list[int]:
    """The words of a prompt; ``behind``: those after that column alone."""
    first = 0 if behind is None else behind + 1
    return [token for token in inputs["input_ids"][row, first:].tolist() if token in TEXT]


def mass_of(scores: Sequence[float], boxes: Sequence[Any], regions: Sequence[Any]) -> list[float]:
    """What of the scores, each spread over its box, lies in every region, as shares."""
    found = [0.0] * len(regions)
    for score, (x0, y0, x1, y1) in zip(scores, boxes, strict=True):
        for number, (left, top, right, bottom) in enumerate(regions):
            across, down = min(x1, right) - max(x0, left), min(y1, bottom) - max(y0, top)
            if across > 0 and down > 0:
                found[number] += score * across * down / ((x1 - x0) * (y1 - y0))
    whole = sum(found)
    return [one / whole if whole > 0 else 1 / len(found) for one in found]


def regions_of(geometry: Any) -> list[list[float]]:
    """By crop, the smallest rectangle around what its tokens see."""
    found = []
    for view in range(1, len(geometry.grids)):
        boxes = [
            box for number, box in zip(geometry.view.tolist(), geometry.boxes.tolist(), strict=True) if number == view
        ]
        found.append([*(min(box[n] for box in boxes) for n in (0, 1)), *(max(box[n] for box in boxes) for n in (2, 3))])
    return found


def relevance_of(text: Tensor, tokens: Tensor) -> list[float]:
    """By token, its largest cosine to any word, from 0 to 1 over the tokens, squared."""
    found = [max(float(word @ token / (word.norm() * token.norm())) for word in text) for token in tokens]
    low, high = min(found), max(found)
    return [((one - low) / (high - low)) ** 2 for one in found]


def told(masses: Sequence[float]) -> float:
    return sum(one * math.log(one * len(masses)) for one in masses if one > 0)


def mixed(saliency: Sequence[float], text: Sequence[float]) -> list[float]:
    weight = told(saliency) / (told(saliency) + told(text))
    return [weight * one + (1 - weight) * other for one, other in zip(saliency, text, strict=True)]


def taken(masses: Sequence[float], amount: float | int | str, share: float = 0.8) -> tuple[int, ...]:
    """The views that are encoded: the base view and the heaviest crops."""
    order = sorted(range(len(masses)), key=lambda crop: -masses[crop])
    if isinstance(amount, str):
        count = next((n for n in range(1, len(order)) if sum(masses[crop] for crop in order[:n]) >= share), len(order))
    else:
        count = math.ceil(amount * len(order)) if isinstance(amount, float) else amount
    return (0, *sorted(crop + 1 for crop in order[:count]))


def stock_views(name: str, inputs: dict[str, Tensor], geometries: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """By image, features (N, D) and saliency (N,) of all patch tokens, as the stock model makes them."""
    row, model, attention = ROWS[name], _double(name), Materialised()
    ALL_ATTENTION_FUNCTIONS.register("materialised", attention)
    try:
        streams = row.streams(model, in_double(inputs), row.kind)
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["materialised"]
    images = [SimpleNamespace(tokens=SimpleNamespace(geometry=one)) for one in geometries]
    saliency = row.saliency(model, in_double(inputs), attention.matrices[id(row.read(model))], images)
    features = [stream[~newline_mask(model, stream)] for stream in streams]
    return list(zip(features, saliency, strict=True))


def chosen(
    name: str,
    inputs: dict[str, Tensor],
    geometries: Sequence[Any],
    rows: Sequence[int],
    amount: float | int | str,
    by: str = "both",
    behind: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """By image, the views that are encoded.

    Args:
        name: of the row of ``tests.tiny``.
        inputs: of the call.
        geometries: of every image, all of its tokens.
        rows: which prompt each stands in.
        amount, by: see ``foveate.Crops``.
        behind: of every image, the column after which the guiding text begins; None: all of the prompt's words guide.
    """
    found = []
    with torch.no_grad():
        views = stock_views(name, inputs, geometries)
        for number, (geometry, (features, saliency)) in enumerate(zip(geometries, views, strict=True)):
            if len(geometry.grids) == 1:
                found.append((0,))
                continue
            base = (geometry.view == 0).nonzero()[:, 0]
            boxes, regions = geometry.boxes[base].tolist(), regions_of(geometry)
            ids = words(inputs, rows[number], None if behind is None else behind[number])
            text = _double(name).get_input_embeddings()(torch.tensor(ids))
            pointed = mass_of(relevance_of(text, features[base]), boxes, regions)
            salient = mass_of(saliency[base].tolist(), boxes, regions)
            masses = {"both": mixed(salient, pointed), "text": pointed, "saliency": salient}[by]
            found.append(taken(masses, amount))
    return found
