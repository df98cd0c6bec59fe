"""Where a token's pixels are: one bright patch painted into a black image is found where its box says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
from tests import reference
from tests.encoding import encode
from tests.tiny import IMAGE, PINPOINTS, ROWS, SIDE, prompts

try:  # the PIL processors: no torchvision needed
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as ClipImages
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil as NextImages
except ImportError:  # before 5.10
    from transformers import CLIPImageProcessor as ClipImages
    from transformers import LlavaNextImageProcessor as NextImages

PATCH = 14
SIZES = [(300, 420), (420, 300), (333, 333), (200, 640), (640, 200), (97, 131)]


def next_images() -> Any:
    return NextImages(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )


def clip_images() -> Any:
    return ClipImages(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def painted(size: tuple[int, int], box: Tensor) -> Image.Image:
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    left, top, right, bottom = (int(value) for value in box.round().tolist())
    pixels[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
    return Image.fromarray(pixels)


def brightest(view: Tensor) -> tuple[int, int]:
    """(row, column) of the brightest patch of one (3, H, W) view."""
    means = view.mean(0).unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).mean((-1, -2))
    return divmod(int(means.argmax()), means.shape[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["stock", "released"])
def test_llava_next(size: tuple[int, int], layout: str) -> None:
    processor = next_images()
    blank = Image.new("RGB", size[::-1])
    processed = processor(blank, return_tensors="pt")
    geometry = encode(ROWS["llava_next-clip"].make("sdpa"), processed, layout=layout)[0].tokens.geometry
    assert geometry.image_size == size
    inside = (geometry.boxes[:, 2:] - geometry.boxes[:, :2]).min(dim=1).values
    checked = 0
    for token in range(0, len(geometry), 3):
        if inside[token] < 6:  # mostly padding: nothing to paint
            continue
        processed = processor(painted(size, geometry.boxes[token]), return_tensors="pt")
        view = processed["pixel_values"][0][int(geometry.view[token])]
        assert brightest(view) == (int(geometry.row[token]), int(geometry.column[token])), token
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("size", SIZES)
def test_llava(size: tuple[int, int]) -> None:
    processor = clip_images()
    processed = processor(Image.new("RGB", size[::-1]), return_tensors="pt")
    geometry = encode(ROWS["llava-clip"].make("sdpa"), processed)[0].tokens.geometry
    boxes = geometry.boxes_in(*size)
    assert geometry.cropped
    for token in range(len(geometry)):
        processed = processor(painted(size, boxes[token]), return_tensors="pt")
        assert brightest(processed["pixel_values"][0]) == (int(geometry.row[token]), int(geometry.column[token]))


def test_every_stock_token_has_its_view_row_and_column() -> None:
    """The map from placeholders to views agrees with stock packing, token by token."""
    for name in ("llava_next-clip", "llava_next-siglip"):
        model = ROWS[name].make("sdpa")
        inputs = prompts(ROWS[name], model, "mixed")
        images = {key: inputs[key] for key in ("pixel_values", "image_sizes")}
        stock, full = (encode(model, images, saliency=False, layout=layout) for layout in ("stock", "released"))
        for packed, whole in zip(stock, full, strict=True):
            side = packed.tokens.geometry.grids[0][1]
            geometry = packed.tokens.geometry
            flat = (geometry.view * side + geometry.row) * side + geometry.column
            assert torch.equal(packed.tokens.features, whole.tokens.features[flat])
            newlines = reference.newline_mask(model, packed.stream)
            assert torch.equal(packed.slots < 0, newlines)
            assert len(whole.tokens) == side * side * len(geometry.grids)


def test_released_layout_reaches_the_model() -> None:
    """layout="released": chosen from every view's full grid, sent without newlines, in compact positions."""
    model = ROWS["llava_next-clip"].make("sdpa")
    inputs = prompts(ROWS["llava_next-clip"], model, "several")
    images = {key: inputs[key] for key in ("pixel_values", "image_sizes")}
    full = encode(model, images, layout="released")
    for variant, keep in (("paper", 0.3), ("released", 30), ("paper", 1.0)):
        pruner = foveate.AdaFV(keep=keep, variant=variant)
        with pruner(model, layout="released"):
            result = model.generate(**inputs, max_new_tokens=5, do_sample=False, suppress_tokens=[IMAGE])
        table = model.get_input_embeddings()
        ids = inputs["input_ids"][0].tolist()
        pieces, column, image = [], 0, 0
        while column < len(ids):
            if ids[column] == IMAGE:
                pieces.append(full[image].tokens.features[pruner.selections[image].indices])
                column += full[image].placeholders
                image += 1
            else:
                pieces.append(table(torch.tensor(ids[column : column + 1])))
                column += 1
        embeddings = torch.cat(pieces).detach()[None]
        length = embeddings.shape[1]
        assembled = reference.Assembled(
            embeddings,
            torch.ones(1, length, dtype=torch.long),
            torch.arange(length)[None],
            [],
            [],
            torch.zeros(1, length, dtype=torch.bool),
        )
        assert torch.equal(
            result[:, len(ids) :], reference.greedy(ROWS["llava_next-clip"], model, assembled, 5, [IMAGE])[0]
        )


def test_released_variant_equals_the_released_function() -> None:
    model = ROWS["llava_next-clip"].make("sdpa")
    inputs = prompts(ROWS["llava_next-clip"], model, "one")
    images = {key: inputs[key] for key in ("pixel_values", "image_sizes")}
    (image,) = encode(model, images, layout="released")
    pruner = foveate.AdaFV(keep=12, variant="released")
    with pruner(model, layout="released"):
        model.generate(**inputs, max_new_tokens=1)
    ids = inputs["input_ids"][0]
    text = model.get_input_embeddings()(ids[int((ids == IMAGE).nonzero()[-1]) + 1 :])
    rows = image.tokens.saliency.view(len(image.tokens.geometry.grids), -1)
    kept = foveate.functional.adafv_released(rows, image.tokens.features, text, 12)
    assert torch.equal(pruner.selections[0].indices, kept)


def test_released_variant_needs_the_released_layout() -> None:
    model = ROWS["llava_next-clip"].make("sdpa")
    inputs = prompts(ROWS["llava_next-clip"], model, "one")
    with foveate.AdaFV(keep=12, variant="released")(model), pytest.raises(ValueError, match="layout"):
        model.generate(**inputs, max_new_tokens=1)
