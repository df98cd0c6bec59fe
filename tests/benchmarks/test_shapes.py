"""The shapes are those of the checkpoints they name, and their prompts are what the families take."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.benchmarks.shapes import SHAPES
from foveate.benchmarks.tap import ENCODERS
from foveate.instrumented import looking_through
from foveate.models import FAMILIES
from foveate.models.encoded import Request
from tests.benchmarks.tinier import tiny

# Parameters of the published safetensors, and of the vision towers alone.
PARAMETERS = {
    "llava-1.5-7b": 7_063_427_072,
    "llava-next-7b": 7_063_431_168,
    "llava-next-34b": 34_752_083_968,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-8b": 8_767_123_696,
    "internvl-8b": 7_944_373_760,
}
SAME_ENCODER = {"glm4v_moe", "qwen3_vl_moe", "cohere2_vision"}
"""As in the dense model of the same name; Command A Vision's is Aya Vision's, with larger tiles."""
UNMEASURED = {
    "cohere_compass", "cosmos3_edge", "cosmos3_omni", "deepseek_vl", "deepseek_vl_hybrid", "dots3_note",
    "ernie4_5_vl_moe", "exaone4_5", "fast_vlm", "gemma3n", "gemma4", "gemma4_unified", "glm46v", "glm5_next",
    "glm_ocr", "glmga", "granite4_vision", "hunyuan_vl", "hy_v4_vl", "hyperclovax_vision_v2", "inkling2",
    "inkling2_loop", "janus", "kimi_k25", "lfm2_vl", "lfm3_vl", "lighton_ocr", "llama4", "llava_next_video",
    "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "minimax_m3_vl", "mistral_large4", "molmo2", "muse_glimmer",
    "muse_spark", "paddleocr_vl", "perception_lm", "qianfan_ocr", "qwen2_5_omni_thinker", "qwen3_5", "qwen3_5_moe",
    "qwen3_omni_moe_thinker", "qwen4_exp", "shieldgemma2", "step3p7", "video_llama_3", "video_llava", "vipllava",
}  # fmt: skip
"""Families of which no shape is written down: what reading their encoder costs has not been measured."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    model = SHAPES[name].build(device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_family_has_an_encoder_shape_or_is_known_to_have_none() -> None:
    assert {SHAPES[name].model_type for name in ENCODERS} == set(FAMILIES) - SAME_ENCODER - UNMEASURED
    assert set(FAMILIES) >= SAME_ENCODER | UNMEASURED


@pytest.mark.parametrize("name", SHAPES)
def test_a_shapes_prompt_is_what_its_family_takes(name: str) -> None:
    shape = tiny(SHAPES[name])
    model = shape.build(small_vocabulary=True)
    inputs = shape.inputs(model, batch=2)
    prompt = inputs["input_ids"]
    with torch.no_grad(), looking_through(model) as site:
        encoded = site.family.encode(inputs, Request(site.features["image"], prompt=prompt))
    assert len(encoded) == 2
    placeholders = int((prompt == model.config.image_token_id).sum())
    assert sum(image.placeholders for image in encoded) == placeholders
    assert all(image.tokens.saliency is not None for image in encoded)


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if not shape.encoder_only])
def test_a_shape_answers_under_a_pruner(name: str) -> None:
    shape = tiny(SHAPES[name])
    model = shape.build()
    inputs = shape.inputs(model)
    pruner = foveate.AdaFV(keep=0.1)
    with pruner(model):
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 3
    assert len(pruner.selections[0]) == -(-pruner.selections[0].total // 10)


def test_a_shape_can_be_cut() -> None:
    shape = tiny(SHAPES["qwen2.5-vl-7b"])
    with pytest.raises(ValueError, match="multiples of 8"):
        shape.build(vision_layers=3)
    with pytest.raises(ValueError, match="asked for 9 and 8"):
        shape.build(llm_layers=9)
    model = SHAPES["qwen2.5-vl-7b"].build(llm_layers=2, vision_layers=16, device="meta")
    assert len(model.model.language_model.layers) == 2
    assert model.config.vision_config.fullatt_block_indexes == [7, 15]


def test_larger_pictures_have_more_views() -> None:
    shape = tiny(SHAPES["llava-next-7b"])
    model = shape.build()
    views = [shape.inputs(model, picture=size)["pixel_values"].shape[1] for size in ((336, 672), (672, 672))]
    assert views == [3, 5]
