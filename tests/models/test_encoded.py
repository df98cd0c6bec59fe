"""What every encoder hands to the projector: as a plain hook on the stock model sees it, put together by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

import foveate
from foveate.pruners import Pruner
from foveate.pruners.base import Choice
from foveate.tokens import Keep
from tests.encoding import encode
from tests.tiny import IMAGE, ROWS, Row, prompts
from tests.tiny.llava import clip, siglip, text_config
from tests.tiny.rows import features_of, finish, inner

ENCODED = [name for name, row in ROWS.items() if "encoded" not in row.unread]


@pytest.fixture(params=ENCODED)
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


def handed(row: Row, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(views, patches, d) or (patches of all, d): what the stock tower gives, CLS included where it has one."""
    if row.encoded is not None:
        return row.encoded(model, inputs, row.kind)
    base, kind = inner(model), model.config.model_type
    layer: Any = None
    if kind in (
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "aya_vision",
        "mistral3",
        "mistral_large4",
        "video_llava",
    ):
        layer = model.config.vision_feature_layer
    if kind in ("vipllava", "another_llava"):
        layer = -2
    if row.hands is not None:
        module = row.hands(model)
    elif kind.startswith(("qwen", "glm")):
        module = base.visual.blocks[-1] if kind.startswith("qwen") else base.visual.post_layernorm
    elif kind in ("fast_vlm", "gemma3n", "perception_lm"):  # what timm gives, in the projector's order and scale
        module = base.vision_tower
    elif kind == "llama4":
        module = base.vision_model.layernorm_post
    elif kind == "ovis2":
        module = base.vision_tower.transformer
    elif kind == "lighton_ocr":
        module = base.vision_encoder
    else:
        module = base.vision_tower if hasattr(base, "vision_tower") else base.vision_model
    found: list[Any] = []
    hook = module.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        features_of(model, inputs, row.kind)
    finally:
        hook.remove()
    (output,) = found
    if torch.is_tensor(output):
        return output
    if isinstance(output, tuple):
        return output[0]
    if output.last_hidden_state.ndim == 4:  # a convolution's map
        return output.last_hidden_state.flatten(2).transpose(1, 2)
    return output.last_hidden_state if layer is None else output.hidden_states[layer]


def by_token(row: Row, model: Any, inputs: dict[str, Tensor], values: Tensor, images: Any) -> list[Tensor]:
    """Means over the patches of every token, (N, d) float64: channel by channel as saliency is put together by hand,
    from a matrix whose rows are all alike."""
    values = values.double()
    if row.packs is not None:
        parts = [part[None] for part in values.split(row.packs(inputs))]
    elif values.ndim == 2 and "image_sizes" not in inputs:
        grids = next(inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs)
        frames = [rows * columns for times, rows, columns in grids.tolist() for _ in range(times)]
        parts = [frame[None] for frame in values.split(frames)]
    else:
        parts = [values[None] if values.ndim == 2 else values]

    def put_together(parts: list[Tensor]) -> list[Tensor]:
        matrices = [part[:, None].expand(-1, part.shape[1], -1) for part in parts]
        return row.saliency(model, inputs, matrices, images)

    counts = put_together([torch.ones_like(part[..., 0]) for part in parts])
    channels = [put_together([part[..., channel] for part in parts]) for channel in range(values.shape[-1])]
    return [
        torch.stack([channel[number] for channel in channels], dim=1) / count[:, None]
        for number, count in enumerate(counts)
    ]


