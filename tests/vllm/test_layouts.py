"""Where vLLM and the adapters must lay images out alike, for many sizes of picture; and what is refused. No engine."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from PIL import Image
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs, TimingContext
from vllm.plugins import load_general_plugins

from foveate import serving
from foveate.models import FAMILIES
from foveate.models.encoded import NEWLINE
from foveate.serving import towers
from foveate.serving.family import family_of
from tests.tiny import BOS, START
from tests.tiny.siglip import paligemma
from tests.vllm import checkpoints

# (height, width), odd ones and extreme ones among them
DRAW = random.Random(0)
SIZES = [(1, 1), (1, 5000), (5000, 1), *((DRAW.randint(1, most), DRAW.randint(1, most)) for most in [400, 5000] * 300)]


def config_of(folder: Any, **overrides: Any) -> Any:
    """vLLM's config of a model that is started with pruning."""
    load_general_plugins()
    overrides = {**serving.options(), **overrides}
    return EngineArgs(str(folder), dtype="float32", hf_overrides=overrides).create_model_config()


def info_of(folder: Any) -> Any:
    """What vLLM counts an image's tokens with, pruning on."""
    return MULTIMODAL_REGISTRY.create_processor(config_of(folder)).info


@pytest.fixture(scope="module")
def next_info(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return info_of(checkpoints.write("llava_next-siglip", tmp_path_factory.mktemp("next")))


@pytest.fixture(scope="module")
def onevision_info(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return info_of(checkpoints.write("llava_onevision", tmp_path_factory.mktemp("onevision")))


def test_next_counts(next_info: Any) -> None:
    """vLLM's count of an image's placeholders is that of the features; our count of newlines that of stock packing."""
    family = next_info.family
    for height, width in SIZES:
        sources = family._stream_sources(family._canvas((height, width)))
        assert next_info.get_num_image_tokens(image_width=width, image_height=height) == len(sources), (height, width)
        assert family.newlines((height, width)) == int((sources == NEWLINE).sum())


def test_onevision_counts(onevision_info: Any) -> None:
    """Likewise, where large images are shrunk."""
    family = onevision_info.family
    for height, width in SIZES:
        canvas = family._canvas((height, width))
        newline = family._is_newline(canvas)
        rows = int(newline.sum())
        assert onevision_info.get_num_image_tokens(image_width=width, image_height=height) == len(newline)
        assert family.newlines((height, width)) == rows
        places = family._place(canvas, rows, len(newline), torch.device("cpu"))
        assert len(places) == len(newline) - rows


REFUSALS = [
    ("llava-pixtral", {}, "Views", "Pixtral"),
    ("llava-full", {}, "Views", "'full' sends CLS"),
    ("llava_onevision", {"vision_aspect_ratio": "anyres_max_4"}, "Onevision", "anyres_max_9"),
    ("internvl", {"vision_feature_layer": -2}, "Tiles", "last layer"),
    ("internvl", {"vision_feature_select_strategy": "full"}, "Tiles", "drops InternVL's CLS"),
    ("qwen2_5_vl", {}, None, "fullatt_block_indexes"),
    ("mistral3", {"vision_feature_layer": [-1, -2]}, "Rows", "reads one layer"),
]


@pytest.mark.parametrize("name, changes, batches, words", REFUSALS)
def test_refused(name: str, changes: dict[str, Any], batches: str | None, words: str) -> None:
    """Models that vLLM handles otherwise than transformers, or that cannot be pruned there."""
    config, _ = {**checkpoints.FAMILIES, **checkpoints.REFUSED}[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    if batches is None:
        config.vision_config.fullatt_block_indexes = []
        with pytest.raises(ValueError, match=words):
            family_of(config)
        return
    with pytest.raises(ValueError, match=words):
        getattr(towers, batches)(family_of(config))


@pytest.mark.parametrize("name, words", [("llava-pixtral", "Pixtral"), ("llava-full", "'full' sends CLS")])
def test_refused_before_there_is_an_engine(name: str, words: str, tmp_path: Any) -> None:
    """In the API server's own process, where one sees it, and not as the end of another."""
    with pytest.raises(ValueError, match=words):
        info_of(checkpoints.write(name, tmp_path))


def test_a_model_that_nobody_stands_in_for_is_refused(tmp_path: Any) -> None:
    """vLLM serves it, transformers prunes it, and under pruning its images would go through as they are."""
    config = paligemma("sdpa").config
    config.architectures = ["PaliGemmaForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    checkpoints.tokenizer().save_pretrained(tmp_path)
    assert config.model_type in FAMILIES
    with pytest.raises(ValueError, match="PaliGemma.* not served under pruning.*Served are .*Qwen2VLForC"):
        config_of(tmp_path)
    EngineArgs(str(tmp_path), dtype="float32").create_model_config()


def test_so_is_what_vllm_runs_by_transformers_own_classes(tmp_path: Any) -> None:
    """Its general class for models that it has none of its own for, or is told to use."""
    load_general_plugins()
    folder = checkpoints.write("qwen2_vl", tmp_path)
    with pytest.raises(ValueError, match="Transformers.* not served under pruning"):
        EngineArgs(str(folder), hf_overrides=serving.options(), model_impl="transformers").create_model_config()


def test_images_that_see_themselves_are_refused_on_a_cpu(tmp_path: Any) -> None:
    """vLLM's attention there is causal throughout, and does not say so. Told to be, it is served."""
    folder = checkpoints.write("gemma3", tmp_path)
    with pytest.raises(ValueError, match="on a CPU .*is_mm_prefix_lm"):
        info_of(folder)
    MULTIMODAL_REGISTRY.create_processor(config_of(folder, is_mm_prefix_lm=False))


def test_pan_and_scan_is_refused(tmp_path: Any) -> None:
    """One picture of vLLM's would be several, with one budget for them together."""
    folder = checkpoints.write("gemma3", tmp_path)
    config = config_of(folder, is_mm_prefix_lm=False, **serving.options(trust_request_mm_kwargs=True))
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    images = processor.info.parse_mm_data({"image": [Image.new("RGB", (900, 300))]})
    prompt = [BOS, START, *range(4, 10)]
    processor.apply(ProcessorInputs(prompt, images), TimingContext())
    scanned = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 100}
    with pytest.raises(ValueError, match="pan and scan"):
        processor.apply(ProcessorInputs(prompt, images, hf_processor_mm_kwargs=scanned), TimingContext())
