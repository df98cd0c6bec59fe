"""What Granite Vision 4 has beyond the matrix: which part of a window a token stands for, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

from foveate.delivery import features_alone
from foveate.models import family_for
from tests.chat import TALKS, guiding, tokenizer, written
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import IMAGE, PINPOINTS, ROWS, SIDE, Row, granite4, prompts

LlavaNextImageProcessorPil = pytest.importorskip(
    "transformers.models.llava_next.image_processing_pil_llava_next"
).LlavaNextImageProcessorPil

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


MARKS = {**dict.fromkeys(("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), -1), "<image>": IMAGE}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("talk", TALKS)
def test_prompts_of_its_own_processor(talk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many placeholders as tokens and row ends, and the words that guide."""
    from transformers.models.granite4_vision.processing_granite4_vision import Granite4VisionProcessor

    if not is_torchvision_available():  # only the check for one is left out
        monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    square = {"height": SIDE, "width": SIDE}
    images = LlavaNextImageProcessorPil(size=square, crop_size=square, image_grid_pinpoints=PINPOINTS)
    processor = Granite4VisionProcessor(
        images, tokenizer(MARKS, {"image_token": "<image>"}), patch_size=7, vision_feature_select_strategy="full",
        downsample_rate="2/4", chat_template=TEMPLATE,
    )  # fmt: skip
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(90, 140), (200, 70)], strict=False)]
    inputs = written(processor, said, images=pictures)
    model = granite4.granite4("sdpa")
    assert guiding(model, processor, inputs) == expected
    placeholders = [image.placeholders for image in encode(model, inputs)]
    assert sum(placeholders) == int((inputs["input_ids"] == IMAGE).sum())
    family: Any = family_for(model)
    newlines = [family.newlines(tuple(size)) for size in inputs["image_sizes"].tolist()]
    assert [len(image.tokens) for image in encode(model, inputs)] == [
        whole - ends for whole, ends in zip(placeholders, newlines, strict=True)
    ]


def test_states_of_the_encoder_are_not_held() -> None:
    row: Row = ROWS["granite4_vision"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    output: Any = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    alone = features_alone(output)
    assert output.hidden_states is not None and alone.hidden_states is None
    assert alone.deepstack_features is output.deepstack_features


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
