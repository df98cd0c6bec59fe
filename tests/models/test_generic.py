"""The generic adapter: what it says it assumes, and what it refuses before or when it would be wrong."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AriaConfig,
    AriaForConditionalGeneration,
    AriaTextConfig,
    AutoConfig,
    AutoModelForImageTextToText,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    LlamaConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    VipLlavaConfig,
)

import foveate
from foveate.loading import check_family, load
from foveate.models import FAMILIES, family_for
from tests.tiny import IMAGE, ROWS, SILENT, prompts
from tests.tiny.generic import AnotherConfig, unknown_vision
from tests.tiny.rows import TEXT, VISION

GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The announcement is tested once; everywhere else it is expected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no adapter knows")
        yield


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(ROWS["generic-several_layers"].make("sdpa"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "generic-several_layers",
            [
                "'another_llava'",
                "attention CLS pays in vision_tower.*layers.1,",
                "56x56 pixels has 4x4",
                "1x1",
                "4x4 tokens",
            ],
        ),
        ("generic-pixel_shuffle", ["mean attention received.*layers.2,", "4x4 patches, and 2x2", "2x2 tokens"]),
        ("generic-deepseek_vl", ["vision_model.*layers.2,", "unbroken run", "one below the other", "adding_a_family"]),
    ],
)
def test_says_what_it_assumes(name: str, said: list[str]) -> None:
    if name not in ROWS:
        pytest.skip("refused there: test_features_that_are_not_flat_are_refused")
    with pytest.warns(UserWarning, match="no adapter knows.*" + ".*".join(said)):
        foveate.attach(ROWS[name].make("sdpa"), foveate.AdaFV()).remove()


def refused(model: Any, reason: str) -> None:
    """At attachment, naming the families there are and the way to an adapter; nothing is left behind.

    As if no list knew its type: some have an adapter of their own, others are left out with a reason.
    """
    model.config.model_type = "of_no_list"
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=f"(?s)is not supported.*llava_next.*{reason}.*adding_a_family.md"):
        foveate.attach(model, foveate.AdaFV())
    for name, module in model.named_modules():
        after = {key: value for key, value in vars(module).items() if key != "_output_capturing_hooks_installed"}
        assert all(before[name][key] is after[key] for key in after), name


@pytest.mark.skipif("generic-pixel_shuffle" in ROWS, reason="this transformers hands such features over flat")
def test_features_that_are_not_flat_are_refused() -> None:
    refused(unknown_vision("sdpa"), "pooler_output with one .tokens, width. per view")


def test_positions_of_three_dimensions_are_refused() -> None:
    config = PaddleOCRVLConfig(
        text_config={**TEXT, "head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        vision_config={**VISION, "spatial_merge_size": 2},
        image_token_id=IMAGE,
    )
    refused(PaddleOCRVLForConditionalGeneration(config), "get_rope_index")


def test_cross_attention_is_refused() -> None:
    config = MllamaConfig(
        text_config={**TEXT, "cross_attention_layers": [1], "num_hidden_layers": 2},
        vision_config={
            **VISION, "num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 64,
            "attention_heads": 4,
        },
    )  # fmt: skip
    refused(MllamaForConditionalGeneration(config), "no model.get_image_features")


def test_attention_that_cannot_be_tapped_is_refused() -> None:
    config = GotOcr2Config(
        vision_config={**VISION, "output_channels": 16, "global_attn_indexes": [0], "mlp_dim": 64, "window_size": 2},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
    )
    refused(GotOcr2ForConditionalGeneration(config), "GotOcr2VisionAttention does not go through")


def test_tokens_that_are_no_patches_are_refused() -> None:
    """Aria's projector asks the patches with queries of its own."""
    config = AriaConfig(
        vision_config={"model_type": "idefics3_vision", **VISION},
        text_config=AriaTextConfig(**TEXT, moe_num_experts=2, moe_topk=1),
        projector_patch_to_query_dict={16: 4},
        image_token_index=IMAGE,
    )
    refused(AriaForConditionalGeneration(config), "changed 4 of 4 tokens where")


# Classes as a repository could bring them, each contradicting one assumption.


def changed(model: Any, features: Any, **config: Any) -> Any:
    """The model with another ``get_image_features``, as a subclass of its own class has it."""
    model.model.__class__ = type("Custom", (type(model.model),), {"get_image_features": features})
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def test_a_deeper_layer_than_the_config_says_is_refused(model: Any) -> None:
    def features(self: Any, pixel_values: Any, **kwargs: Any) -> Any:
        return type(self).__mro__[1].get_image_features(self, pixel_values, vision_feature_layers=[1, 2, -1], **kwargs)

    refused(changed(model, features), "changed 16 of 16 tokens where 2 are")


