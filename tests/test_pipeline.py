"""transformers' own pipeline, unchanged, under a pruner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import foveate
from foveate import bundled

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((320, 240))


def chat(image: Image.Image, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("keep", [1.0, 0.1, 12])
def test_image_text_to_text(keep: float | int) -> None:
    model, processor = bundled.load()
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((320, 240))
    chat = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Is there a dog?"}]}
    ]
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    stock = pipe(text=chat, **options)
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model):
        pruned = pipe(text=chat, **options)
    (selection,) = pruner.selections
    assert len(selection) == foveate.Keep(keep).budget(selection.total)
    session = foveate.look(model, processor, image)
    assert pruned[0]["generated_text"].strip() == session.ask("Is there a dog?", pruner, max_new_tokens=5).text
    if keep == 1.0:
        assert pruned == stock


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Made by a checkpoint's folder, as a user makes it; the processor without torchvision."""
    processor: Any = bundled.load()[1]
    return pipeline("image-text-to-text", model=str(bundled.path()), processor=processor, dtype="float32")


def test_the_five_lines_of_the_docs(pipe: Any) -> None:
    """Attached once, for every call; what the pipeline was made of knows how turns are written."""
    handle = foveate.attach(pipe.model, foveate.Cover(keep=9), processor=pipe.processor)
    try:
        asked = [(picture(1), "Is there a dog?"), (picture(2), "What color is the sign?")]
        alone = [pipe(text=chat(*one), **GREEDY)[0]["generated_text"] for one in asked]
        assert [len(one) for one in handle.selections] == [9]
        session = [foveate.look(pipe.model, pipe.processor, image) for image, _ in asked]
    finally:
        handle.remove()
    for one, (_, question), text in zip(session, asked, alone, strict=True):
        assert one.ask(question, foveate.Cover(keep=9), max_new_tokens=5, do_sample=False).text == text.strip()


def test_batches_plain_texts_and_several_pictures(pipe: Any) -> None:
    asked = [chat(picture(1), "Is there a dog?"), chat(picture(2), "What color is the card of the cat?")]
    mark = pipe.processor.image_token
    several = {"images": [picture(1), picture(2)], "text": f"USER: {mark}{mark} Is there a cat? ASSISTANT:"}
    config = foveate.from_config({"method": "adafv", "keep": "20%"})
    pruner = foveate.AdaFV(keep=0.2)
    with config(pipe.model, processor=pipe.processor):
        alone = [pipe(text=one, **GREEDY)[0]["generated_text"] for one in asked]
        batch = pipe(text=asked, batch_size=2, **GREEDY)
        plain = pipe(**several, **GREEDY)
        assert len(config.selections) == 2
    assert [one[0]["generated_text"] for one in batch] == alone
    inputs = pipe.processor(return_tensors="pt", **several)
    with pruner(pipe.model, processor=pipe.processor):
        ids = pipe.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    text = pipe.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert plain[0]["generated_text"].strip() == text.strip()
