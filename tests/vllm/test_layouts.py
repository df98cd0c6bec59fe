"""Where vLLM and the adapters must lay images out alike, for many sizes of picture; and what is refused. No engine."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.plugins import load_general_plugins

from foveate import serving
from foveate.models.encoded import NEWLINE
from foveate.serving import towers
from foveate.serving.family import family_of
from tests.vllm import checkpoints

# (height, width), odd ones and extreme ones among them
DRAW = random.Random(0)
SIZES = [(1, 1), (1, 5000), (5000, 1), *((DRAW.randint(1, most), DRAW.randint(1, most)) for most in [400, 5000] * 300)]


def info_of(folder: Any) -> Any:
    """What vLLM counts an image's tokens with, pruning on."""
    load_general_plugins()
    config = EngineArgs(str(folder), dtype="float32", hf_overrides=serving.options()).create_model_config()
    return MULTIMODAL_REGISTRY.create_processor(config).info


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
