"""Transformers' own list of models that answer about images, against what is supported and what is left out and why."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import foveate
from foveate import bundled, versions
from foveate.cli import models as command
from foveate.coverage import SUPPORTED, checkpoint_of, coverage, refused_methods, verdict
from foveate.loading import load
from foveate.models import FAMILIES, check_left_out
from foveate.models.generic import Generic
from foveate.models.left_out import IDEAS, INSTEAD, NOT_APPLICABLE, REASONS
from foveate.serving.family import family_of
from foveate.serving.plugin import ARCHITECTURES, serves
from tests.tiny import ROWS

ROOT = Path(__file__).resolve().parents[2]
THERE = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
NEWEST = transformers.__version__ == versions.NEWEST
LOWEST = transformers.__version__ == versions.LOWEST

FLOOR = 68
"""Types of the newest transformers that can be pruned, as reached: it may only rise."""
APPLICABLE = 79
"""Types of the newest transformers whose pictures are tokens of a prompt."""
GONE = {"pixtral"}
"""Types that the newest transformers no longer lists, and the oldest one does."""


def test_every_type_is_supported_or_left_out_with_a_reason() -> None:
    assert not coverage().unknown


def test_no_type_is_on_two_lists() -> None:
    assert not FAMILIES.keys() & Generic.checkpoints.keys()
    assert not SUPPORTED.keys() & (REASONS.keys() | INSTEAD.keys())
    listed = [model_type for idea in IDEAS for model_type in idea.types]
    assert len(listed) == len(set(listed)) == len(REASONS)
    assert not INSTEAD.keys() & (REASONS.keys() | CONFIG_MAPPING_NAMES.keys())


@pytest.mark.skipif(not (NEWEST or LOWEST), reason="between the ends of the tested range types come and go")
def test_listed_types_exist() -> None:
    """A type that is gone from both ends of the range has no business on a list."""
    assert not GONE - (SUPPORTED.keys() | REASONS.keys())
    if NEWEST:
        assert {*SUPPORTED, *REASONS} - THERE == GONE
    else:
        assert GONE <= THERE


@pytest.mark.skipif(not NEWEST, reason="counted on the newest transformers")
def test_as_many_types_as_before_are_supported() -> None:
    covered = coverage()
    assert covered.supported <= covered.applicable
    assert len(covered.supported) >= FLOOR, f"{len(covered.supported)} of {len(covered.applicable)} are supported"
    assert len(covered.applicable) == APPLICABLE


def test_a_config_has_the_type_that_it_is_listed_under() -> None:
    """Adapters are found by ``config.model_type``: a class that said another would be found under that."""
    for model_type in sorted(THERE & SUPPORTED.keys()):
        module = import_module(
            f"transformers.models.{model_type_to_module_name(model_type)}.configuration_"
            + (model_type_to_module_name(model_type))
        )
        assert getattr(module, CONFIG_MAPPING_NAMES[model_type]).model_type == model_type


def test_what_the_generic_adapter_is_said_to_take_is_in_the_matrix() -> None:
    for model_type in Generic.checkpoints:
        row = ROWS[f"generic-{model_type}"]
        assert row.make("sdpa").config.model_type == model_type


def test_what_is_pruned_in_vllm_goes_by_its_architecture() -> None:
    """Model types and architectures are two names of one thing; transformers has both."""
    architectures = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    expected = {name for name in SUPPORTED if architectures.get(name) in ARCHITECTURES}
    expected.discard("shieldgemma2")  # its checkpoints name a class of their own, which classifies
    assert {name for name in SUPPORTED if serves(name) and name in THERE} == expected
    assert {"llava_next", "qwen3_vl_moe", "internvl"} <= expected


def test_every_type_names_a_checkpoint() -> None:
    for model_type, family in SUPPORTED.items():
        name, note = checkpoint_of(model_type)
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", name) or (not name and note.startswith("none is known"))
        assert named, f"{model_type} names no checkpoint, and does not say that none is known"
        assert "(" not in note and ")" not in note
        assert family is Generic or family.checkpoints.keys() == set(family.model_types)
    assert checkpoint_of("internvl")[0].endswith("-hf")


# What the reasons say, seen in the classes.


def config_of(model_type: str) -> Any:
    return AutoConfig.for_model(model_type)


def here(title: str) -> list[str]:
    (idea,) = [one for one in IDEAS if one.title == title]
    return [model_type for model_type in idea.types if model_type in THERE - GONE]


@pytest.mark.parametrize("model_type", here("encoder and decoder"))
def test_encoder_decoders_are_that(model_type: str) -> None:
    module = import_module(f"transformers.models.{model_type_to_module_name(model_type)}")
    config = getattr(module, CONFIG_MAPPING_NAMES[model_type])
    decides = getattr(config, "is_encoder_decoder", False)
    if not isinstance(decides, bool) or not decides:  # set by each instance, which needs configs of both halves
        assert model_type == "vision-encoder-decoder"
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.ViTConfig(), transformers.GPT2Config()
        )
        assert config.is_encoder_decoder


QUERIES = {
    "aria": lambda config: set(config.projector_patch_to_query_dict.values()),
    "blip-2": lambda config: config.num_query_tokens,
    "deepseek_ocr2": lambda _: set(map(int, re.findall(r"nn\.Embedding\((\d+), .*\d+px", source_of("deepseek_ocr2")))),
    "idefics2": lambda config: config.perceiver_config.resampler_n_latents,
    "instructblip": lambda config: config.num_query_tokens,
    "instructblipvideo": lambda config: config.num_query_tokens,
    "kosmos-2": lambda config: config.latent_query_num,
    "kosmos-2.5": lambda config: config.latent_query_num,
}


@pytest.mark.parametrize("model_type", here("latent queries"))
def test_latent_queries_are_as_many_as_said(model_type: str) -> None:
    found = QUERIES[model_type](config_of(model_type))
    said = set(map(int, re.findall(r" (\d+)\b", REASONS[model_type])))
    assert said == (found if isinstance(found, set) else {found})


@pytest.mark.parametrize("model_type", here("cross attention"))
def test_cross_attention_is_there(model_type: str) -> None:
    assert re.search(r"self\.(cross_attn|crossattention)\b", source_of(model_type))


@pytest.mark.parametrize("model_type", here("pictures as words"))
def test_pictures_become_words(model_type: str) -> None:
    source = source_of(model_type)
    assert "def get_image_tokens" in source and re.search(r"self\.get_input_embeddings\(\)\((bpe_)?tokens\)", source)


@pytest.mark.parametrize("model_type", here("raw patches"))
def test_patches_go_through_one_linear_layer(model_type: str) -> None:
    source = source_of(model_type)
    assert "self.vision_embed_tokens = nn.Linear(" in source and "vision_config" not in source


@pytest.mark.parametrize("model_type", here("no placeholders"))
def test_features_go_in_front_of_the_text(model_type: str) -> None:
    source = source_of(model_type)
    assert "image_token_id" not in source and "torch.cat((projected_visual_features, embedding_output)" in source


@pytest.mark.parametrize("model_type", here("written by diffusion"))
def test_generate_is_its_own(model_type: str) -> None:
    generates = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]).generate
    assert generates.__module__.startswith(f"transformers.models.{model_type}.")


def source_of(model_type: str) -> str:
    """The code of a type's modelling files."""
    folder = Path(transformers.__file__).parent / "models" / model_type_to_module_name(model_type)
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("modeling_*.py")))


