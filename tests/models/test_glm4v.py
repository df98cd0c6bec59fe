"""What GLM-4.1V has beyond the matrix: places, marks, refusals, a second image or video later on, a session."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, Glm4vProcessor, ProcessorMixin

import foveate
from foveate.models import family_for
from tests import reference
from tests.checkpoint import tokenizer
from tests.encoding import encode
from tests.tiny import END, IMAGE, ROWS, SILENT, START, prompts
from tests.tiny.glm import types

try:  # the PIL processor: no torchvision needed
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil as Images
except ImportError:  # before 5.10
    from transformers import Glm4vImageProcessor as Images

NAMES = ["glm4v", "glm4v_moe"]
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SILENT}
SIZES = [(112, 196), (196, 112), (150, 151), (84, 300)]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    return ROWS[name].make("sdpa")


def processor() -> Any:
    return Images(size={"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 168 * 168})


@pytest.mark.parametrize("size", SIZES)
def test_geometry(model: Any, size: tuple[int, int]) -> None:
    """One bright box painted into a black image is found at the token whose box it is."""
    images = processor()
    geometry = encode(model, images(Image.new("RGB", size[::-1]), return_tensors="pt"))[0].tokens.geometry
    boxes = geometry.boxes_in(*size)
    assert len(geometry) > 8
    for token in range(len(geometry)):
        pixels = np.zeros((*size, 3), dtype=np.uint8)
        left, top, right, bottom = (int(value) for value in boxes[token].round().tolist())
        pixels[top:bottom, left:right] = 255
        processed = images(Image.fromarray(pixels), return_tensors="pt")
        _, rows, columns = processed["image_grid_thw"][0].tolist()
        light = processed["pixel_values"].mean(dim=1).view(rows // 2, columns // 2, 4).mean(dim=-1)
        assert divmod(int(light.argmax()), columns // 2) == (int(geometry.row[token]), int(geometry.column[token]))


def test_marks_around_an_image_do_not_guide(model: Any, name: str) -> None:
    ids = prompts(ROWS[name], model, "several")["input_ids"]
    assert torch.equal(family_for(model).marks(ids), torch.isin(ids, torch.tensor([START, END, IMAGE])))


def test_refusals(model: Any, name: str) -> None:
    inputs = prompts(ROWS[name], model, "several")
    pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    film = {"pixel_values_videos": pixels, "video_grid_thw": grids}
    as_film = {"pixel_values": None, "image_grid_thw": None, **film}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mm_token_type_ids": None}, "needs mm_token_type_ids"),
        ({"image_grid_thw": None}, "needs image_grid_thw beside pixel_values"),
        ({"pixel_values": pixels[:-4]}, "patches for image_grid_thw"),
        ({"pixel_values": pixels[:36], "image_grid_thw": grids[:1]}, "image placeholders, but the 1 image"),
        (film, "images and videos in one call.*calls of their own"),
        (as_film, "brings videos, and mm_token_type_ids do not say 2"),
        ({"mm_token_type_ids": inputs["mm_token_type_ids"] * 2}, "brings images, and mm_token_type_ids do not say 1"),
    ]
    with foveate.AdaFV(keep=0.4)(model):
        for changed, message in wrong:
            with pytest.raises(ValueError, match=message):
                model.generate(**{**inputs, **changed}, **GREEDY)
    with pytest.raises(ValueError, match="has no positions='compact'; known: original"):
        foveate.attach(model, foveate.AdaFV(), positions="compact")


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_a_new_image_in_the_second_turn(name: str, model: Any, keep: float) -> None:
    """It gets the positions it would have had, had both turns come at once."""
    row = ROWS[name]
    one = prompts(row, model, "one")
    pruner = foveate.Saliency(keep=keep)
    cache = DynamicCache(config=model.config.get_text_config())
    with pruner(model):
        first = model.generate(**one, **GREEDY, past_key_values=cache, return_dict_in_generate=True)
        pixels = row.pixels([[1]])
        count = len(row.streams(model, pixels, "image")[0])
        grown = torch.cat([first.sequences, torch.tensor([[50, *row.write(1, count), 51, 52]])], dim=1)
        text = {"input_ids": grown, "attention_mask": torch.ones_like(grown), **types(grown)}
        second = model.generate(**text, **pixels, **GREEDY, past_key_values=first.past_key_values)
        both = {key: torch.cat([one[key], pixels[key]]) for key in pixels}
        whole = model.generate(**text, **both, **GREEDY)
    assert torch.equal(second, whole)


@pytest.mark.parametrize("kinds", [("image", "video"), ("video", "image")])
@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_a_video_after_an_image(name: str, model: Any, keep: float, kinds: tuple[str, str]) -> None:
    """Over a cache, each call brings its own kind. Stock cannot take both at once, so the reference is by hand."""
    rows = {"image": ROWS[name], "video": ROWS[f"{name}-video"]}
    first_row, second_row = (rows[kind] for kind in kinds)
    one = prompts(first_row, model, "one")
    pruner = foveate.Saliency(keep=keep)
    cache = DynamicCache(config=model.config.get_text_config())
    with pruner(model):
        first = model.generate(**one, **GREEDY, past_key_values=cache, return_dict_in_generate=True)
        chosen = list(pruner.selections)
        pixels = second_row.pixels([[1]])
        stream = second_row.streams(model, pixels, kinds[1])[0]
        grown = torch.cat([first.sequences, torch.tensor([[50, *second_row.write(1, len(stream)), 51, 52]])], dim=1)
        text = {"input_ids": grown, "attention_mask": torch.ones_like(grown), **types(grown)}
        second = model.generate(**text, **pixels, **GREEDY, past_key_values=first.past_key_values)
        chosen += pruner.selections
    streams = [first_row.streams(model, one, kinds[0])[0], stream]
    positions = model.model.get_rope_index(
        grown,
        types(grown)["mm_token_type_ids"],
        **{key: value for key, value in {**one, **pixels}.items() if key.endswith("grid_thw")},
    )[0]
    ids = grown[0]
    places = (ids == IMAGE).nonzero()[:, 0].split([len(one) for one in streams])
    columns = torch.cat(
        [(ids != IMAGE).nonzero()[:, 0], *(at[one.indices] for at, one in zip(places, chosen, strict=True))]
    )
    columns = columns.sort().values
    embeddings = model.get_input_embeddings()(ids[columns]).detach()[None]
    there = (ids[columns] == IMAGE)[None]
    embeddings[there] = torch.cat([one[choice.indices] for one, choice in zip(streams, chosen, strict=True)])
    mask = torch.ones(1, len(columns), dtype=torch.long)
    assembled = reference.Assembled(embeddings, mask, positions[..., columns], [], [], there)
    assert torch.equal(second[:, len(ids) :], reference.greedy(first_row, model, assembled, 5)[0])


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_beams_over_several_images(name: str, model: Any, keep: float) -> None:
    """Stock transformers (5.19) repeats a prompt's images one by one, so that beams get each other's; pruned calls
    hand them over as one. The reference has no images to mix up: it starts from embeddings.
    """
    row = ROWS[name]
    inputs = prompts(row, model, "several")
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model):
        result = model.generate(**inputs, **options)
    assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
    expected = reference.generate(row, model, inputs, assembled, **options)
    assert torch.equal(result[:, inputs["input_ids"].shape[1] :], expected)


TEMPLATE = (
    "{% for message in messages %}user: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|begin_of_image|><image><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} assistant:"
)


@pytest.fixture
def whole_processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real one, but for its video part, which does not exist without torchvision."""
    words = tokenizer()
    words.image_token, words.video_token = "<image>", "w98"
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    return Glm4vProcessor(processor(), words, None, chat_template=TEMPLATE)


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_session(whole_processor: Any, model: Any, keep: float) -> None:
    generator = np.random.default_rng(3)
    pictures = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES[:2]]
    session = foveate.look(model, whole_processor, pictures)
    for question in ("is there a cat?", "what color is the card?"):
        answer = session.ask(question, foveate.AdaFV(keep=keep), max_new_tokens=5, do_sample=False)
        inputs: dict[str, Tensor] = whole_processor(
            text=[session.prompt(question)], images=pictures, return_tensors="pt"
        )
        with foveate.AdaFV(keep=keep)(model):
            alone = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]
        assert torch.equal(answer.sequence, alone)
