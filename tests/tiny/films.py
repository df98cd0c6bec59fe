"""InternVL and SmolVLM on videos, whose frames their processors write as images with a label before each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.tiny import siglip, tiles
from tests.tiny.rows import END, IMAGE, SIDE, START, Row, features_of, flat, noise

FRAMES = [3, 4, 3]
TOKENS = 4
"""Of a frame, in both."""
BREAK, FRAME, FROM, COLON, ZERO = 60, 61, 62, 63, 70
"""Digits are ``ZERO`` and the nine ids after it."""


def digits(number: int, least: int = 1) -> list[int]:
    return [ZERO + int(digit) for digit in f"{number:0{least}d}"]


def frames_of(number: int) -> Tensor:
    """(frames, 3, side, side)"""
    return noise(20 + number, FRAMES[number], 3, SIDE, SIDE)


def flat_pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    """As InternVL takes them."""
    return {"pixel_values": torch.cat([frames_of(number) for number in flat(numbers)])}


def row_pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    """As SmolVLM takes them: by prompt, padded with empty frames."""
    pixels = torch.zeros(len(numbers), max(sum(FRAMES[one] for one in row) for row in numbers), 3, SIDE, SIDE)
    for place, row in enumerate(numbers):
        if row:
            frames = torch.cat([frames_of(number) for number in row])
            pixels[place, : len(frames)] = frames
    return {"pixel_values": pixels, "pixel_attention_mask": (pixels != 0).any(dim=2).long()}


def lengths(inputs: dict[str, Tensor]) -> list[int]:
    """How many frames every video has: known by the first pixel of its first frame."""
    firsts = inputs["pixel_values"].flatten(0, -4)[:, 0, 0, 0].tolist()
    known = {float(frames_of(number)[0, 0, 0, 0].to(inputs["pixel_values"])): number for number in range(len(FRAMES))}
    return [FRAMES[known[value]] for value in firsts if value in known]


def write_numbered(number: int, count: int) -> list[int]:
    """As InternVL's processor: "Frame1: " and the frame, a line break, "Frame2: "."""
    run = [START, *[IMAGE] * (count // FRAMES[number]), END]
    frames = [[FRAME, *digits(frame + 1), COLON, *run, BREAK] for frame in range(FRAMES[number])]
    return [token for frame in frames for token in frame][:-1]


def write_timed(number: int, count: int) -> list[int]:
    """As SmolVLM's: a line break, "Frame from 00:58:" and the frame."""
    run = siglip.write_grid((0, 0), count // FRAMES[number])
    written = []
    for second in range(58, 58 + FRAMES[number]):
        time = [*digits(second // 60, 2), COLON, *digits(second % 60, 2), COLON]
        written += [BREAK, FRAME, FROM, *time, *run]
    return written


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    output = features_of(model, inputs, kind).pooler_output
    whole = output.flatten(0, -2) if torch.is_tensor(output) else torch.cat(list(output)).flatten(0, -2)
    return list(whole.split([TOKENS * count for count in lengths(inputs)]))


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """The CLS row, or the mean over all rows; by frame, summed over squares of four patches."""
    whole = torch.cat(matrices)
    views = whole[:, 0, 1:] if model.config.model_type == "internvl" else whole.mean(dim=1)
    squares = views.view(-1, 2, 2, 2, 2).sum(dim=(2, 4))
    return list(squares.flatten().split([TOKENS * count for count in lengths(inputs)]))


ROWS: dict[str, Row] = {
    "internvl-video": Row(
        tiles.internvl, flat_pixels, tiles.internvl_read, saliency, write=write_numbered, streams=streams
    ),
    "smolvlm-video": replace(
        siglip.ROWS["smolvlm"], pixels=row_pixels, saliency=saliency, write=write_timed, streams=streams
    ),
}
