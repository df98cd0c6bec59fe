"""What the Qwen-VL families have beyond the matrix: pictures and videos in one prompt, places, refusals, sessions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, ProcessorMixin, Qwen2VLProcessor

import foveate
from tests import reference
from tests.checkpoint import tokenizer
from tests.encoding import encode
from tests.reference import Assembled
from tests.tiny import BOS, END, IMAGE, ROWS, SILENT, START, VIDEO, Row, prompts
from tests.tiny.qwen import types

try:  # the PIL processor: no torchvision needed
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Images
except ImportError:  # before 5.10
    from transformers import Qwen2VLImageProcessor as Images

OLD = Version(transformers.__version__) < Version("5.6")
NAMES = [
    name for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "cohere_compass", "cosmos3_edge") if name in ROWS
]
GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": SILENT}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    return ROWS[name].make("sdpa")


def picture_and_film(name: str) -> dict[str, Tensor]:
    """One prompt: a video, text, an image, a question."""
    image, film = ROWS[name], ROWS[f"{name}-video"]
    model = image.make("sdpa")
    pixels, frames = image.pixels([[0]]), film.pixels([[0]])
    count = len(image.streams(model, pixels, "image")[0])
    length = len(film.streams(model, frames, "video")[0])
    ids = [BOS, 5, *film.write(0, length), 30, 31, *image.write(0, count), 40, 41, 42]
    tensor = torch.tensor([ids])
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor), **types(tensor), **pixels, **frames}


@pytest.mark.parametrize("apart", [True, False])
def test_pictures_that_cannot_be_numbered_are_refused(name: str, model: Any, apart: bool) -> None:
    """Two pictures in one run of placeholders, and one in two: nothing but the tokens between tells them apart."""
    row = ROWS[name]
    pixels = row.pixels([[1, 2]])
    first, second = map(len, row.streams(model, pixels, "image"))
    runs = [IMAGE] * (first + second)
    if apart:
        runs = [IMAGE, 50, *[IMAGE] * (first - 1), END, START, *[IMAGE] * second]
    ids = torch.tensor([[BOS, START, *runs, END, 40, 41]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types(ids), **pixels}
    with row.pruner(3)(model), pytest.raises(ValueError, match="cannot number this prompt.*must stand in one run"):
        model.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("keep", [1.0, 0.4, 2])
def test_image_and_video_in_one_prompt(name: str, model: Any, keep: float | int) -> None:
    if OLD and name == "qwen2_5_vl":
        pytest.skip("stock 5.4 wants a time step for every image as well and runs out of them")
    inputs = picture_and_film(name)
    row = ROWS[name]
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY)
    film, image = pruner.selections  # in prompt order
    if keep == 1.0:
        assert torch.equal(result, model.generate(**inputs, **GREEDY))
        return
    ids = inputs["input_ids"][0]
    kept, features, planes = [], [], []
    for kind, token, selection in (("video", VIDEO, film), ("image", row.token, image)):
        places = (ids == token).nonzero()[:, 0]
        assert selection.total == len(places)
        kept.append(places[selection.indices])
        features.append(row.streams(model, inputs, kind)[0][selection.indices])
        if row.planes:
            planes.append([plane[selection.indices] for plane in row.planes(model, inputs, kind)[0]])
    visual = torch.isin(ids, torch.tensor([VIDEO, row.token]))
    columns = torch.cat([(~visual).nonzero()[:, 0], *kept]).sort().values
    embeddings = model.get_input_embeddings()(ids[columns]).detach()[None]
    there = visual[columns][None]
    embeddings[there] = torch.cat(features)
    levels = [torch.zeros_like(embeddings) for _ in planes[0]] if planes else []
    for level, plane in enumerate(levels):
        plane[there] = torch.cat([one[level] for one in planes])
    positions = reference.long_positions(model, row, inputs)[..., columns]
    mask = torch.ones(1, len(columns), dtype=torch.long)
    assembled = Assembled(embeddings, mask, positions, [], [], there, levels)
    assert torch.equal(result[:, len(ids) :], reference.greedy(row, model, assembled, 5)[0])


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_a_new_image_in_the_second_turn(name: str, model: Any, keep: float) -> None:
    """It gets the positions it would have had, had both turns come at once."""
    if OLD and name == "qwen2_5_vl":
        pytest.skip("stock 5.4 multiplies the place where an image starts by the time step")
    row = ROWS[name]
    one = prompts(row, model, "one")
    pruner = foveate.Saliency(keep=keep)
    with pruner(model):
        first = model.generate(
            **one, **GREEDY, past_key_values=DynamicCache(config=model.config.get_text_config()),
            return_dict_in_generate=True,
        )  # fmt: skip
        pixels = row.pixels([[1]])
        count = len(row.streams(model, pixels, "image")[0])
        more = torch.tensor([[50, *row.write(1, count), 51, 52]])
        grown = torch.cat([first.sequences, more], dim=1)
        mask = torch.ones_like(grown)
        second = model.generate(
            input_ids=grown, attention_mask=mask, past_key_values=first.past_key_values, **types(grown), **pixels,
            **GREEDY,
        )  # fmt: skip
        both = {name: torch.cat([one[name], pixels[name]]) for name in pixels}
        whole = model.generate(input_ids=grown, attention_mask=mask, **types(grown), **both, **GREEDY)
    assert torch.equal(second, whole)


def test_marks_around_an_image_do_not_guide(model: Any, name: str) -> None:
    """Start and end marks are structure: the question alone is what the selection reads."""
    seen: list[Tensor] = []

    class Spy(foveate.TextSimilarity):
        def choose(self, visual: Any, text: Any, budget: int) -> Any:
            seen.append(text.embeddings)
            return super().choose(visual, text, budget)

    inputs = prompts(ROWS[name], model, "several")
    with Spy(keep=0.4)(model):
        model.generate(**inputs, **GREEDY)
    ids = inputs["input_ids"][0]
    words = ids[~torch.isin(ids, torch.tensor([BOS, ROWS[name].token, START, END]))]
    assert {5, 20 + 2, 41} <= set(words.tolist())  # before the images, between and behind them
    assert torch.equal(seen[-1], model.get_input_embeddings()(words))


SIZES = [(112, 196), (196, 112), (150, 151), (84, 300)]


def processor() -> Any:
    return Images(min_pixels=56 * 56, max_pixels=168 * 168, patch_size=14, merge_size=2, temporal_patch_size=2)


def in_order(processed: Any) -> Tensor:
    """(merged rows, merged columns) mean brightness of the pixels behind every visual token."""
    _, rows, columns = processed["image_grid_thw"][0].tolist()
    return processed["pixel_values"].mean(dim=1).view(rows // 2, columns // 2, 4).mean(dim=-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_geometry(size: tuple[int, int], family: str) -> None:
    """One bright box painted into a black image is found at the token whose box it is."""
    model = ROWS[family].make("sdpa")
    images = processor()
    blank = images(Image.new("RGB", size[::-1]), return_tensors="pt")
    geometry = encode(model, blank)[0].tokens.geometry
    boxes = geometry.boxes_in(*size)
    for token in range(len(geometry)):
        pixels = np.zeros((*size, 3), dtype=np.uint8)
        left, top, right, bottom = (int(value) for value in boxes[token].round().tolist())
        pixels[top:bottom, left:right] = 255
        brightness = in_order(images(Image.fromarray(pixels), return_tensors="pt"))
        place = divmod(int(brightness.argmax()), brightness.shape[1])
        assert place == (int(geometry.row[token]), int(geometry.column[token]))


def test_frames_of_a_video_are_views(name: str) -> None:
    row = ROWS[f"{name}-video"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    (film,) = encode(model, inputs, "video")
    frames, rows, columns = inputs["video_grid_thw"][0].tolist()
    geometry = film.tokens.geometry
    assert geometry.grids == ((rows // 2, columns // 2),) * frames
    assert geometry.view.tolist() == [frame for frame in range(frames) for _ in range(rows * columns // 4)]
    pruner = foveate.AdaFV(keep=4)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    assert len(pruner.selections[0]) == 4  # per video, not per frame


@pytest.mark.parametrize("row", [ROWS[name] for name in NAMES], ids=NAMES)
def test_refusals(row: Row) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    with foveate.AdaFV(keep=0.4)(model):
        with pytest.raises(ValueError, match="needs mm_token_type_ids"):
            model.generate(**{key: value for key, value in inputs.items() if key != "mm_token_type_ids"}, **GREEDY)
        with pytest.raises(ValueError, match="needs image_grid_thw beside pixel_values"):
            model.generate(**{key: value for key, value in inputs.items() if key != "image_grid_thw"}, **GREEDY)
        with pytest.raises(ValueError, match="patches for image_grid_thw"):
            model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][:-4]}, **GREEDY)
        with pytest.raises(ValueError, match="patches for image_grid_thw .*, got list"):
            model.generate(**{**inputs, "pixel_values": [*inputs["pixel_values"]]}, **GREEDY)
        with pytest.raises(ValueError, match="image placeholders, but the 1 image"):
            model.generate(
                **{
                    **inputs,
                    "image_grid_thw": inputs["image_grid_thw"][:1],
                    "pixel_values": inputs["pixel_values"][:36],
                },
                **GREEDY,
            )
    with pytest.raises(ValueError, match="has no positions='compact'; known: original"):
        foveate.attach(model, foveate.AdaFV(), positions="compact")
    with pytest.raises(ValueError, match="has no layout 'released'"):
        foveate.attach(model, foveate.AdaFV(), layout="released")


def with_whole_layers(*layers: int) -> Any:
    model = copy.deepcopy(ROWS["qwen2_5_vl"].make("sdpa"))
    model.model.visual.fullatt_block_indexes = list(layers)
    return model


@pytest.mark.parametrize("layers", [(), (4, 7)])
def test_windows_alone_give_no_saliency(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="names none of the 4 layers"):
        foveate.attach(with_whole_layers(*layers), foveate.AdaFV())


def test_whole_layers_beyond_the_depth() -> None:
    """Stock passes over them: a config of a deeper encoder, cut short, reads the last layer that there is."""
    row, model = ROWS["qwen2_5_vl"], with_whole_layers(1, 7)
    inputs = prompts(row, model, "mixed")
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
    with foveate.AdaFV(keep=1.0)(model):
        ours = model.generate(**inputs, **options)
    assert torch.equal(ours, model.generate(**inputs, **options))
    for image, wanted in zip(encode(model, inputs), encode(with_whole_layers(1), inputs), strict=True):
        assert torch.equal(image.tokens.saliency, wanted.tokens.saliency)
        assert torch.equal(image.stream, wanted.stream)


def test_given_positions_are_shortened(name: str, model: Any) -> None:
    """Explicit (4, B, S) or (3, B, S) positions of the long prompt, as some callers work them out themselves."""
    row = ROWS[name]
    inputs = prompts(row, model, "mixed")
    spatial = reference.long_positions(model, row, inputs)
    text = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    pruner = foveate.Saliency(keep=0.4)
    with pruner(model), torch.no_grad():
        plain = model(**inputs).logits
        given = model(**inputs, position_ids=spatial).logits
        four = model(**inputs, position_ids=torch.cat([text[None], spatial])).logits
    there = inputs["attention_mask"].bool()
    torch.testing.assert_close(given[there], plain[there])
    torch.testing.assert_close(four[there], plain[there])


TEMPLATE = (
    "{% for message in messages %}user: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><image><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} assistant:"
)


@pytest.fixture
def whole_processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real one, but for its video part, which does not exist without torchvision."""
    words = tokenizer()
    words.image_token, words.video_token = "<image>", "w98"
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    return Qwen2VLProcessor(processor(), words, None, chat_template=TEMPLATE)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_session(whole_processor: Any, family: str, keep: float) -> None:
    model = ROWS[family].make("sdpa")
    generator = np.random.default_rng(3)
    pictures = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES[:2]]
    session = foveate.look(model, whole_processor, pictures)
    for question in ("is there a cat?", "what color is the card?"):
        pruner = foveate.AdaFV(keep=keep)
        answer = session.ask(question, pruner, max_new_tokens=5, do_sample=False)
        inputs = whole_processor(text=[session.prompt(question)], images=pictures, return_tensors="pt")
        with foveate.AdaFV(keep=keep)(model):
            alone = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]
        assert torch.equal(answer.sequence, alone)
