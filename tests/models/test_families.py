"""What an adapter refuses, and the structure tokens it keeps."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, ViTConfig

import foveate
from foveate.models import FAMILIES, family_for
from tests import reference
from tests.tiny import IMAGE, ROWS, SILENT, prompts, text_config

GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}


def changed(name: str, **config: Any) -> Any:
    model = copy.deepcopy(ROWS[name].make("sdpa"))
    for key, value in config.items():
        setattr(model.config, key, value)
    return model


def test_registry() -> None:
    for model_type, family in FAMILIES.items():
        assert model_type in family.model_types
        assert family.title and family.traits()
        assert "stock" in family.layouts
    assert isinstance(family_for(ROWS["llava-clip"].make("sdpa")), FAMILIES["llava"])


def test_unknown_tower() -> None:
    config = LlavaConfig(
        vision_config=ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56),
        text_config=text_config(1),
        image_token_index=IMAGE,
    )
    with pytest.raises(ValueError, match="vision tower 'vit' is not supported.*clip_vision_model"):
        foveate.attach(LlavaForConditionalGeneration(config), foveate.AdaFV())


@pytest.mark.parametrize("name", ["llava-siglip", "llava_next-siglip"])
def test_siglip_has_no_cls_to_drop(name: str) -> None:
    """Stock would drop a patch of every view as if it were CLS."""
    inputs = prompts(ROWS[name], ROWS[name].make("sdpa"), "one")
    model = changed(name, vision_feature_select_strategy="default")
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="SigLIP tower has none.*'full'"):
        model.generate(**inputs, **GREEDY)


def test_llava_next_cannot_arrange_cls() -> None:
    name = "llava_next-clip"
    inputs = prompts(ROWS[name], ROWS[name].make("sdpa"), "one")
    model = changed(name, vision_feature_select_strategy="full")
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="cannot arrange in a grid"):
        model.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_llava_keeps_a_cls_it_sends(keep: float) -> None:
    """With strategy "full", CLS is one of LLaVA-1.5's visual tokens: it carries no patch, so it never competes."""
    model = changed("llava-clip", vision_feature_select_strategy="full")
    inputs = prompts(ROWS["llava-clip"], model, "mixed")
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY)
    if keep == 1.0:
        assert torch.equal(result, model.generate(**inputs, **GREEDY))
        return
    indices = [torch.cat([torch.tensor([0]), one.indices + 1]) for one in pruner.selections]
    assert all(one.total == 16 for one in pruner.selections)
    row = ROWS["llava-clip"]
    expected = reference.greedy(row, model, reference.assemble(row, model, inputs, indices), 4)[0]
    assert torch.equal(result[:, inputs["input_ids"].shape[1] :], expected)


def test_llava_next_needs_image_sizes() -> None:
    name = "llava_next-clip"
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "several")
    with foveate.AdaFV(keep=0.3)(model):
        with pytest.raises(ValueError, match="needs image_sizes"):
            model.generate(**{key: value for key, value in inputs.items() if key != "image_sizes"}, **GREEDY)
        with pytest.raises(ValueError, match="2 images in pixel_values, but 1 in image_sizes"):
            model.generate(**{**inputs, "image_sizes": inputs["image_sizes"][:1]}, **GREEDY)


def test_llava_pixels_of_a_wrong_shape() -> None:
    model = ROWS["llava-clip"].make("sdpa")
    inputs = prompts(ROWS["llava-clip"], model, "one")
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="images, channels, height, width"):
        model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][None]}, **GREEDY)


def loaded_as(model: Any, dtype: torch.dtype) -> Any:
    """The model as ``from_pretrained`` makes it of a type: what its class keeps in float32 stays that."""
    model = copy.deepcopy(model).to(dtype)
    for part in getattr(model, "_keep_in_fp32_modules_strict", None) or ():
        for name, parameter in model.named_parameters():
            if re.search(rf"(^|\.){part}($|\.)", name):
                parameter.data = parameter.data.float()
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(ROWS))
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Half-precision models: keep=1 is the stock model, and scores are float32."""
    model = loaded_as(ROWS[name].make("sdpa"), dtype)
    inputs = prompts(ROWS[name], ROWS[name].make("sdpa"), "mixed")
    for pixels in inputs.keys() & {"pixel_values", "high_res_pixel_values", "pixel_values_videos"}:
        inputs[pixels] = inputs[pixels].to(dtype)
    with ROWS[name].pruner(1.0)(model):
        ours = model.generate(**inputs, **GREEDY)
    assert torch.equal(ours, model.generate(**inputs, **GREEDY))
    pruner = ROWS[name].pruner(0.3)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    assert all(score.dtype == torch.float32 for one in pruner.selections for score in one.scores.values())


def test_pixels_in_another_dtype_than_the_model() -> None:
    """As stock: the tower casts pixels to its own dtype."""
    model = copy.deepcopy(ROWS["llava_next-clip"].make("sdpa")).to(torch.bfloat16)
    inputs = prompts(ROWS["llava_next-clip"], ROWS["llava_next-clip"].make("sdpa"), "one")
    with foveate.AdaFV(keep=1.0)(model):
        ours = model.generate(**inputs, **GREEDY)
    assert torch.equal(ours, model.generate(**inputs, **GREEDY))
