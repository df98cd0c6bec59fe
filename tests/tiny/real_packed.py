"""The same as ``tests.tiny.real`` for encoders that pack patches: GLM after 4.1V, ERNIE-4.5-VL, PaddleOCR-VL."""

from __future__ import annotations

import importlib
from typing import Any

import transformers

from tests.tiny import ernie, glm, ocr
from tests.tiny.real import _TEXT as TEXT
from tests.tiny.real import _WIDTHS as WIDTHS
from tests.tiny.real import Real, _by, _counts, _finished
from tests.tiny.rows import known

SMALL = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14}
MERGED = {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 64, "image_size": 336}


def pil(folder: str, name: str, **options: Any) -> Any:
    """An image processor that works on PIL alone."""
    module = importlib.import_module(f"transformers.models.{folder}.image_processing_pil_{folder}")
    return _by(getattr(module, f"{name}ImageProcessorPil")(**options))


def _glm46v(config: str) -> Any:
    text = {"model_type": "glm4v_text", **TEXT, "rope_parameters": glm.ROPE}
    made = getattr(transformers, config)(vision_config={**SMALL, **MERGED}, text_config=text, **glm.IDS)
    return transformers.Glm46VForConditionalGeneration(made)


def _glm_ocr() -> Any:
    text = {**TEXT, "rope_parameters": glm.ROPE}
    return transformers.GlmOcrForConditionalGeneration(
        transformers.GlmOcrConfig(vision_config={**SMALL, **MERGED}, text_config=text, **glm.IDS)
    )


def _ernie() -> Any:
    vision = {**ernie.VISION, **SMALL}
    return transformers.Ernie4_5_VLMoeForConditionalGeneration(
        transformers.Ernie4_5_VLMoeConfig(vision_config=vision, text_config={**TEXT, **ernie.MOE}, **ernie.IDS)
    )


def _paddleocr() -> Any:
    vision = {**WIDTHS, "image_size": 384, "patch_size": 14, "spatial_merge_size": 2}
    text = {**TEXT, **ocr.ROPE, "head_dim": 16}
    return transformers.PaddleOCRVLForConditionalGeneration(
        transformers.PaddleOCRVLConfig(vision_config=vision, text_config=text, **ocr.IDS)
    )


REAL: dict[str, Real] = {}
if known("glm46v"):
    # As of GLM-4.1V, but at 4000x3000, where there is more room.
    REAL["glm-4.6v"] = Real(
        _finished(lambda: _glm46v("Glm46VConfig")), pil("glm46v", "Glm46V"), counts=_counts(144, 999)
    )
if known("glmga"):
    REAL["glmga"] = Real(_finished(lambda: _glm46v("GlmgaConfig")), pil("glmga", "Glmga"))
if known("glm_ocr", "glm46v"):
    REAL["glm-ocr"] = Real(_finished(_glm_ocr), pil("glm46v", "Glm46V"))
if known("ernie4_5_vl_moe"):
    REAL["ernie-4.5-vl"] = Real(_finished(_ernie), pil("ernie4_5_vl_moe", "Ernie4_5_VLMoe"))
if known("paddleocr_vl"):
    REAL["paddleocr-vl"] = Real(_finished(_paddleocr), pil("paddleocr_vl", "PaddleOCRVL"))
