"""DeepSeek-VL and Janus: padding, their processors' prompts, what guides, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessorList

import foveate
from foveate.guiding import Guide, ImageSpan
from foveate.models import family_for
from foveate.turns import Turns
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, ROWS, SIDE, SILENT, START, prompts
from tests.tiny.deepseek import HIGH
from tests.tiny.rows import noise
from tests.tiny.words import tokenizer

NAMES = [name for name in ("deepseek_vl", "deepseek_vl_hybrid", "janus") if name in ROWS]
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
USER, BOT, COLON, BREAK = 80, 81, 82, 83


def padded(side: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    pixels = torch.full((1, 3, side, side), -0.01)
    pixels[..., slice(*rows), slice(*columns)] = noise(1, 3, rows[1] - rows[0], columns[1] - columns[0]) + 5.0
    return pixels


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows, columns", [((14, 42), (0, 56)), ((0, 56), (21, 35)), ((0, 56), (0, 56))])
def test_padding(name: str, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    pixels = {"pixel_values": padded(SIDE, rows, columns)}
    scale = 1.0
    if name == "deepseek_vl_hybrid":
        scale = HIGH / SIDE
        high = [tuple(round(value * scale) for value in one) for one in (rows, columns)]
        pixels["high_res_pixel_values"] = padded(HIGH, *high)
    (image,) = encode(ROWS[name].make("sdpa"), pixels)
    geometry = image.tokens.geometry
    size = [round((one[1] - one[0]) * scale) for one in (rows, columns)]
    assert list(geometry.image_size) == size
    sides = geometry.boxes[:, 2:] - geometry.boxes[:, :2]
    for token, (width, height) in enumerate(sides.tolist()):
        row, column = token // 4, token % 4
        inside = rows[0] < 14 * (row + 1) and 14 * row < rows[1] and columns[0] < 14 * (column + 1)
        assert (width > 0 and height > 0) == (inside and 14 * column < columns[1])
    torch.testing.assert_close((sides[:, 0] * sides[:, 1]).sum(), torch.tensor(float(size[0] * size[1])))


def test_a_white_margin_is_no_padding() -> None:
    pixels = padded(SIDE, (14, 42), (0, 56))
    pixels[pixels == -0.01] = 2.0
    (image,) = encode(ROWS["deepseek_vl"].make("sdpa"), {"pixel_values": pixels})
    assert image.tokens.geometry.image_size == (SIDE, SIDE)


@pytest.mark.skipif("deepseek_vl_hybrid" not in NAMES, reason="this transformers has no hybrid")
def test_the_hybrid_needs_both() -> None:
    name = "deepseek_vl_hybrid"
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    del inputs["high_res_pixel_values"]
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="needs high_res_pixel_values"):
        model.generate(**inputs, **GREEDY)


def guiding(name: str, ids: list[int]) -> list[int]:
    prompt = torch.tensor([ids])
    spots = (prompt[0] == IMAGE).nonzero()[:, 0][:16]
    turns = Turns(starts=((USER, COLON),), ends=((BREAK, BOT, COLON),), special=frozenset({BOS}))
    text = ~family_for(ROWS[name].make("sdpa")).marks(prompt)
    found: list[int] = Guide(prompt, text, turns).of(ImageSpan(0, spots)).ids.tolist()
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [[], [70, 71, BREAK]])
def test_the_question_guides(name: str, system: list[int]) -> None:
    """A system prompt without a role, then User: and Assistant: with breaks between."""
    picture, start, waiting = ROWS[name].write(0, 16), [BOS, *system], [BREAK, BOT, COLON]
    assert guiding(name, [*start, USER, COLON, *picture, 40, 41, *waiting]) == [40, 41]
    assert guiding(name, [*start, USER, COLON, 40, 41, *picture, *waiting]) == [40, 41]
    later = [*waiting, 60, BREAK, USER, COLON, 42, *waiting]
    assert guiding(name, [*start, USER, COLON, *picture, 40, *later]) == [40]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_its_own_processor(name: str) -> None:
    half = {"image_mean": [0.5, 0.5, 0.5], "size": {"height": SIDE, "width": SIDE}}
    marks, named = {"<image>": IMAGE}, {"image_token": "<image>"}
    if name == "janus":
        from transformers import JanusProcessor as Processor

        images = pytest.importorskip("transformers.models.janus.image_processing_pil_janus")
        made = images.JanusImageProcessorPil(**half, image_std=[0.5, 0.5, 0.5])
        marks |= {"<begin>": START, "<end>": END}
        named |= {"boi_token": "<begin>", "eoi_token": "<end>"}
    elif name == "deepseek_vl":
        from transformers import DeepseekVLProcessor as Processor

        images = pytest.importorskip("transformers.models.deepseek_vl.image_processing_pil_deepseek_vl")
        made = images.DeepseekVLImageProcessorPil(size={"height": SIDE, "width": SIDE})
    else:
        from transformers import DeepseekVLHybridProcessor as Processor

        images = pytest.importorskip("transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid")
        made = images.DeepseekVLHybridImageProcessorPil(
            **half, high_res_size={"height": HIGH, "width": HIGH}, high_res_image_mean=[0.5, 0.5, 0.5]
        )
    words = tokenizer(marks, **named)
    processor = Processor(made, words, num_image_tokens=16)
    processor.num_image_tokens = 16  # Janus's in 5.5 passes the argument over
    inputs: Any = processor(images=Image.new("RGB", (90, 60), "red"), text="user : <image> is there a cat ?")
    model = ROWS[name].make("sdpa")
    pruner = foveate.AdaFV(keep=0.5)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    (chosen,) = pruner.selections
    assert chosen.total == 16
    height, width = chosen.geometry.image_size
    assert abs(width / height - 1.5) < 0.1


@pytest.mark.skipif("janus" not in NAMES, reason="this transformers has no Janus")
def test_janus_draws_unpruned_and_not_from_pictures() -> None:
    model = ROWS["janus"].make("sdpa")
    inputs = prompts(ROWS["janus"], model, "one")
    generation_config = copy.deepcopy(model.generation_config)
    generation_config.generation_kwargs = {"boi_token_id": START}
    drawing = {"generation_mode": "image", "generation_config": generation_config, "do_sample": False}
    ids = torch.tensor([[BOS, 40, 41, START]])
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    drawn = model.generate(**words, **drawing)
    with foveate.AdaFV(keep=0.5)(model):
        assert torch.equal(model.generate(**words, **drawing), drawn)
        assert drawn.shape == (1, 16)
        with pytest.raises(ValueError, match="generation_mode='image': Janus draws from the prompt alone"):
            model.generate(**inputs, **drawing)
        given = model.generate(**inputs, **GREEDY, generation_mode="text")
        assert torch.equal(given, model.generate(**inputs, **GREEDY))


@pytest.mark.skipif("janus" not in NAMES, reason="this transformers has no Janus")
def test_janus_passes_no_logits_processor_on() -> None:
    """Stock never calls it; nobody is left to believe that it was heeded."""
    model = ROWS["janus"].make("sdpa")
    inputs = prompts(ROWS["janus"], model, "one")
    called: list[int] = []

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        called.append(1)
        return scores

    model.generate(**inputs, **GREEDY, logits_processor=LogitsProcessorList([note]))
    assert not called
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="passes no logits_processor on"):
        model.generate(**inputs, **GREEDY, logits_processor=LogitsProcessorList([note]))
