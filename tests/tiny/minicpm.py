"""MiniCPM-V 4.6 and 4.7, MiniCPM-OCR: an overview and, of larger pictures, the slices of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.qwen import types
from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, Row, features_of, finish, flat, known, noise

SLICE, SLICED, LINE, NUMBERED, NUMBER, FIRST = 93, 92, 91, 90, 89, 70
"""Ids of ``<slice>``, ``</slice>``, a line break, ``</image_id>``, ``<image_id>`` and the digit 0."""
PATCH = 4
# (rows, columns) of the overview's patches, of slices, and of a slice's patches
IMAGES = [((8, 4), (2, 1), (8, 4)), ((8, 8), (0, 0), (0, 0)), ((4, 8), (2, 2), (4, 8))]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": PATCH,
}
LLM = {
    **TEXT,
    "model_type": "qwen3_5_text",
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True,
        "partial_rotary_factor": 1.0,
    },
}  # fmt: skip
MARKS = {
    "image_start_id": START,
    "image_end_id": END,
    "slice_start_id": SLICE,
    "slice_end_id": SLICED,
    "newline_id": LINE,
}


@cache
def minicpm(name: str, mode: str, attention: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vision_config=VISION, text_config=LLM, insert_layer_id=0, image_token_id=IMAGE, video_token_id=VIDEO,
        downsample_mode=mode, tie_word_embeddings=False, **(MARKS if name == "MiniCPMV4_7" else {}),
    )  # fmt: skip
    return finish(getattr(transformers, f"{name}ForConditionalGeneration")(config), attention)


def views(number: int) -> list[tuple[int, int]]:
    overview, (rows, columns), size = IMAGES[number]
    return [overview, *[size] * (rows * columns)]


def pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    found = flat(numbers)
    if not found:
        return {}
    patches = [noise(number, 1, 3, PATCH, PATCH * sum(h * w for h, w in views(number))) for number in found]
    return {
        "pixel_values": torch.cat(patches, dim=-1),
        "target_sizes": torch.tensor([size for number in found for size in views(number)], dtype=torch.int32),
    }


def write(side: int, number: int, count: int) -> list[int]:
    """As the processor does: a number, the overview, then the slices row by row."""
    overview, (rows, columns), size = IMAGES[number]
    whole, part = ([IMAGE] * (h * w // side**2) for h, w in (overview, size))
    lines = [[SLICE, *part, SLICED] * columns for _ in range(rows)]
    ids = [NUMBER, FIRST + number, NUMBERED, START, *whole, END]
    for place, line in enumerate(lines):
        ids += [*([LINE] if place else []), *line]
    assert ids.count(IMAGE) == count
    return ids


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    if "target_sizes" not in inputs:
        return []
    output = iter(features_of(model, inputs, kind).pooler_output)
    return [torch.cat([next(output) for _ in views(number)]) for number in numbers_in(inputs)]


def numbers_in(inputs: dict[str, Tensor]) -> Iterator[int]:
    """Which of ``IMAGES`` they are, by their sizes."""
    sizes = [tuple(size) for size in inputs["target_sizes"].tolist()]
    while sizes:
        number = next(n for n in (0, 2, 1) if sizes[: len(views(n))] == views(n))
        sizes = sizes[len(views(number)) :]
        yield number


def read(model: Any) -> Any:
    return model.model.vision_tower.encoder.layers[-1].self_attn


def saliency(within: int, model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """View by view what every (merged) patch receives, 2x2 summed to a token."""
    sizes = [(h // within, w // within) for h, w in inputs["target_sizes"].tolist()]
    if len(matrices) == 1:  # all packed
        whole, first, parts = matrices[0][0], 0, []
        for h, w in sizes:
            parts.append(whole[first : first + h * w, first : first + h * w])
            first += h * w
    else:
        parts = [matrix[0] for matrix in matrices]
    tokens = iter(
        part.mean(dim=0).view(h // 2, 2, w // 2, 2).sum(dim=(1, 3)).flatten()
        for part, (h, w) in zip(parts, sizes, strict=True)
    )
    return [torch.cat([next(tokens) for _ in views(number)]) for number in numbers_in(inputs)]


def _row(name: str, mode: str, **more: Any) -> Row:
    within = 1 if mode == "4x" else 2
    return Row(
        partial(minicpm, name, mode),
        pixels,
        read,
        partial(saliency, within),
        write=partial(write, 2 * within),
        streams=streams,
        hybrid=True,
        hands=lambda model: model.model.vision_tower.post_layernorm,
        **more,
    )


ROWS: dict[str, Row] = {}
if known("minicpmv4_6"):
    ROWS |= {"minicpmv4_6": _row("MiniCPMV4_6", "16x"), "minicpmv4_6-4x": _row("MiniCPMV4_6", "4x")}
if known("minicpmv4_7"):
    ROWS["minicpmv4_7"] = _row("MiniCPMV4_7", "16x", per_token=types, rope=True)
if known("minicpm_ocr"):
    ROWS["minicpm_ocr"] = _row("MiniCPMOcr", "4x")
