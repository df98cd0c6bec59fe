"""Frames that do not change go through the tower once, under crops="distinct", and nobody sees a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.models import family_for
from foveate.models.base import Family
from tests.test_crops import Shown, runs_of
from tests.test_crops_alike import counted, equal
from tests.test_matrix import GREEDY
from tests.tiny import ROWS, prompts
from tests.tiny.onevision import VIDEOS

NAMES = ["internvl-video", "smolvlm-video", *(["llava_onevision-video"] if VIDEOS else [])]


def with_a_still(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first two frames of the first video are the same, and the last but one of all."""
    if name == "llava_onevision-video":
        pixels = inputs["pixel_values_videos"].clone()
        pixels[0, 1], pixels[-1, -1] = pixels[0, 0], pixels[0, 0]
        return {**inputs, "pixel_values_videos": pixels}
    pixels = inputs["pixel_values"].clone()
    frames = pixels if pixels.ndim == 4 else pixels[0]
    frames[2] = frames[1]  # what tells a tiny film is its first frame's first pixel
    if pixels.ndim == 5:
        pixels[2, 2] = frames[1]
    else:
        pixels[-1] = frames[1]
    return {**inputs, "pixel_values": pixels}


def result_of(model: Any, inputs: dict[str, Tensor], pruner: Any, crops: Any) -> tuple[Tensor, list[Tensor]]:
    with pruner(model, crops=crops), runs_of(model) as runs:
        return model.generate(**inputs, **GREEDY), runs


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_still_is_encoded_once(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = with_a_still(name, prompts(ROWS[name], model, "mixed"))
    stock, once = Shown(keep=1.0), Shown(keep=1.0)
    wanted, all_runs = result_of(model, inputs, stock, None)
    given, runs = result_of(model, inputs, once, "distinct")
    frames = counted(all_runs)
    assert frames.total() - len(frames) == 2 and len(runs) == len(all_runs) == 1
    assert counted(runs).keys() == frames.keys() and counted(runs).total() == len(frames)
    assert torch.equal(given, wanted)
    equal(once.shown, stock.shown)
    assert [one.geometry.frames for one in once.shown] == [one.geometry.frames for one in stock.shown]
    pruners = [foveate.AdaFV(keep=0.4), foveate.AdaFV(keep=0.4)]
    results = [result_of(model, inputs, *one)[0] for one in zip(pruners, (None, "distinct"), strict=True)]
    assert torch.equal(*results)
    for one, other in zip(*(pruner.selections for pruner in pruners), strict=True):
        assert torch.equal(one.indices, other.indices) and len(one.geometry.frames) > 1


@pytest.mark.skipif(not VIDEOS, reason="LLaVA-OneVision's videos are refused before 5.18")
def test_nothing_still_changes_nothing() -> None:
    name = "llava_onevision-video"
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "mixed")
    stock, once = Shown(keep=1.0), Shown(keep=1.0)
    wanted, (theirs,) = result_of(model, inputs, stock, None)
    given, (ours,) = result_of(model, inputs, once, "distinct")
    assert torch.equal(ours, theirs.flatten(0, -4)) and torch.equal(given, wanted)
    equal(once.shown, stock.shown)


def test_who_takes_frames_one_by_one_says_so() -> None:
    """A family that mixes frames in time must not: what is the same at one time is not at another."""
    films = [name for name in ROWS if name.endswith("-video")]
    one_by_one = [name for name in films if family_for(ROWS[name].make("sdpa")).frame_by_frame]
    assert one_by_one == (["llava_onevision-video"] if VIDEOS else []) and not Family.frame_by_frame
