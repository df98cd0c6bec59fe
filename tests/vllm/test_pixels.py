"""Pictures resized in the API server, for models of dynamic resolution: as transformers does by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate import serving
from tests.vllm import checkpoints
from tests.vllm.test_families import CASES, Case, Process, Served, agree

KEEP = 0.5


@dataclasses.dataclass(frozen=True)
class Small(Case):
    """A case whose pictures Pillow has resized by a scale of their sides."""

    side: float = 1.0

    @property
    def images(self) -> list[Image.Image]:
        return [
            one.resize((round(one.width * self.side), round(one.height * self.side)), Image.Resampling.LANCZOS)
            for one in super().images
        ]


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    one = Process(True)
    yield one
    if one.engine is not None:
        one.engine.close()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_server_resizes_as_pillow_does(name: str, process: Process, tmp_path: Path) -> None:
    """By default, by request, and not at all; each smaller one has fewer tokens."""
    folder = checkpoints.write(name, tmp_path)
    engine = process.load(folder, hf_overrides=serving.options("saliency", keep=KEEP, pixels=0.25))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    family = Served(name, folder, model, AutoProcessor.from_pretrained(folder), engine)
    for case in ("one", "two", "talk"):
        lengths = []
        for side, asks in ((1.0, {"pixels": 1}), (0.8, {"pixels": 0.64}), (0.5, None), (0.5, {"pixels": 0.25})):
            small = Small(CASES[case].pictures, CASES[case].messages, side=side)
            (told,) = family.ask([CASES[case]], asks)
            agree(told, family.expected(small, "saliency", KEEP))
            lengths.append(told.prompt)
        assert lengths[0] > lengths[1] > lengths[2] == lengths[3]
    with pytest.raises(RuntimeError, match="up to 1, or a number of pixels"):
        family.ask([CASES["one"]], {"pixels": 1.5})
