"""The same as ``tests.tiny.real`` for encoders that pack patches: later GLMs, ERNIE, readers of documents, LFM3."""

from __future__ import annotations

import importlib
from typing import Any

import transformers

from tests.tiny import ernie, glm, hunyuan, lfm3, ocr
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


def _glm5_next() -> Any:
    vision = {**SMALL, **MERGED, "projection_intermediate_size": 64}
    text = {**TEXT, **glm.GLM5, "mlp_layer_types": ["dense"], "layer_types": ["indexed_attention"]}
    return transformers.Glm5NextForConditionalGeneration(
        transformers.Glm5NextConfig(vision_config=vision, text_config=text, **glm.IDS)
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


def _lfm3_vl() -> Any:
    text = {**TEXT, "model_type": "lfm3", "head_dim": 16, "layer_types": ["full_attention"]}
    return transformers.Lfm3VlForConditionalGeneration(
        transformers.Lfm3VlConfig(vision_config=lfm3.VISION, text_config=text, projector_hidden_size=64, **lfm3.IDS)
    )


def _hunyuan_vl() -> Any:
    vision = {**WIDTHS, "patch_size": 16, "max_image_size": 256, "out_hidden_size": 64}
    return transformers.HunYuanVLForConditionalGeneration(
        transformers.HunYuanVLConfig(vision_config=vision, text_config=hunyuan.text([2, 2, 2, 2]), **hunyuan.IDS)
    )


def _hy_v4_vl() -> Any:
    vision = {**WIDTHS, "patch_size": 16, "max_image_size": 256, "out_hidden_size": 64}
    text = {**hunyuan.text([2, 3, 3]), **hunyuan.HY4, "mlp_layer_types": ["dense"], "num_hidden_layers": 1}
    config = transformers.HYV4VLConfig(
        vision_config=vision, text_config=text, image_token_id=hunyuan.IMAGE, video_token_id=hunyuan.VIDEO
    )
    return transformers.HYV4VLForConditionalGeneration(config)


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
if known("glm5_next"):
    REAL["glm-5.3-flash"] = Real(_finished(_glm5_next), pil("glm5_next", "Glm5Next"))
if known("ernie4_5_vl_moe"):
    REAL["ernie-4.5-vl"] = Real(_finished(_ernie), pil("ernie4_5_vl_moe", "Ernie4_5_VLMoe"))
if known("paddleocr_vl"):
    REAL["paddleocr-vl"] = Real(_finished(_paddleocr), pil("paddleocr_vl", "PaddleOCRVL"))
if known("lfm3_vl"):
    REAL["lfm3-vl"] = Real(
        _finished(_lfm3_vl),
        pil("qwen2_vl", "Qwen2VL", size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16),
        counts=_counts(100, 768),
    )
if "hy_v4_vl" in hunyuan.ROWS:
    REAL["hy-4-vl"] = Real(_finished(_hy_v4_vl, "eager"), pil("hy_v4_vl", "HYV4VL"))
if "hunyuan_vl" in hunyuan.ROWS:
    REAL["hunyuan-ocr"] = Real(_finished(_hunyuan_vl), pil("hunyuan_vl", "HunYuanVL"))