# Where people meet the reasons.


class Left(torch.nn.Module):
    """A model of a type that is left out, as far as its config."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.Idefics2Config()


def test_a_left_out_model_is_refused_with_its_reason(tmp_path: Path) -> None:
    expected = r"'idefics2' is not supported: .*64 a picture.*none stands for a part"
    with pytest.raises(ValueError, match=expected) as refused:
        foveate.attach(Left(), foveate.AdaFV())
    assert "generic" not in str(refused.value)
    with pytest.raises(ValueError, match=expected):
        family_of(transformers.Idefics2Config())
    # A type that no transformers here knows either, from the folder's config alone.
    for model_type in ("idefics2", "internvl_chat"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        for name in ("processor_config.json", "tokenizer.json", "model.safetensors"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"(?s){re.escape(str(tmp_path))}.*'{model_type}' is not supported: "):
            load(str(tmp_path))


def test_reasons_are_one_sentence() -> None:
    for model_type, reason in {**REASONS, **INSTEAD}.items():
        assert not reason.endswith(".") and ". " not in reason.replace("Apertus 1.5 ", ""), model_type
        with pytest.raises(ValueError, match="Use a family that `foveate models` lists"):
            check_left_out(model_type)
    for model_type in FAMILIES:
        check_left_out(model_type)
    assert REASONS.keys() > NOT_APPLICABLE


# ``foveate models --check``


def test_check_of_types(capsys: pytest.CaptureFixture[str]) -> None:
    command.check_model("internvl", as_json=False)
    told = capsys.readouterr().out
    assert "internvl can be pruned" in told and "OpenGVLab/InternVL3-8B-hf" in told and "the -hf form" in told
    assert re.search(r"not with +fastv", told) and max(map(len, told.splitlines())) <= 80
    command.check_model("qwen2_5_vl", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["supported"], told["video"], told["positions"], told["vllm"]) == (True, "yes", "original", "yes")
    assert told["adapter"] == "Qwen2.5-VL" and told["transformers"] == transformers.__version__
    with pytest.raises(typer.Exit) as left:
        command.check_model("mllama", as_json=False)
    told = capsys.readouterr().out
    assert left.value.exit_code == 1 and "cross attention" in told and max(map(len, told.splitlines())) <= 80
    with pytest.raises(typer.Exit):
        command.check_model("mllama", as_json=True)
    assert json.loads(capsys.readouterr().out)["reason"] == REASONS["mllama"]


def test_verdicts() -> None:
    assert verdict("Qwen/Qwen2.5-VL-7B-Instruct").model_type == "qwen2_5_vl"
    assert "-hf" in str(verdict("internvl_chat").reason)
    assert "without its pictures" in str(verdict("gemma3_text").reason)
    assert "does not count it" in str(verdict("bert").reason)
    for whole, thinker in (("qwen2_5_omni", "Qwen2_5OmniThinker"), ("qwen3_omni_moe", "Qwen3OmniMoeThinker")):
        found = verdict(whole)
        assert not found.supported and f"{thinker}ForConditionalGeneration.from_pretrained" in str(found.reason)
    with pytest.raises(ValueError, match=r"'qwen25_vl' is known \(close to it: qwen2_5_vl"):
        verdict("qwen25_vl")
    for written in ("QWEN2_VL", "Qwen2-VL"):
        with pytest.raises(ValueError, match=r"close to it: qwen2_vl"):
            verdict(written)
    with pytest.raises(ValueError, match="its config.json has$"):
        verdict("nobody/no-such-model")
    with pytest.raises(ValueError, match=r"google/gemma-4-E2B-it says gemma4\)$"):
        verdict("google/gemma-4-E4B-it")
    for name in ("zai-org/GLM-4.6V", "GLM-4.6V"):
        with pytest.raises(ValueError, match=r"such a name, GLM-4\.6V says glm4v_moe"):
            verdict(name)


TIMM = {"fast_vlm", "gemma3n", "perception_lm"}
"""Types whose encoders need timm, which is not everywhere."""


def test_verdicts_on_types_are_those_of_the_matrix() -> None:
    """What the installed transformers cannot do has no row there, as the rows themselves find out; it is told."""
    rows = {row.make("sdpa").config.model_type for row in ROWS.values()}
    there = {name for name in SUPPORTED if name in CONFIG_MAPPING_NAMES} - TIMM
    assert {name for name in there if verdict(name).supported} == there & rows
    for name in there - rows:
        assert "pip install" in str(verdict(name).reason)


@pytest.mark.skipif("gemma4_unified" not in ROWS, reason="not in this transformers")
def test_methods_that_are_said_to_be_refused_are_and_no_others() -> None:
    model = ROWS["gemma4_unified"].make("sdpa")
    refused = refused_methods(SUPPORTED["gemma4_unified"], "gemma4_unified")
    for name, method in foveate.METHODS.items():
        if name in refused:
            with pytest.raises(ValueError, match="Methods that do without"):
                foveate.attach(model, method(keep=0.5))
        else:
            foveate.attach(model, method(keep=0.5)).remove()
    for pruner in (foveate.Cover(keep=0.5, saliency=0), foveate.Merged(foveate.DivPrune(keep=0.5))):
        foveate.attach(model, pruner).remove()
    assert {"adafv", "cover", "saliency"} <= refused.keys() and not refused.keys() & foveate.WRAPPERS.keys()


@pytest.mark.skipif(not NEWEST, reason="Llama 4 fails in one version")
def test_a_checkpoint_whose_class_fails_in_stock_is_told_so(tmp_path: Path) -> None:
    AutoConfig.for_model("llama4").save_pretrained(tmp_path)
    found = verdict(str(tmp_path))
    assert not found.supported and "with a pruner or without" in str(found.reason)


def test_a_type_that_only_newer_transformers_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.coverage.CONFIG_MAPPING_NAMES", {})
    found = verdict("qwen2_5_vl")
    assert not found.supported and found.about and "pip install --upgrade transformers" in str(found.reason)


def test_verdicts_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the whole config says, without weights."""
    for source in (bundled.path(), bundled.path() / "config.json"):
        found = verdict(str(source))
        assert found.supported and found.model_type == "llava_next" and found.reason is None
    config = tmp_path / "config.json"
    strange = json.loads((bundled.path() / "config.json").read_text())
    strange["vision_config"] = {"model_type": "vit", "hidden_size": 32, "num_attention_heads": 4}
    config.write_text(json.dumps(strange))
    found = verdict(str(tmp_path))
    assert not found.supported and "vision tower 'vit' is not supported" in str(found.reason)
    ROWS["llava-clip"].make("sdpa").config.save_pretrained(tmp_path)
    with monkeypatch.context() as without:  # as a type that no adapter knows and the generic one may take
        lists = {"loading.FAMILIES": FAMILIES, "coverage.FAMILIES": FAMILIES, "coverage.SUPPORTED": SUPPORTED}
        for place, known in lists.items():
            without.setattr(f"foveate.{place}", {name: one for name, one in known.items() if name != "llava"})
        found = verdict(str(tmp_path))
    assert found.supported and found.about is None and "tries the model out" in str(found.reason)
    for told, reason in (("aria", "queries"), ("gpt2", "does not count it"), ("qwen2_9_vl", "close to it: qwen2")):
        config.write_text(json.dumps({"model_type": told}))
        found = verdict(str(tmp_path))
        assert not found.supported and reason in str(found.reason)
    for text, said in (("{}", "no model_type"), ("[]", "no object"), ("{", "not JSON")):
        config.write_text(text)
        with pytest.raises(ValueError, match=said):
            verdict(str(tmp_path))
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a config.json"):
        verdict(str(config))
    with pytest.raises(FileNotFoundError, match="give a checkpoint's folder"):
        verdict(str(tmp_path / "absent"))


# The pages.


@pytest.mark.parametrize(("page", "tables"), [("README.md", 1), ("docs/families.md", 2)])
def test_the_tables_of_a_page_are_up_to_date(page: str, tables: int) -> None:
    """On every transformers: they are made of the adapters alone."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(command.MARKED.findall(text)) == tables
    assert command.with_tables(text) == text, f"run: foveate models --markdown {page}"


def test_tables_are_written_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = "<!-- table: left-out, by `foveate models --markdown` -->\n{}<!-- /table -->"
    page.write_text(f"before\n{marks.format('from before')}\nafter\n")
    command.write_tables(page)
    written = page.read_text()
    assert written == f"before\n{marks.format(command.left_out_table())}\nafter\n"
    assert "`aria`" in written
    page.write_text(marks.replace("left-out", "right-in"))
    with pytest.raises(ValueError, match="no table 'right-in'; there are: types"):
        command.write_tables(page)
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no line"):
        command.write_tables(page)
    with pytest.raises(FileNotFoundError):
        command.write_tables(tmp_path / "absent.md")
