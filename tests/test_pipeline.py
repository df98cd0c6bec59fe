"""transformers' own pipeline, unchanged, under a pruner."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import foveate
from foveate import bundled


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
