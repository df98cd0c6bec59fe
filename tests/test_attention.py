"""Saliency through the one-layer tap: exact, without a trace in the encoder's output, and without the unread layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
from foveate.attention_rows import QUERY_CHUNK, cls_attention, received_attention
from tests.encoding import encode
from tests.tiny import APART, BOS, IMAGE, SILENT, prompts
from tests.tiny import ROWS as ALL_ROWS
from tests.tiny.llava import ROWS


@pytest.fixture(params=[name for name, row in ROWS.items() if row.kind == "image"])
def row(request: pytest.FixtureRequest) -> Any:
    return ROWS[request.param]


def images_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}


def layers_of(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers


def test_unread_layers_are_not_computed(row: Any) -> None:
    """With vision_feature_layer=-2 nobody reads the last layer; with -1 everybody does."""
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    layers = layers_of(model)
    ran: list[int] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(layers)
    ]
    try:
        with foveate.AdaFV(keep=0.3)(model):
            model.generate(**inputs, max_new_tokens=1)
        read = len(layers) + 1 + model.config.vision_feature_layer
        assert ran == list(range(read))
        ran.clear()
        model.generate(**inputs, max_new_tokens=1)
        assert ran == list(range(len(layers)))
    finally:
        for hook in hooks:
            hook.remove()


def test_the_calls_own_feature_layer_wins(row: Any) -> None:
    model = row.make("sdpa")
    inputs = images_of(prompts(row, model, "one"))
    first, last = (encode(model, {**inputs, "vision_feature_layer": layer})[0] for layer in (1, -1))
    with pytest.raises(ValueError, match="before any attention"):
        encode(model, {**inputs, "vision_feature_layer": 0})
    with torch.no_grad():
        stock = model.get_image_features(**inputs, vision_feature_layer=-1, return_dict=True).pooler_output[0]
    assert torch.equal(last.stream, stock)
    assert not torch.equal(first.tokens.saliency, last.tokens.saliency)


# Everything at once, by heads and queries, a query at a time.
@pytest.mark.parametrize("at_once", [2**18, 1000, 1])
@pytest.mark.parametrize("length", [7, QUERY_CHUNK, QUERY_CHUNK + 3])
def test_received_attention_in_chunks(length: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.attention_rows.CPU_CHUNK", at_once)
    generator = torch.Generator().manual_seed(length)
    query, key = (torch.randn(2, 3, length, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, length, length)
    mask[..., -2:] = -torch.inf
    whole = ((query @ key.transpose(-1, -2)) * 0.3).double()
    torch.testing.assert_close(received_attention(query, key, 0.3).double(), whole.softmax(-1).mean((1, 2)))
    masked = received_attention(query, key, 0.3, mask).double()
    torch.testing.assert_close(masked, (whole + mask).softmax(-1).mean((1, 2)))
    assert not masked[:, -2:].any()
    there = torch.arange(length).expand(2, -1) < length - 2  # the same as other implementations hand it over
    for other in (there, there[:, None, None], mask[:, :, :1]):
        torch.testing.assert_close(received_attention(query, key, 0.3, other).double(), masked)


def test_cls_attention_leaves_cls_out() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 6, 8, generator=generator) for _ in range(2))
    row = ((query @ key.transpose(-1, -2)) * 0.3).double().softmax(-1).mean(1)[:, 0, 1:]
    torch.testing.assert_close(cls_attention(query, key, 0.3).double(), row)


class Counted:
    """SDPA under another name, which keeps the modules it ran in."""

    def __init__(self) -> None:
        self.modules: list[Any] = []

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.modules.append(module)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)


@pytest.mark.parametrize("name", APART)
def test_switching_the_implementation_while_attached(name: str) -> None:
    """What is set inside the block runs in the tapped modules too, and stays set after it."""
    row = ALL_ROWS[name]
    model, eager = copy.deepcopy(row.make("sdpa")), row.make("eager")
    inputs = prompts(row, model, "one")
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
    pruner, wanted = foveate.Saliency(keep=0.5), foveate.Saliency(keep=0.5)
    with wanted(eager):
        expected = eager.generate(**inputs, **options)
    counted = Counted()
    with pruner(model):
        # Registered while attached, as a kernel that is fetched only now would be; with the masks that it takes, which
        # an LLM may read itself (Dots 3's index does).
        ALL_ATTENTION_FUNCTIONS.register("counted", counted)
        ALL_MASK_ATTENTION_FUNCTIONS.register("counted", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        try:
            model.set_attn_implementation("counted")
            model.generate(**inputs, **options)
        finally:
            del ALL_ATTENTION_FUNCTIONS._global_mapping["counted"]
            del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping["counted"]
        model.set_attn_implementation("eager")
        assert torch.equal(model.generate(**inputs, **options), expected)
        assert torch.equal(pruner.selections[0].scores["saliency"], wanted.selections[0].scores["saliency"])
    assert row.read(model) in counted.modules
    assert row.read(model).config._attn_implementation == "eager"
    stock = copy.deepcopy(row.make("sdpa"))  # whose modules are not all told: some have a copy of their config
    stock.set_attn_implementation("eager")
    for module, told in zip(model.modules(), stock.modules(), strict=True):
        if hasattr(module, "config"):
            assert module.config._attn_implementation == told.config._attn_implementation
            assert module.config.__class__ in {type(one) for one in configs_of(model.config)}


def configs_of(config: Any) -> list[Any]:
    """A config and all those in it."""
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(one for part in parts if part is not None for one in configs_of(part))]


def test_selection_is_the_functions_choice(row: Any) -> None:
    """End to end: what a pruner keeps in a model is what the pure functions keep on the materialised tensors."""
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    pruner = foveate.AdaFV(keep=0.4)
    with pruner(model):
        model.generate(**inputs, max_new_tokens=1)
    (selection,) = pruner.selections
    (image,) = encode(model, images_of(inputs))
    ids = inputs["input_ids"][0]
    text = ids[(ids != IMAGE) & (ids != BOS)]  # the image's turn, before it and after: here, the whole prompt
    attention = foveate.functional.text_to_image_attention(model.get_input_embeddings()(text), image.tokens.features)
    kept = foveate.functional.adafv(image.tokens.saliency, attention, len(selection))
    assert torch.equal(selection.indices, kept)
    torch.testing.assert_close(selection.scores["text_to_image"], attention)
    assert set(selection.shares) == {"saliency", "text"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2"])
def test_on_the_gpu(row: Any, implementation: str) -> None:
    if implementation != "sdpa":
        pytest.importorskip("flash_attn")
    model = copy.deepcopy(row.make("sdpa")).to("cuda", torch.bfloat16)
    model.set_attn_implementation(implementation)
    inputs = {name: value.to("cuda") for name, value in prompts(row, row.make("sdpa"), "mixed").items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    options = {"max_new_tokens": 4, "do_sample": False}
    with foveate.AdaFV(keep=1.0)(model):
        ours = model.generate(**inputs, **options)
    assert torch.equal(ours, model.generate(**inputs, **options))
    pruner = foveate.AdaFV(keep=0.3)
    with pruner(model):
        model.generate(**inputs, **options)
    assert all(len(one) < one.total for one in pruner.selections)