def test_a_shallower_layer_than_the_config_says_is_refused(model: Any) -> None:
    def features(self: Any, pixel_values: Any, **kwargs: Any) -> Any:
        return type(self).__mro__[1].get_image_features(self, pixel_values, vision_feature_layers=[1, 1, 1], **kwargs)

    refused(changed(model, features), "changed 0 of 16 tokens where 2 are")


def test_patches_in_another_order_are_refused(model: Any) -> None:
    def features(self: Any, pixel_values: Any, **kwargs: Any) -> Any:
        output = type(self).__mro__[1].get_image_features(self, pixel_values, **kwargs)
        output.pooler_output = output.pooler_output.flip(1)
        return output

    refused(changed(model, features), "changed 2 of 16 tokens.*in another way than square by square")


def test_more_than_the_tokens_of_patches_is_refused(model: Any) -> None:
    def features(self: Any, pixel_values: Any, **kwargs: Any) -> Any:
        output = type(self).__mro__[1].get_image_features(self, pixel_values, **kwargs)
        output.pooler_output = torch.cat([output.pooler_output, output.pooler_output[:, :1]], dim=1)
        return output

    refused(changed(model, features), "gives 17 tokens, and 16 patches")


def test_further_features_are_refused(model: Any) -> None:
    def features(self: Any, pixel_values: Any, **kwargs: Any) -> Any:
        output = type(self).__mro__[1].get_image_features(self, pixel_values, **kwargs)
        output["deepstack_features"] = output.pooler_output
        return output

    refused(changed(model, features), "deepstack_features")


def test_features_that_cannot_be_had_from_pixels_alone_are_refused(model: Any) -> None:
    def needs(self: Any, pixel_values: Any, image_grid: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def fails(self: Any, pixel_values: Any, image_grid: Any = None, **kwargs: Any) -> Any:
        return pixel_values[image_grid.item()]

    refused(changed(copy.deepcopy(model), needs), "needs pixel_values, image_grid")
    refused(changed(model, fails), "failed on \\(3, 3, 56, 56\\) of noise")


@pytest.mark.parametrize("layers", [[0], 0])
def test_no_attention_before_the_first_layer(model: Any, layers: Any) -> None:
    model.config.vision_feature_layers = layers
    refused(model, "before any attention")


def test_several_stacks_of_layers_are_refused(model: Any) -> None:
    model.model.vision_tower.add_module("stages", nn.Sequential(nn.ModuleDict({"blocks": nn.ModuleList()})))
    refused(model, "has 2 stacks of layers")


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_features_as_a_list(model: Any, keep: float) -> None:
    """One entry per view, as many classes give them: the same answers as from one tensor."""

    def features(self: Any, pixel_values: Any, **kwargs: Any) -> Any:
        output = type(self).__mro__[1].get_image_features(self, pixel_values, **kwargs)
        output.pooler_output = list(output.pooler_output)
        return output

    def forward(
        self: Any, input_ids: Any, pixel_values: Any = None, mm_encoder_outputs: Any = None, **kwargs: Any
    ) -> Any:
        embeddings = self.get_input_embeddings()(input_ids)
        found = (mm_encoder_outputs or {}).get("image")
        found = (
            self.get_image_features(pixel_values, return_dict=True)
            if found is None and pixel_values is not None
            else found
        )
        if found is not None:
            assert isinstance(found.pooler_output, list)
            there = (input_ids == IMAGE)[..., None]
            embeddings = embeddings.masked_scatter(there, torch.cat(found.pooler_output))
        return type(self).__mro__[1].forward(self, **{**kwargs, "inputs_embeds": embeddings})

    inputs = prompts(ROWS["generic-several_layers"], model, "mixed")
    with foveate.AdaFV(keep=keep)(model):
        expected = model.generate(**inputs, **GREEDY)
    listed = changed(copy.deepcopy(model), features)
    type(listed.model).forward = forward
    assert family_for(listed).seen.listed
    with foveate.AdaFV(keep=keep)(listed):
        assert torch.equal(listed.generate(**inputs, **GREEDY), expected)


# What a call may still contradict.


def test_views_of_another_size_are_refused(model: Any) -> None:
    inputs = prompts(ROWS["generic-several_layers"], model, "one")
    with foveate.AdaFV(keep=0.3)(model):
        for pixels in (inputs["pixel_values"][..., :42], inputs["pixel_values"][None], [inputs["pixel_values"]]):
            with pytest.raises(ValueError, match=r"one tensor \(views, 3, 56, 56\), got .*adding_a_family"):
                model.generate(**{**inputs, "pixel_values": pixels}, **GREEDY)


def test_runs_that_are_no_whole_views_are_refused(model: Any) -> None:
    inputs = prompts(ROWS["generic-several_layers"], model, "one")
    first = int((inputs["input_ids"] == IMAGE).long().argmax())
    broken = inputs["input_ids"].clone()
    broken[:, first + 4] = 50
    longer = torch.cat([broken[:, :first], torch.tensor([[IMAGE]]), inputs["input_ids"][:, first:]], dim=1)
    with foveate.AdaFV(keep=0.3)(model):
        for ids, runs in ((broken, "4, 11"), (longer, "17"), (broken[:, :first], "no")):
            with pytest.raises(ValueError, match=f"runs of {runs} image placeholders, and the 1 views .* need 16 each"):
                model.generate(input_ids=ids, pixel_values=inputs["pixel_values"], **GREEDY)


def test_arguments_that_change_what_is_read_are_refused(model: Any) -> None:
    inputs = prompts(ROWS["generic-several_layers"], model, "one")
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="does not know what vision_feature_layers"):
        model(**inputs, vision_feature_layers=[1, 1, 1])


