"""Pixtral's encoder: images in their own proportions, packed into one sequence, each attending only within itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.attention import recording
from foveate.models.encoded import EncodedImage, Request, grid_geometry, read_sizes, read_tokens
from foveate.models.squares import square_sources
from foveate.models.stock import accepted
from foveate.models.towers import Tower


def encode_packed(tower: Tower, inputs: Mapping[str, Any], request: Request, side: int) -> list[EncodedImage]:
    """Encodes the images of a call.

    Args:
        tower: a Pixtral tower.
        inputs: ``pixel_values`` (images, channels, H, W), every image in the top left corner of its own plane, and
            ``image_sizes`` (images, 2), the height and width of each in pixels.
        request: see ``Family.encode``.
        side: a token is made of side x side patches.

    Raises:
        ValueError: shapes that are none of these, or that contradict each other.
    """
    pixels, given = inputs["pixel_values"], inputs.get("image_sizes")
    if given is None:
        raise ValueError("a Pixtral tower needs image_sizes beside pixel_values: pass all that the processor returned")
    sizes = read_sizes(given)
    if not torch.is_tensor(pixels) or pixels.ndim != 4 or len(sizes) != len(pixels):
        found = tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__
        raise ValueError(
            "a Pixtral tower takes pixel_values as one tensor (images, channels, height, width) and image_sizes with "
            f"a height and a width for each, got {found} with {len(sizes)} sizes"
        )
    if max(h for h, _ in sizes) > pixels.shape[2] or max(w for _, w in sizes) > pixels.shape[3]:
        raise ValueError(f"image_sizes {sizes} do not fit into pixel_values of shape {tuple(pixels.shape)}")
    patch = tower.config.vision_config.patch_size
    grids = [(height // patch, width // patch) for height, width in sizes]
    reading = tower.reading(inputs)
    settings = {name: inputs.get(name) for name in ("vision_feature_layer", "vision_feature_select_strategy")}
    with recording(tower.recorder(reading, request, segments=[rows * columns for rows, columns in grids])) as record:
        output = request.features(
            pixel_values=pixels, image_sizes=given, **accepted(request.features, settings), return_dict=True
        )
    images, start = [], 0
    for size, (rows, columns), stream in zip(sizes, grids, output.pooler_output, strict=True):
        sources = start + square_sources((rows, columns), side)
        start += rows * columns
        grid = (rows // side, columns // side)
        # What is left over at the right and lower border goes into no token.
        box = torch.tensor([[0, 0, grid[1] * side * patch, grid[0] * side * patch]], device="cpu")
        tokens = read_tokens(record, stream, grid_geometry([grid], box, size, stream.device), sources)
        images.append(EncodedImage.of_patches(tokens))
    return images


def row_marks(ids: Tensor, image: int) -> Tensor:
    """(B, S) bool: the tokens that end a row of an image (``[IMG_BREAK]``, ``[IMG_END]``); no config names their ids.

    They are those directly after a placeholder, in prompts that have a single token between two placeholders
    anywhere: what the processor writes for every image of more than one row.

    Args:
        ids: (B, S) int64.
        image: the placeholder's id.
    """
    placeholder = ids == image
    after = ~placeholder & placeholder.roll(1, dims=1)
    after[:, 0] = False
    between = after & placeholder.roll(-1, dims=1)
    between[:, -1] = False
    return after & between.any(dim=1, keepdim=True)
