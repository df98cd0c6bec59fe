"""InternVL, Aya Vision, Command A Vision and Ovis2: tiles of all images in one flat batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
)

from tests.tiny.rows import END, IMAGE, SIDE, START, TEXT, VISION, Row, features_of, finish, flat, known, noise

# (rows, columns) of crops of every image; the one with a single tile has no whole view beside it
GRIDS = [(1, 2), (1, 1), (3, 1)]
TOKENS = 4
"""Tokens per tile: 4 x 4 patches, put together by squares of 2 x 2."""
GRID, COLUMN, LINE = 93, 94, 95
INDICATORS = [START, GRID, COLUMN, LINE, END]
TAG, WHOLE = 80, 90


@cache
def internvl(attention: str) -> Any:
    torch.manual_seed(0)
    vision = {**VISION, "image_size": [SIDE, SIDE], "patch_size": [14, 14]}
    config = InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    return finish(InternVLForConditionalGeneration(config), attention)


@cache
def qianfan_ocr(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.QianfanOCRConfig(
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [14, 14]},
        text_config={"model_type": "qwen3", **TEXT, "head_dim": 16},
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    return finish(transformers.QianfanOCRForConditionalGeneration(config), attention)


@cache
def aya_vision(attention: str) -> Any:
    torch.manual_seed(0)
    window = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "logit_scale": 1.0}
    config = AyaVisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={"model_type": "cohere2", **TEXT, **window},
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    return finish(AyaVisionForConditionalGeneration(config), attention)


@cache
def cohere2_vision(attention: str, config_class: Any = Cohere2VisionConfig) -> Any:
    torch.manual_seed(0)
    window = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "logit_scale": 1.0}
    config = config_class(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={"model_type": "cohere2", **TEXT, **window},
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
        tie_word_embeddings=False,
    )
    return finish(Cohere2VisionForConditionalGeneration(config), attention)


@cache
def ovis2(attention: str) -> Any:
    torch.manual_seed(0)
    config = Ovis2Config(
        vision_config={**VISION, "hidden_stride": 2, "vocab_size": 64},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        visual_indicator_token_ids=INDICATORS,
        vocab_size=TEXT["vocab_size"],
        hidden_size=TEXT["hidden_size"],
        tie_word_embeddings=False,
    )
    model = Ovis2ForConditionalGeneration(config)
    # Off the uniform mixture of the vocabulary, which every patch would be with small weights.
    torch.nn.init.normal_(model.model.vision_tower.head_linear.weight, std=1.0)
    model = finish(model, attention)
    model.lm_head.weight.data[INDICATORS] = 0.0  # never generated
    return model


def tiles_of(number: int, whole_first: bool) -> Tensor:
    """(tiles, 3, side, side): an image's crops row by row and, when there are several, the whole at their size."""
    rows, columns = GRIDS[number]
    canvas = noise(number, 3, rows * SIDE, columns * SIDE)
    # A small part of it is much brighter, so that the whole view is not grey.
    canvas[:, :SIDE, : SIDE // 2] += 3.0
    crops = canvas.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).flatten(0, 1)
    if rows * columns == 1:
        return crops
    whole = torch.nn.functional.adaptive_avg_pool2d(canvas, SIDE)[None]
    return torch.cat([whole, crops] if whole_first else [crops, whole])


def pixels(whole_first: bool) -> Any:
    return lambda numbers: {"pixel_values": torch.cat([tiles_of(number, whole_first) for number in flat(numbers)])}


def counts(given: Tensor) -> list[int]:
    """How many tiles each image of ``pixel_values`` has, recognised by its pixels."""
    found = []
    while sum(found) < len(given):
        rest = given[sum(found) :]
        known = [tiles_of(number, first).to(given) for number in range(len(GRIDS)) for first in (False, True)]
        found.append(next(len(tiles) for tiles in known if torch.equal(rest[: len(tiles)], tiles)))
    return found


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    tiles = features_of(model, inputs, kind).pooler_output.split(counts(inputs["pixel_values"]))
    return [image.flatten(0, -2) for image in tiles]


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """The CLS row, or the mean over all rows; by tile, summed over squares of four patches."""
    whole = torch.cat(matrices)
    views = whole[:, 0, 1:] if model.config.model_type in ("internvl", "qianfan_ocr") else whole.mean(dim=1)
    tokens = []
    for view in views:
        patches = view.view(4, 4)
        tokens += [patches[row : row + 2, column : column + 2].sum() for row in (0, 2) for column in (0, 2)]
    return list(torch.stack(tokens).split([TOKENS * count for count in counts(inputs["pixel_values"])]))


def write_run(_: int, count: int) -> list[int]:
    return [START, *[IMAGE] * count, END]


def write_tagged(_: int, count: int) -> list[int]:
    """As Aya Vision: every tile behind a tag, here of two tokens."""
    tile = [IMAGE] * TOKENS
    crops = [token for number in range(count // TOKENS - 1) for token in (TAG, TAG + 1 + number, *tile)]
    return [START, *crops, TAG, WHOLE, *tile, END]


def write_breaks(_: int, count: int) -> list[int]:
    """As Cohere's: a break behind every tile."""
    return [START, *[*[IMAGE] * TOKENS, LINE] * (count // TOKENS), END]


def write_lines(number: int, _: int) -> list[int]:
    """As Ovis2: the whole, then the crops with marks between columns and rows."""
    rows, columns = GRIDS[number]
    tile = [IMAGE] * TOKENS
    written = [START, *tile, GRID]
    for row in range(rows if rows * columns > 1 else 0):
        for column in range(columns):
            written += [*tile, *([COLUMN] if column < columns - 1 else [LINE] if row < rows - 1 else [])]
    return [*written, END]


def embed_indicators(model: Any, ids: Tensor) -> Tensor:
    """Ovis2's indicator tokens are words of the visual vocabulary: its last five."""
    words = model.model.visual_embeddings_table.weight
    text: Tensor = model.get_input_embeddings()(ids)
    if int(ids) not in INDICATORS:
        return text
    return words[len(words) - len(INDICATORS) + INDICATORS.index(int(ids))]


def internvl_read(model: Any) -> Any:
    return model.model.vision_tower.encoder.layer[-1].attention


def siglip_read(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn


def ovis2_read(model: Any) -> Any:
    return model.model.vision_tower.transformer.encoder.layers[-1].attention


ROWS: dict[str, Row] = {
    "internvl": Row(internvl, pixels(False), internvl_read, saliency, write=write_run, streams=streams),
    "ovis2": Row(ovis2, pixels(True), ovis2_read, saliency, write=write_lines, streams=streams, embed=embed_indicators),
    "aya_vision": Row(aya_vision, pixels(False), siglip_read, saliency, write=write_tagged, streams=streams),
    "cohere2_vision": Row(cohere2_vision, pixels(False), siglip_read, saliency, write=write_breaks, streams=streams),
}
if known("qianfan_ocr"):
    ROWS["qianfan_ocr"] = Row(
        qianfan_ocr,
        pixels(False),
        lambda model: model.model.vision_tower.layers[-1].attention,
        saliency,
        write=write_run,
        streams=streams,
    )
