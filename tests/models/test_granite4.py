"""What Granite Vision 4 has beyond the matrix: which part of a window a token stands for, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.models import family_for
from tests.encoding import encode
from tests.tiny import ROWS, Row, granite4, prompts

pytestmark = pytest.mark.skipif("granite4_vision" not in ROWS, reason="this transformers has no Granite Vision 4")


def test_a_token_shows_its_own_square_most() -> None:
    """Of all tokens of a window, the one that starts from a square changes most with that square's features; so does
    the one of the projector that starts from one of the square's patches."""
    model = granite4.granite4("sdpa")
    side, cells = granite4.PATCHES, granite4.PATCHES // granite4.FACTOR
    torch.manual_seed(1)
    plain = torch.randn(1, side**2, 64)
    for projector in (*model.model.layerwise_projectors, model.model.spatial_projectors[0]):
        with torch.no_grad():
            before = projector(plain)[0]
            for token in range(cells**2):
                row, column = divmod(token, cells)
                features = plain.clone().view(side, side, 64)
                features[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 3 * torch.randn(2, 2, 64)
                change = (projector(features.view(1, side**2, 64))[0] - before).norm(dim=1)
                assert int(change.argmax()) == token


def test_sources_are_the_squares_that_the_model_starts_from() -> None:
    """The model's own downsampling, asked with the patches' numbers."""
    model = granite4.granite4("sdpa")
    family: Any = family_for(model)
    downsample = __import__(type(model).__module__, fromlist=["interpolate_downsample"]).interpolate_downsample
    side, cells = granite4.PATCHES, granite4.PATCHES // granite4.FACTOR
    numbers = torch.arange(side**2, dtype=torch.float64).view(1, -1, 1)
    means = downsample(numbers, side, cells)[0, :, 0]
    sources = family.sources(torch.arange(2 * cells**2))
    assert torch.equal(sources[: cells**2].double().mean(dim=1), means)
    assert torch.equal(sources[cells**2 :], sources[: cells**2] + side**2)


def changed(**settings: Any) -> Any:
    model = copy.deepcopy(granite4.granite4("sdpa"))
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"downsample_rate": "3/8"}, "stand for no whole squares of patches"),
        ({"downsample_rate": "3/6"}, "stand for no whole squares of patches"),  # 8 patches are no whole windows of 6
        ({"deepstack_layer_map": None}, "without deepstack_layer_map"),
        ({"vision_feature_select_strategy": "default"}, "a SigLIP tower has none"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: dict[str, Any], said: str) -> None:
    row: Row = ROWS["granite4_vision"]
    model = changed(**settings)
    with pytest.raises(ValueError, match=said):
        encode(model, prompts(row, granite4.granite4("sdpa"), "one"))


def test_layers_come_from_the_config_as_in_stock() -> None:
    row: Row = ROWS["granite4_vision"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    (plain,) = encode(model, inputs)
    (image,) = encode(model, {**inputs, "vision_feature_layer": -1})
    assert torch.equal(plain.stream, image.stream) and torch.equal(plain.tokens.saliency, image.tokens.saliency)


def test_features_join_the_layers_that_they_are_for() -> None:
    """With two features for one layer, stock takes the last: so does a pruned call."""
    model = changed(deepstack_layer_map=[(1, 0), (-2, 0)])
    row: Row = ROWS["granite4_vision"]
    inputs = prompts(row, granite4.granite4("sdpa"), "one")
    (image,) = encode(model, inputs)
    output: Any = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    wanted: list[Tensor] = [features[0] for _, features in output.deepstack_features]
    assert torch.equal(image.stream, wanted[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(image.planes, [wanted[0], wanted[2]], strict=True))
