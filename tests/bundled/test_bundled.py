"""The bundled model: a stock checkpoint that loads offline, and that sees and answers."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from foveate import bundled
from foveate.evaluation.scenes import SCENES, Item

SEED = 77  # not one of those that the figures are measured on


@pytest.fixture(scope="module")
def loaded() -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    return bundled.load()


def prompt(processor: LlavaNextProcessor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def answer(loaded: tuple, picture: Image.Image, question: str) -> str:
    model, processor = loaded
    inputs = processor(images=picture, text=prompt(processor, question), return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_nothing_is_missing_or_left_over(loaded: tuple) -> None:
    _, info = LlavaNextForConditionalGeneration.from_pretrained(bundled.path(), output_loading_info=True)
    assert not any(info.values()), info
    model, _ = loaded
    assert not model.training and model.dtype == torch.float32
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_weights_have_the_names_of_hub_checkpoints() -> None:
    """vLLM reads ``vision_tower.vision_model...``, which ``save_pretrained`` does not write."""
    with (bundled.path() / "model.safetensors").open("rb") as file:
        names = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    parts = {
        "vision_tower.vision_model",
        "language_model.model",
        "multi_modal_projector",
        "image_newline",
        "__metadata__",
    }
    assert all(any(name.startswith(part) for part in parts) for name in names)


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in bundled.path().iterdir()) < 30e6


def test_dtype_and_attention_are_as_asked() -> None:
    model, _ = bundled.load(dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16 and model.config.text_config._attn_implementation == "eager"


def test_prompt_is_that_of_training(loaded: tuple) -> None:
    _, processor = loaded
    text = prompt(processor, "What color is the card of the Dog?")
    assert text == "<s>user: <image> What color is the card of the Dog? assistant:"
    ids = processor(images=Image.new("RGB", (300, 200)), text=text)["input_ids"][0]
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    words = processor.tokenizer.convert_ids_to_tokens([i for i in ids if i != image])
    assert words == [
        "<s>",
        "user",
        ":",
        "what",
        "color",
        "is",
        "the",
        "card",
        "of",
        "the",
        "dog",
        "?",
        "assistant",
        ":",
    ]


def test_turns_go_on(loaded: tuple) -> None:
    _, processor = loaded
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "Is there a cat?"},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert text == "<s>user: <image> Is there a dog? assistant: yes</s>user: Is there a cat? assistant:"


def test_unknown_words_are_unknown_and_plurals_are_words(loaded: tuple) -> None:
    _, processor = loaded
    tokens = processor.tokenizer.tokenize("How many Butterflies, zeppelins?")
    assert tokens == ["how", "many", "butterflies", ",", "<unk>", "?"]


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (900, 300), (200, 600), (333, 222), (50, 40), (1, 1)])
def test_every_shape_of_picture_goes_through(loaded: tuple, size: tuple[int, int]) -> None:
    assert answer(loaded, Image.new("RGB", size, "gray"), "Is there a dog?") == "no"


def test_it_answers_well_above_chance(loaded: tuple, tmp_path: Path) -> None:
    """Each kind's chance is at most a half; the measured figures are in the model card."""
    items = SCENES.read(SCENES.write(tmp_path, 16, seed=SEED))
    right: dict[str, list[bool]] = {}
    for item in items:
        if item.kind in ("presence", "attribute", "biggest", "reading"):
            right.setdefault(item.kind, []).append(_is_right(loaded, tmp_path, item))
    everything = [ok for oks in right.values() for ok in oks]
    assert sum(everything) / len(everything) > 0.8, right
    assert sum(right["attribute"]) / len(right["attribute"]) > 0.6, right


def _is_right(loaded: tuple, folder: Path, item: Item) -> bool:
    with Image.open(folder / item.image) as picture:
        return answer(loaded, picture, item.question) in item.answers


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_part_is_named(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(bundled.path(), folder)
    (folder / part).unlink()
    monkeypatch.setattr(bundled, "path", lambda name: folder)
    with pytest.raises(FileNotFoundError, match=f"lacks {part}"):
        bundled.load()


def test_a_missing_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "path", lambda name: tmp_path / "checkpoint")
    with pytest.raises(FileNotFoundError, match="python -m training"):
        bundled.load()
