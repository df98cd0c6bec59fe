"""The recipe of the bundled model: its geometry is the stock processor's, its words are the tokenizer's, it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextForConditionalGeneration

from foveate.evaluation.scenes.files import make_sample

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the training package is not installed

from training.export import make_processor  # noqa: E402
from training.language import train_joint, train_language  # noqa: E402
from training.model import build  # noqa: E402
from training.presets import PRESETS, Stage  # noqa: E402
from training.views import centers, coverage, lay_out, packed_order, views  # noqa: E402
from training.vision import train_vision  # noqa: E402
from training.words import BEFORE_ANSWER, BEFORE_IMAGE, IMAGE, encode  # noqa: E402

SIZES = [(640, 480), (301, 517), (900, 300), (224, 224), (250, 700), (449, 300), (500, 250)]


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
@pytest.mark.parametrize("size", SIZES)
def test_views_equal_the_stock_processor(size: tuple[int, int], preset: str) -> None:
    canvases = PRESETS[preset].canvases
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    layout = lay_out(*size, canvases)
    processor = make_processor([list(canvas) for canvas in canvases])
    inputs = processor(images=picture, text="<image>")
    stock = np.asarray(inputs["pixel_values"])[0]
    ours = (views(picture, layout).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    assert ours.shape == stock.shape
    np.testing.assert_allclose(ours, stock, atol=1e-5)
    assert list(inputs["input_ids"][0]).count(IMAGE) == len(packed_order(layout))


def test_prompt_order_equals_the_stock_packing() -> None:
    preset = PRESETS["smoke"]
    model = build(preset).model
    for width, height in SIZES:
        layout = lay_out(width, height, preset.canvases)
        numbers = torch.arange(layout.views * 64, dtype=torch.float32).view(layout.views, 64, 1).expand(-1, -1, 64)
        newline = torch.full((64,), -1.0)
        packed, _ = model.pack_image_features([numbers], torch.tensor([[height, width]]), "default", newline)
        assert packed[0][:, 0].long().tolist() == packed_order(layout).tolist()


def test_words_equal_the_tokenizer() -> None:
    tokenizer = make_processor([[112, 224]]).tokenizer
    for text in (
        "What color is the card of the dog?",
        "Is the KEY to the left of the cup?",
        "how many Foxes, really?!",
    ):
        assert encode(text) == tokenizer(text)["input_ids"]
    whole = tokenizer("<s>user: <image> Is there a bee? assistant:")["input_ids"]
    assert whole == [*BEFORE_IMAGE, IMAGE, *encode("Is there a bee?"), *BEFORE_ANSWER]


def test_coverage_is_where_the_pixels_are() -> None:
    """What covers a crop's patches is what was drawn there: a card's colour is found where coverage is full."""
    for index in range(30):
        sample = make_sample("train", 0, index)
        layout = lay_out(*sample.picture.size, PRESETS["cpu"].canvases)
        shares, held = coverage(sample.scene, layout), centers(sample.scene, layout)
        assert shares.shape[1] == layout.views * 64 and shares.min() >= -1e-5 and shares.max() <= 1 + 1e-5
        assert (held.sum(1) == 2).all()
        for thing, share, middle in zip(sample.scene.things, shares, held, strict=True):
            if thing.color or thing.number is not None:
                assert (share[middle] > 0.2).all()


def test_smoke_run_makes_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "--preset", "smoke", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    for _ in range(2):  # the second run finds everything done
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    folder = tmp_path / "checkpoint"
    _, info = LlavaNextForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    record = json.loads((folder / "training.json").read_text("utf-8"))
    assert record["preset"]["name"] == "smoke" and {"vision", "language", "joint"} <= set(record)


@pytest.mark.slow
def test_gpu_preset_takes_a_few_steps(tmp_path: Path) -> None:
    short = Stage(steps=2, batch=2, rate=1e-3, warmup=1)
    preset = replace(
        PRESETS["gpu"],
        vision=short,
        language=short,
        joint=short,
        fresh=1,
        memory=4,
        workers=0,
        log_every=1,
        save_every=1,
    )
    model = build(preset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_vision(model, preset, tmp_path, device)
    train_language(model, preset, tmp_path, device, dropout=True)
    train_joint(model, preset, tmp_path, device, dropout=True)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    record = json.loads((tmp_path / "training.json").read_text("utf-8"))
    assert {"vision", "language", "joint"} <= set(record)
