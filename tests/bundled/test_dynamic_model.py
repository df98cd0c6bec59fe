"""The dynamic model: a stock Qwen3-VL that loads offline, sees pictures at their own resolution, and answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

import foveate
from foveate import bundled
from foveate.evaluation.drawn import Item
from foveate.evaluation.worlds import WORLDS

SEED = 77  # not one of those that the figures are measured on


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return bundled.load("dynamic")


def inputs_of(processor: Any, picture: Image.Image, question: str) -> Any:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=[picture], text=[prompt], return_tensors="pt")


def answer(loaded: tuple[Any, Any], picture: Image.Image, question: str) -> str:
    model, processor = loaded
    inputs = inputs_of(processor, picture, question)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_nothing_is_missing_or_left_over(loaded: tuple[Any, Any]) -> None:
    _, info = Qwen3VLForConditionalGeneration.from_pretrained(bundled.path("dynamic"), output_loading_info=True)
    assert not any(info.values()), info
    model, _ = loaded
    assert type(model) is Qwen3VLForConditionalGeneration and not model.training and model.dtype == torch.float32
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_both_models_together_are_small() -> None:
    for name in bundled.FOLDERS:
        assert sum(path.stat().st_size for path in bundled.path(name).iterdir()) < 30e6
    record = json.loads((bundled.path("dynamic") / "training.json").read_text(encoding="utf-8"))
    assert record["preset"]["name"] == "dynamic" and "language" in record


def test_one_import_is_enough() -> None:
    script = "import foveate; print(type(foveate.bundled.load('dynamic')[0]).__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "Qwen3VLForConditionalGeneration", done.stderr


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'small'.*bundled and dynamic"):
        bundled.load("small")
    with pytest.raises(TypeError, match="dtype="):
        bundled.load(torch.float16)  # type: ignore[call-overload]


@pytest.mark.parametrize("size", [(112, 112), (672, 672), (112, 672), (301, 455)])
def test_pictures_are_seen_at_their_own_resolution(loaded: tuple[Any, Any], size: tuple[int, int]) -> None:
    model, processor = loaded
    inputs = inputs_of(processor, Image.new("RGB", size, (90, 30, 60)), "Is there a cat?")
    seen = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert seen == round(size[0] / 28) * round(size[1] / 28)


def items(world: str, folder: Path, count: int) -> list[Item]:
    return WORLDS[world].read(WORLDS[world].write(folder, count, SEED))


def test_it_sees_what_is_there_and_where(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """Far below what the model card says, and far above what can be answered without the picture."""
    right: dict[str, list[bool]] = {}
    for item in items("scenes", tmp_path, 12):
        if item.kind in ("presence", "attribute", "position"):
            with Image.open(tmp_path / item.image) as picture:
                said = answer(loaded, picture.convert("RGB"), item.question)
            right.setdefault(item.kind, []).append(said in item.answers)
    assert all(np.mean(found) > 0.7 for found in right.values()), right


def test_it_reads_documents(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """Likewise. A grey picture of the same size says how much the questions alone give away."""
    right: dict[str, list[tuple[bool, bool]]] = {}
    for item in items("documents", tmp_path, 8):
        with Image.open(tmp_path / item.image) as picture:
            shown, hidden = picture.convert("RGB"), Image.new("RGB", picture.size, "grey")
        said = tuple(answer(loaded, one, item.question) in item.answers for one in (shown, hidden))
        right.setdefault(item.kind, []).append(said)
    for kind, least in (("number", 0.35), ("word", 0.35), ("place", 0.35)):
        looked, guessed = np.mean(right[kind], axis=0)
        assert looked > least and looked > guessed + 0.2, (kind, looked, guessed)


def test_what_is_kept_has_what_is_asked_about(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """All tokens: token by token what stock says. A quarter: the answers mostly stay."""
    model, processor = loaded
    same, asked = 0, items("scenes", tmp_path, 6)[:24]
    for item in asked:
        with Image.open(tmp_path / item.image) as picture:
            inputs = inputs_of(processor, picture.convert("RGB"), item.question)
        stock = model.generate(**inputs, do_sample=False, max_new_tokens=5)
        with foveate.attach(model, foveate.Cover(keep=1.0)):
            assert torch.equal(model.generate(**inputs, do_sample=False, max_new_tokens=5), stock)
        with foveate.attach(model, foveate.Cover(keep=0.25)):
            pruned = model.generate(**inputs, do_sample=False, max_new_tokens=5)
        same += pruned.shape == stock.shape and bool((pruned == stock).all())
    assert same / len(asked) > 0.6