def test_adjacent_images_share_a_budget(model: Any) -> None:
    """The rule it announces: an unbroken run is one image."""
    one = prompts(ROWS["generic-several_layers"], model, "one")
    ids = one["input_ids"]
    first = int((ids == IMAGE).long().argmax())
    pixels = prompts(ROWS["generic-several_layers"], model, "several")["pixel_values"]
    pruner = foveate.AdaFV(keep=5)
    with pruner(model):
        model.generate(
            input_ids=torch.cat([ids[:, :first], torch.full((1, 16), IMAGE), ids[:, first:]], dim=1),
            pixel_values=pixels,
            **GREEDY,
        )
    (selection,) = pruner.selections
    assert (selection.total, len(selection), selection.geometry.image_size) == (32, 5, (112, 56))


def test_tried_once_per_model_and_again_where_another_layer_is_read(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    from foveate.models import generic

    real = generic.try_out
    monkeypatch.setattr(generic, "try_out", lambda *given: tried.append(given[1].name) or real(*given))
    for _ in range(2):
        foveate.attach(model, foveate.AdaFV()).remove()
    model.config.vision_feature_layers = [1, 1, 1]
    foveate.attach(model, foveate.AdaFV()).remove()
    assert [name[-1] for name in tried] == ["1", "0"]


def test_a_training_model_is_tried_without_dropout_and_trains_on(model: Any) -> None:
    model.config.vision_config.attention_dropout = 0.5
    for layer in model.model.vision_tower.modules():
        if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
            layer.dropout = 0.5
    model.train()
    state = torch.get_rng_state()
    foveate.attach(model, foveate.AdaFV()).remove()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


# What loads by name.


def test_loading_accepts_what_may_fit() -> None:
    check_family("here", VipLlavaConfig(vision_feature_layers=[-2]))
    with pytest.raises(ValueError, match="(?s)here.*llama' is not supported.*llava_next.*adding_a_family"):
        check_family("here", LlamaConfig(**TEXT))
    assert "another_llava" not in FAMILIES


def test_loading_a_checkpoint_without_an_adapter(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.checkpoint import llava_processor

    for mapping in (CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", {**mapping._extra_content})  # what is registered here goes again
    monkeypatch.setattr(type(model), "config_class", AnotherConfig)
    AutoConfig.register("another_llava", AnotherConfig)
    AutoModelForImageTextToText.register(AnotherConfig, type(model))
    model.save_pretrained(tmp_path)
    llava_processor().save_pretrained(tmp_path)
    loaded, _ = load(str(tmp_path), device="cpu")
    inputs = prompts(ROWS["generic-several_layers"], model, "one")
    with foveate.AdaFV(keep=0.3)(loaded), foveate.AdaFV(keep=0.3)(model):
        assert torch.equal(loaded.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))
    LlamaConfig(**TEXT).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llama' is not supported; known: .*llava"):
        load(str(tmp_path), device="cpu")
