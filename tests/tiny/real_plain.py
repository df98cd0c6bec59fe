"""The same for encoders that pack patches, before LLMs with plain positions. Imported by ``real`` at its end."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
from PIL import Image
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.tiny import inkling2, plain
from tests.tiny.real import Real, _by, _counts, _finished, _qwen_images, seeing_only_its_own
from tests.tiny.rows import encodes_apart, finish, known

_MUSE = {"pos_emb_height": 32, "pos_emb_width": 32, "max_position_embeddings": 1024}
_SIZES = {"shortest_edge": 3136, "longest_edge": 2408448}


def _model(make: Callable[[str], Any], **vision: Any) -> Any:
    """A row's model with another encoder."""
    small = make("sdpa").config.to_dict()
    kind = small["model_type"]
    config = CONFIG_MAPPING[kind].from_dict({**small, "vision_config": {**small["vision_config"], **vision}})
    return AutoModelForImageTextToText.from_config(config)


def _torchvision(folder: str, name: str, **options: Any) -> Callable[[Image.Image], dict[str, Any]]:
    """An image processor that there is with torchvision alone: without, what asks for it is skipped."""

    @cache
    def made() -> Any:
        pytest.importorskip("torchvision", reason=f"{name} needs torchvision")
        module = importlib.import_module(f"transformers.models.{folder}.image_processing_{folder}")
        return getattr(module, name)(**options)

    return lambda picture: dict(made()(picture, return_tensors="pt"))


@cache
def _inkling2() -> Any:
    """Its LLM has eager attention alone."""
    small = inkling2.inkling2("Inkling2", "sdpa").config.to_dict()
    vision = {**small["vision_config"], "patch_size": 20, "posemb_grid_size": 32}
    config = CONFIG_MAPPING["inkling2"].from_dict({**small, "vision_config": vision})
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    return seeing_only_its_own(finish(model, "eager"))


REAL: dict[str, Real] = {}
if known("kimi_k25"):
    REAL["kimi-k2.5"] = Real(
        _finished(partial(_model, plain.kimi_k25, pos_emb_height=64, pos_emb_width=64)),
        _torchvision("kimi_k25", "Kimi_K25ImageProcessor"),
        counts=_counts(144, 1036, 4200, 792, 1),
    )
if known("exaone4_5"):
    # The processor's sizes are those of Qwen2.5-VL's checkpoints; EXAONE's own were not at hand.
    REAL["exaone-4.5"] = Real(
        _finished(partial(_model, plain.exaone4_5, window_size=112, fullatt_block_indexes=[1, 3])),
        _qwen_images(14, 3136, 2408448),
    )
if known("hyperclovax_vision_v2"):
    REAL["hyperclova-x"] = Real(
        _finished(partial(_model, plain.hyperclovax, window_size=112, fullatt_block_indexes=[1, 3])),
        _qwen_images(14, 3136, 2408448),
    )
if encodes_apart("VideoLlama3Model"):
    from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil

    REAL["video-llama-3"] = Real(
        _finished(partial(_model, plain.video_llama_3)),
        _by(VideoLlama3ImageProcessorPil()),
        counts=_counts(576, 4015, 5002, 3003, 16),
    )
if "minimax_m3_vl" in plain.ROWS:
    REAL["minimax-m3"] = Real(
        _finished(partial(_model, plain.minimax_m3)), _torchvision("minimax_m3_vl", "MiniMaxM3VLImageProcessor")
    )
if known("muse_glimmer"):
    REAL["muse-glimmer"] = Real(
        _finished(
            partial(_model, plain.muse_glimmer, pos_emb_height=32, pos_emb_width=32, max_position_embeddings=1024)
        ),
        _torchvision("muse_glimmer", "MuseGlimmerImageProcessor"),
    )
if known("dots3_note"):
    REAL["dots3-note"] = Real(
        _finished(partial(_model, plain.dots3_note)),
        _by(Qwen2VLImageProcessorPil(size=_SIZES, patch_size=14, temporal_patch_size=1)),
    )
if known("inkling2"):
    REAL["inkling-2"] = Real(_inkling2, _torchvision("inkling2", "Inkling2ImageProcessor"))