def largest_error(images: Any, expected: list[Tensor]) -> float:
    assert len(images) == len(expected)
    for image, wanted in zip(images, expected, strict=True):
        assert image.tokens.encoded.shape == wanted.shape
        assert image.tokens.encoded.dtype == torch.float32
    return max(
        float((image.tokens.encoded - wanted).abs().max() / wanted.abs().max())
        for image, wanted in zip(images, expected, strict=True)
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_is_what_the_projector_reads(row: Row, attention: str, record_property: Any) -> None:
    model = row.make(attention)
    inputs = prompts(row, model, "mixed")
    images = encode(model, inputs, row.kind, encoded=True)
    expected = by_token(row, model, inputs, handed(row, model, inputs), images)
    worst = largest_error(images, expected)
    record_property("largest_error", worst)
    assert worst < 1e-6
    assert all(float(image.tokens.encoded.std(dim=0).min()) > 0 for image in images)


def test_nothing_else_changes(row: Row) -> None:
    """Asked for or not, the rest is the same; alone it needs no attention."""
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    stock = row.streams(model, inputs, row.kind)
    whole = encode(model, inputs, row.kind, keys=True, encoded=True)
    without = encode(model, inputs, row.kind, keys=True)
    alone = encode(model, inputs, row.kind, saliency=False, encoded=True)
    for image, other, only, theirs in zip(whole, without, alone, stock, strict=True):
        assert torch.equal(image.stream, theirs)
        assert other.tokens.encoded is None
        for name in {"saliency", "keys"} - {*row.unread}:
            assert torch.equal(getattr(image.tokens, name), getattr(other.tokens, name))
        assert only.tokens.saliency is None
        assert only.tokens.keys is None
        assert torch.equal(only.tokens.encoded, image.tokens.encoded)


def test_half_precision_is_averaged_in_single(row: Row) -> None:
    model = copy.deepcopy(row.make("sdpa")).bfloat16()
    whole = prompts(row, row.make("sdpa"), "mixed")
    inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in whole.items()}
    images = encode(model, inputs, row.kind, encoded=True)
    values = handed(row, model, inputs)
    assert values.dtype == torch.bfloat16
    assert largest_error(images, by_token(row, model, whole, values, images)) < 1e-6


@pytest.mark.parametrize("name", ["llava_next-clip", "llava_next-siglip"])
def test_released_layout(name: str) -> None:
    """Every view's whole grid, one after the other."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    values = handed(row, model, inputs)
    views = values[:, 1:] if name.endswith("clip") else values
    images = encode(model, inputs, encoded=True, layout="released")
    counts = [len(image.tokens.geometry.grids) for image in images]
    for image, wanted in zip(images, views.split(counts), strict=True):
        assert torch.equal(image.tokens.encoded, wanted.flatten(0, 1))


@pytest.mark.parametrize("tower, strategy", [("clip", "default"), ("clip", "full"), ("siglip", "full")])
@pytest.mark.parametrize("layers, deepest", [([-1, 1], 0), ([0, 1, -2], 2), (1, None), ([2], 0)])
def test_of_several_layers_the_deepest(tower: str, strategy: str, layers: Any, deepest: int | None) -> None:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=clip() if tower == "clip" else siglip(),
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=layers,
        vision_feature_select_strategy=strategy,
    )
    model = finish(LlavaForConditionalGeneration(config), "sdpa")
    inputs = prompts(ROWS["llava-clip"], model, "mixed")
    states: list[Any] = []
    hook = model.model.vision_tower.register_forward_hook(lambda m, a, output: states.append(output.hidden_states))
    features_of(model, inputs, "image")
    hook.remove()
    values = states[0][layers if deepest is None else layers[deepest]]
    values = values[:, 1:] if tower == "clip" else values
    images = encode(model, inputs, encoded=True)
    assert all(torch.equal(image.tokens.encoded, wanted) for image, wanted in zip(images, values, strict=True))


class Seen(Pruner):
    """Keeps the tokens of the largest first channel, and remembers what it saw."""

    name = "seen"
    reads_encoded = True

    def choose(self, visual: Any, text: Any, budget: int) -> Choice:
        self.found = [*getattr(self, "found", []), visual]
        return Choice(visual.encoded[:, 0].topk(budget).indices.sort().values)


@pytest.mark.parametrize("name", sorted(ROWS.keys() - set(ENCODED)))
def test_a_method_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="seen reads the vision encoder's features, and .* has none to read: "):
        foveate.attach(ROWS[name].make("sdpa"), Seen(keep=0.3))


def test_a_method_gets_what_it_reads(row: Row) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    expected = encode(model, inputs, row.kind, encoded=True)
    pruner = Seen(keep=0.3)
    with pruner(model), torch.no_grad():
        model(**inputs)
    chosen = iter(pruner.selections)
    for visual, image in zip(pruner.found, expected, strict=True):
        assert torch.equal(visual.encoded, image.tokens.encoded)
        assert visual.saliency is None
        assert visual.keys is None
        best = image.tokens.encoded[:, 0].topk(Keep(0.3).budget(len(visual))).indices.sort().values
        assert torch.equal(next(chosen).indices, best)
