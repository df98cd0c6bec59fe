"""Released geometry of families whose views come in sizes of their own: Gemma 4, MiniCPM-V, LFM2-VL, Step 3.7, Molmo 2;
and of Granite Vision 4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import transformers
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.tiny import gemma4, granite4, lfm2, minicpm, molmo2, step3p7
from tests.tiny.real import _TEXT, _WIDTHS, GRANITE_PINPOINTS, Real, _by, _finished
from tests.tiny.rows import END, IMAGE, START, encodes_apart, known

_LAYER = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}


def _gemma4() -> Any:
    vision = {**_WIDTHS, "head_dim": 8, "num_key_value_heads": 4}
    text = {**gemma4.LARGE, **_TEXT, **_LAYER}
    config = transformers.Gemma4Config(vision_config=vision, text_config=text, audio_config=None, **gemma4.IDS)
    return transformers.Gemma4ForConditionalGeneration(config)


def _gemma4_images(tokens: int) -> Callable[[Image.Image], dict[str, Any]]:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return _by(Gemma4ImageProcessorPil(max_soft_tokens=tokens))


def _minicpm(name: str) -> Any:
    vision = {**_WIDTHS, "num_hidden_layers": 3, "image_size": 980, "patch_size": 14}
    text = {**minicpm.LLM, **_LAYER}
    made = getattr(transformers, f"{name}Config")
    config = made(vision_config=vision, text_config=text, insert_layer_id=0, image_token_id=IMAGE)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _minicpm_images(mode: str, picture: Image.Image) -> dict[str, Any]:
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    found = dict(MiniCPMV4_6ImageProcessorPil(downsample_mode=mode)(picture, return_tensors="pt"))
    return {**found, "downsample_mode": mode}


def _write_slices(inputs: dict[str, Any], count: int) -> list[int]:
    divisor = 4 if inputs["downsample_mode"] == "4x" else 16
    overview, *slices = ([IMAGE] * (rows * columns // divisor) for rows, columns in inputs["target_sizes"].tolist())
    rows, columns = inputs["grids"][0]
    ids = [START, *overview, END]
    for row in range(rows):
        ids += [minicpm.LINE] * (row > 0)
        for run in slices[row * columns : (row + 1) * columns]:
            ids += [minicpm.SLICE, *run, minicpm.SLICED]
    assert ids.count(IMAGE) == count
    return ids


def _lfm2() -> Any:
    vision = {**_WIDTHS, "model_type": "siglip2_vision_model", "patch_size": 16, "num_patches": 256}
    config = transformers.Lfm2VlConfig(
        vision_config=vision, text_config={**lfm2.LLM, **_LAYER}, image_token_id=IMAGE, projector_hidden_size=32
    )
    return transformers.Lfm2VlForConditionalGeneration(config)


def _lfm2_images(picture: Image.Image) -> dict[str, Any]:
    pytest.importorskip("torchvision", reason="LFM2-VL's image processor has no form without torchvision")
    return dict(transformers.Lfm2VlImageProcessor()(picture, return_tensors="pt", return_row_col_info=True))


def _write_tiles(inputs: dict[str, Any], count: int) -> list[int]:
    """Tags as in the released vocabulary, ten to a row, below all others' ids."""
    rows, columns = int(inputs["image_rows"][0]), int(inputs["image_cols"][0])
    runs = iter([[IMAGE] * (height * width // 4) for height, width in inputs["spatial_shapes"].tolist()])
    ids = [START]
    if rows * columns > 1:
        for row in range(rows):
            for column in range(columns):
                ids += [-200 + 10 * row + column, *next(runs)]
        ids.append(-100)
    ids += [*next(runs), END]
    assert ids.count(IMAGE) == count
    return ids


def _step3p7() -> Any:
    vision = {**step3p7.VISION, "image_size": 728, "patch_size": 14}
    config = transformers.Step3p7Config(vision_config=vision, text_config=step3p7.LLM, image_token_id=IMAGE)
    return transformers.Step3p7ForConditionalGeneration(config)


def _step3p7_images(picture: Image.Image) -> dict[str, Any]:
    pytest.importorskip("torchvision", reason="Step 3.7's image processor has no form without torchvision")
    return dict(transformers.Step3p7ImageProcessor()(picture, return_tensors="pt"))


def _write_crops(inputs: dict[str, Any], count: int) -> list[int]:
    """What ``Step3p7Processor`` writes: marks from the image processor's own list."""
    ids = []
    for crop in range(int(inputs["num_local_patches"][0])):
        ids += [step3p7.CROP, *[IMAGE] * 81, step3p7.CROPPED]
        ids += [step3p7.LINE] * bool(inputs["patch_newline_masks"][0][crop])
    ids += [START, *[IMAGE] * 169, END]
    assert ids.count(IMAGE) == count
    return ids


REAL: dict[str, Real] = {}
if encodes_apart("Gemma4Model"):
    REAL |= {
        "gemma-4": Real(_finished(_gemma4), _gemma4_images(280)),
        "gemma-4, 1120 tokens": Real(_finished(_gemma4), _gemma4_images(1120)),
    }
if known("minicpmv4_6"):
    REAL["minicpm-v-4.6"] = Real(
        _finished(lambda: _minicpm("MiniCPMV4_6")), partial(_minicpm_images, "16x"), _write_slices
    )
if known("minicpm_ocr"):
    REAL["minicpm-ocr"] = Real(_finished(lambda: _minicpm("MiniCPMOcr")), partial(_minicpm_images, "4x"), _write_slices)
if encodes_apart("Lfm2VlModel"):
    REAL["lfm2-vl"] = Real(_finished(_lfm2), _lfm2_images, _write_tiles)
if known("step3p7"):
    REAL["step-3.7"] = Real(_finished(_step3p7), _step3p7_images, _write_crops)


def _molmo2() -> Any:
    small = molmo2.molmo2("sdpa").config.to_dict()
    released = {"image_size": [378, 378], "num_position_embeddings": 27**2}
    config = transformers.Molmo2Config.from_dict({**small, "vision_config": {**small["vision_config"], **released}})
    return transformers.Molmo2ForConditionalGeneration(config)


def _molmo2_images(picture: Image.Image) -> dict[str, Any]:
    pytest.importorskip("torchvision", reason="Molmo 2's image processor has no form without torchvision")
    return dict(transformers.Molmo2ImageProcessor()(picture, return_tensors="pt"))


if known("molmo2"):
    REAL["molmo2"] = Real(_finished(_molmo2), _molmo2_images)


def _granite4() -> Any:
    """As released: 24 x 24 patches of 16 pixels a view, windows of 8 x 8 with 4 x 4 queries."""
    small = granite4.granite4("sdpa").config.to_dict()
    vision = {**small["vision_config"], "image_size": 384, "patch_size": 16}
    released = {"downsample_rate": "4/8", "image_grid_pinpoints": GRANITE_PINPOINTS}
    config = transformers.Granite4VisionConfig.from_dict({**small, "vision_config": vision, **released})
    return transformers.Granite4VisionForConditionalGeneration(config)


if known("granite4_vision"):
    square = {"height": 384, "width": 384}
    REAL["granite-vision-4"] = Real(
        _finished(_granite4),
        _by(LlavaNextImageProcessorPil(size=square, crop_size=square, image_grid_pinpoints=GRANITE_PINPOINTS)),
    )
