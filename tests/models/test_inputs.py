"""Images handed over in the other forms that stock transformers takes: as stock at keep=1, the same choice below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from tests.tiny import ROWS, SILENT, prompts
from tests.tiny.mistral import GRIDS as PIXTRAL_GRIDS

GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}
Change = Callable[[dict[str, Any]], dict[str, Any]]


def flattened(inputs: dict[str, Any]) -> dict[str, Any]:
    """Views of all images in one batch, without the padding that makes images equally long."""
    views = [image[(image != 0).flatten(1).any(dim=1)] for image in inputs["pixel_values"]]
    return {**inputs, "pixel_values": torch.cat(views)}


def sizes_as(kind: Callable[[list[int]], Any]) -> Change:
    return lambda inputs: {**inputs, "image_sizes": [kind(size) for size in inputs["image_sizes"].tolist()]}


def counted_in_a_list(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, "batch_num_images": inputs["batch_num_images"].tolist()}


def flattened_and_listed(inputs: dict[str, Any]) -> dict[str, Any]:
    return sizes_as(tuple)(flattened(inputs))


SIZES: dict[str, Change] = {
    "list of tuples": sizes_as(tuple),
    "list of lists": sizes_as(list),
}
VIEWS: dict[str, Change] = {
    **SIZES,
    "list of tensors": sizes_as(torch.tensor),
    "array": lambda inputs: {**inputs, "image_sizes": inputs["image_sizes"].numpy()},
    "4-D pixels": flattened,
    "4-D pixels, list of tuples": flattened_and_listed,
}
FORMS: list[tuple[str, str, Change]] = [
    *((name, form, change) for name in ("llava_next-clip", "llava_next-siglip") for form, change in VIEWS.items()),
    *(("llava_onevision", form, change) for form, change in VIEWS.items()),
    ("llava_onevision", "counts in a list", counted_in_a_list),
    *((name, form, change) for name in ("mistral3", "llava-pixtral") for form, change in SIZES.items()),
]


def answered(model: Any, keep: float, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY)
    return result, [one.indices for one in pruner.selections]


@pytest.mark.parametrize("batch", ["one", "mixed"])
@pytest.mark.parametrize("name, form, change", FORMS, ids=[f"{name}-{form}" for name, form, _ in FORMS])
def test_other_forms(name: str, form: str, change: Change, batch: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, batch)
    changed = change(inputs)
    stock = model.generate(**changed, **GREEDY)
    assert torch.equal(stock, model.generate(**inputs, **GREEDY))
    assert torch.equal(answered(model, 1.0, changed)[0], stock)
    (ours, chosen), (usual, wanted) = answered(model, 0.3, changed), answered(model, 0.3, inputs)
    assert torch.equal(ours, usual)
    assert all(torch.equal(a, b) for a, b in zip(chosen, wanted, strict=True))


def test_pixtral_without_sizes() -> None:
    """As stock: every image fills its plane."""
    row = ROWS["llava-pixtral"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    alone = {name: value for name, value in inputs.items() if name != "image_sizes"}
    stock = model.generate(**alone, **GREEDY)
    assert torch.equal(stock, model.generate(**inputs, **GREEDY))
    assert torch.equal(answered(model, 1.0, alone)[0], stock)
    assert torch.equal(answered(model, 0.3, alone)[0], answered(model, 0.3, inputs)[0])
    assert inputs["pixel_values"].shape[-2:] == tuple(28 * side for side in PIXTRAL_GRIDS[0])


@pytest.mark.parametrize("name", ["llava_next-clip", "llava_onevision", "mistral3", "llava-pixtral"])
def test_pixels_in_a_list_are_refused(name: str) -> None:
    """Stock fails on them as well."""
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    inputs["pixel_values"] = list(inputs["pixel_values"])
    with pytest.raises((AttributeError, TypeError)):
        model.generate(**inputs, **GREEDY)
    with pytest.raises(ValueError, match="pixel_values as one tensor .* got list"):
        answered(model, 1.0, inputs)


@pytest.mark.parametrize("name", ["llava_next-clip", "llava_onevision"])
def test_views_that_sizes_do_not_make(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    fewer = inputs["pixel_values"][:, :-1]
    with pytest.raises(ValueError, match="make up to 3 views of an image, and pixel_values hold 2: .*image_grid_pin"):
        answered(model, 1.0, {**inputs, "pixel_values": fewer})
    with pytest.raises(ValueError, match="make 3 views, and pixel_values hold 2"):
        answered(model, 1.0, {**inputs, "pixel_values": fewer[0]})
