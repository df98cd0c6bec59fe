"""Gemma 3n, FastVLM, PerceptionLM: what is refused and what does without, prompts, places."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

import foveate
from foveate.guiding import Guide, ImageSpan
from foveate.models import FAMILIES, family_for
from foveate.turns import Turns
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, ROWS, SILENT, START, VIDEO, prompts
from tests.tiny.rows import noise
from tests.tiny.timm_towers import LARGE
from tests.tiny.words import tokenizer

NAMES = ["fast_vlm", "gemma3n", "perception_lm"]
needs_timm = pytest.mark.skipif("gemma3n" not in ROWS, reason="their encoders need timm")
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
OPEN, USER, BOT, SYSTEM, TURN = 80, 81, 82, 83, 84


def test_timm_is_not_needed_to_import() -> None:
    code = "import sys; sys.modules['timm'] = None; from foveate.models import FAMILIES; print('gemma3n' in FAMILIES)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "True"


@pytest.mark.parametrize("name", NAMES)
def test_what_they_lack_is_said(name: str) -> None:
    assert set(FAMILIES[name].unread) == {"saliency", "keys"}
    assert "timm" in FAMILIES[name].traits()["saliency"]


@needs_timm
@pytest.mark.parametrize("name", NAMES)
def test_methods_without_saliency(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    with pytest.raises(ValueError, match="adafv reads visual saliency.*comes from timm.*--method cover:saliency=0"):
        foveate.attach(model, foveate.AdaFV())
    with pytest.raises(ValueError, match="fsr reads|visual saliency|the vision encoder's keys"):
        foveate.attach(model, foveate.get_pruner("prumerge", keep=0.5))
    for method in ("text", "divprune", "cdpruner", "cover:saliency=0", "centered:features=encoded:divprune"):
        pruner = foveate.get_pruner(method, keep=3)
        with pruner(model):
            model.generate(**inputs, **GREEDY)
        assert [len(one) for one in pruner.selections] == [3]


def bright(values: Tensor, row: int, column: int, size: int) -> Tensor:
    values[..., row * size : (row + 1) * size, column * size : (column + 1) * size] += 3.0
    return values


@needs_timm
@pytest.mark.parametrize("name", ["fast_vlm", "gemma3n"])
def test_places_in_the_square(name: str) -> None:
    """Row by row: the token that changes most when a cell does is the one whose box it is."""
    model = ROWS[name].make("sdpa")
    plain = noise(1, 1, 3, LARGE, LARGE) * 0.01
    (image,) = encode(model, {"pixel_values": plain})
    geometry = image.tokens.geometry
    assert geometry.grids == ((4, 4),) and geometry.image_size == (LARGE, LARGE)
    assert geometry.cropped == (name == "fast_vlm")
    assert geometry.boxes[6].tolist() == [64, 32, 96, 64]
    hits = 0
    for token in range(16):
        painted = bright(plain.clone(), token // 4, token % 4, 32)
        changed = encode(model, {"pixel_values": painted})[0].tokens.features - image.tokens.features
        hits += int(changed.norm(dim=1).argmax()) == token
    assert hits >= 12  # a convolution's cells see their neighbours too


@needs_timm
def test_perception_lm_finds_the_arrangement() -> None:
    """The whole view says how the tiles are arranged, and is view 0."""
    canvas = noise(3, 3, 2 * 56, 3 * 56)
    tiles = canvas.unfold(1, 56, 56).unfold(2, 56, 56).permute(1, 2, 0, 3, 4).flatten(0, 1)
    whole = torch.nn.functional.adaptive_avg_pool2d(canvas, 56)[None]
    (image,) = encode(ROWS["perception_lm"].make("sdpa"), {"pixel_values": torch.cat([whole, tiles])[None]})
    geometry = image.tokens.geometry
    assert geometry.image_size == (112, 168) and len(geometry.grids) == 7
    assert geometry.boxes[0].tolist() == [0, 0, 84, 56]
    assert geometry.boxes[4].tolist() == [0, 0, 28, 28]  # the first token of the first tile
    assert geometry.boxes[-1].tolist() == [140, 84, 168, 112]


@needs_timm
def test_videos_are_refused() -> None:
    model = ROWS["perception_lm"].make("sdpa")
    ids = torch.tensor([[BOS, *[VIDEO] * 4, 40]])
    with foveate.DivPrune(keep=0.5)(model), pytest.raises(ValueError, match="videos are not supported yet"):
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=noise(0, 1, 1, 3, 56, 56), **GREEDY
        )


@needs_timm
@pytest.mark.parametrize("name", NAMES)
def test_pixels_of_a_wrong_shape(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    with foveate.DivPrune(keep=0.5)(model), pytest.raises(ValueError, match="takes pixel_values as one tensor"):
        model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][0]}, **GREEDY)


TURNS = Turns(starts=((OPEN, USER),), ends=((TURN, OPEN, BOT), (TURN,)), special=frozenset({BOS, OPEN, TURN}))


@needs_timm
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [[], [OPEN, SYSTEM, 70, 71, TURN]])
def test_the_question_guides(name: str, system: list[int]) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    count = len(row.streams(model, row.pixels([[0]]), "image")[0])
    picture = row.write(0, count)

    def guiding(ids: list[int]) -> list[int]:
        prompt = torch.tensor([ids])
        spots = (prompt[0] == IMAGE).nonzero()[:, 0][:count]
        text = ~family_for(model).marks(prompt)
        found: list[int] = Guide(prompt, text, TURNS).of(ImageSpan(0, spots)).ids.tolist()
        return found

    start, waiting = [BOS, *system], [OPEN, BOT]
    assert guiding([*start, OPEN, USER, *picture, 40, 41, TURN, *waiting]) == [40, 41]
    assert guiding([*start, OPEN, USER, 40, 41, *picture, TURN, *waiting]) == [40, 41]
    later = [OPEN, BOT, 60, TURN, OPEN, USER, 42, TURN, *waiting]
    assert guiding([*start, OPEN, USER, *picture, 40, TURN, *later]) == [40]


@needs_timm
def test_sound_is_no_text() -> None:
    model = ROWS["gemma3n"].make("sdpa")
    ids = torch.tensor([[BOS, 95, 94, 94, VIDEO, START, IMAGE, END, 40]])
    assert family_for(model).marks(ids)[0].tolist() == [False, *[True] * 7, False]


@needs_timm
def test_prompts_of_their_own_processors() -> None:
    from transformers import (
        Gemma3nAudioFeatureExtractor,
        Gemma3nProcessor,
        LlavaProcessor,
        PerceptionLMImageProcessor,
        PerceptionLMProcessor,
        PerceptionLMVideoProcessor,
        SiglipImageProcessor,
    )

    picture = Image.new("RGB", (90, 60), "red")
    square = {"height": LARGE, "width": LARGE}
    words = tokenizer({"<image>": IMAGE}, image_token="<image>")
    fast = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": LARGE}, crop_size=square), words, patch_size=32,
        vision_feature_select_strategy="full", num_additional_image_tokens=0,
    )  # fmt: skip
    named = {
        "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>",
    }  # fmt: skip
    marks = dict(zip(named.values(), (IMAGE, START, END, 94, 95, VIDEO), strict=True))
    gemma = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(), SiglipImageProcessor(size=square), tokenizer(marks, **named),
        image_seq_length=16,
    )  # fmt: skip
    both = {"image_token": "<|image|>", "video_token": "<|video|>"}
    perception = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(), PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4),
        tokenizer({"<|image|>": IMAGE, "<|video|>": VIDEO}, **both), patch_size=14, pooling_ratio=2,
    )  # fmt: skip
    for name, processor, mark in (
        ("fast_vlm", fast, "<image>"),
        ("gemma3n", gemma, "<image_soft_token>"),
        ("perception_lm", perception, "<|image|>"),
    ):  # fmt: skip
        inputs: Any = processor(images=picture, text=f"user {mark} is there a cat?", return_tensors="pt")
        model = ROWS[name].make("sdpa")
        pruner = foveate.get_pruner("cdpruner", keep=0.5)
        with pruner(model):
            model.generate(**inputs, **GREEDY)
        (chosen,) = pruner.selections
        assert chosen.total == int((inputs["input_ids"] == IMAGE).sum())
