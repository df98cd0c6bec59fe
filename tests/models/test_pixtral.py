"""Mistral 3 and Pixtral in LLaVA: refusals, marks, and where a token's pixels are."""

from __future__ import annotations

import copy
import importlib
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, PixtralVisionConfig
from transformers.utils import is_torchvision_available

import foveate
from foveate.models import family_for
from tests.checkpoint import tokenizer
from tests.encoding import encode
from tests.tiny import END, IMAGE, ROWS, SILENT, prompts, text_config
from tests.tiny.mistral import BREAK

try:  # the PIL processor: no torchvision needed
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil as PixtralImages
except ImportError:  # before 5.10
    from transformers import PixtralImageProcessor as PixtralImages

NAMES = ["mistral3", "llava-pixtral"]
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
SIZES = [(100, 140), (140, 100), (90, 90), (40, 200), (29, 57)]


def processed(picture: Image.Image, side: int) -> dict[str, Tensor]:
    """As PixtralProcessor calls it: patches of side x side are never cut."""
    images = PixtralImages(size={"longest_edge": 112}, patch_size={"height": 14 * side, "width": 14 * side})
    return dict(images(picture, return_tensors="pt"))


def painted(size: tuple[int, int], box: Tensor) -> Image.Image:
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    left, top, right, bottom = (int(value) for value in box.round().tolist())
    pixels[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_geometry(name: str, size: tuple[int, int]) -> None:
    side = {"mistral3": 2, "llava-pixtral": 1}[name]
    inputs = processed(Image.new("RGB", size[::-1]), side)
    geometry = encode(ROWS[name].make("sdpa"), inputs)[0].tokens.geometry
    assert geometry.image_size == tuple(inputs["pixel_values"].shape[-2:])
    boxes = geometry.boxes_in(*size)
    assert boxes[:, 2].max() == pytest.approx(size[1]) and boxes[:, 3].max() == pytest.approx(size[0])
    pixels = 14 * side
    for token in range(len(geometry)):
        view = processed(painted(size, boxes[token]), side)["pixel_values"][0]
        means = view.mean(0).unfold(0, pixels, pixels).unfold(1, pixels, pixels).mean((-1, -2))
        place = divmod(int(means.argmax()), means.shape[1])
        assert place == (int(geometry.row[token]), int(geometry.column[token]))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_over_at_the_border_is_in_no_token(name: str) -> None:
    side = {"mistral3": 2, "llava-pixtral": 1}[name]
    model = ROWS[name].make("sdpa")
    pixels = torch.randn(1, 3, 50, 78, generator=torch.Generator().manual_seed(0))
    geometry = encode(model, {"pixel_values": pixels, "image_sizes": torch.tensor([[50, 78]])})[0].tokens.geometry
    assert geometry.grids == ((3 // side, 5 // side),)
    assert geometry.boxes[-1].tolist() == [
        14 * side * (5 // side - 1), 14 * side * (3 // side - 1), 14 * side * (5 // side), 14 * side * (3 // side),
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "several")
    sizes, pixels = inputs["image_sizes"], inputs["pixel_values"]
    wrong: list[tuple[dict[str, Any], str]] = [
        # Pixtral's own class takes every image for as large as its plane then, which this prompt is not written for.
        ({"image_sizes": None}, {"mistral3": "needs image_sizes", "llava-pixtral": "hold 28 image placeholders"}[name]),
        ({"image_sizes": sizes[:1]}, "with 1 sizes"),
        ({"pixel_values": pixels[None]}, "images, channels, height, width"),
        ({"pixel_values": list(pixels)}, "got list"),
        ({"image_sizes": sizes + 28}, "do not fit"),
        ({"vision_feature_layer": 0}, "before any attention"),
    ]
    with foveate.AdaFV(keep=0.3)(model):
        for changed, message in wrong:
            with pytest.raises(ValueError, match=message):
                model.generate(**{**inputs, **changed}, **GREEDY)


def test_pixtral_has_no_cls_to_drop() -> None:
    model = copy.deepcopy(ROWS["llava-pixtral"].make("sdpa"))
    model.config.vision_feature_select_strategy = "default"
    inputs = prompts(ROWS["llava-pixtral"], ROWS["llava-pixtral"].make("sdpa"), "one")
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="Pixtral tower has none.*'full'"):
        model.generate(**inputs, **GREEDY)


def test_no_pixtral_where_stock_has_none() -> None:
    config = LlavaNextConfig(
        vision_config=PixtralVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56),
        text_config=text_config(1),
        image_token_index=IMAGE,
    )
    with pytest.raises(ValueError, match="vision tower 'pixtral' is not supported in a 'llava_next' model"):
        foveate.attach(LlavaNextForConditionalGeneration(config), foveate.AdaFV())


@pytest.mark.parametrize("name", NAMES)
def test_breaks_and_ends_stay_and_do_not_guide(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "mixed")
    ids = inputs["input_ids"]
    ends = (ids == BREAK) | (ids == END)
    assert torch.equal(family_for(model).marks(ids), ends | (ids == IMAGE))
    seen: list[Tensor] = []
    pruner = foveate.AdaFV(keep=1)
    with pruner(model):
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        model.generate(**inputs, **GREEDY)
        hook.remove()
    marks = model.get_input_embeddings().weight[[BREAK, END]]
    there = (seen[0][:, :, None] == marks).all(-1).any(-1)
    assert there.sum(1).tolist() == ends.sum(1).tolist()


def test_text_after_an_image_without_breaks_guides() -> None:
    """A prompt that is not the processor's: nothing marks the rows, so nothing is taken for a mark."""
    ids = torch.tensor([[1, 5, *[IMAGE] * 6, 7, 8]])
    family = family_for(ROWS["mistral3"].make("sdpa"))
    assert torch.equal(family.marks(ids), ids == IMAGE)


@pytest.fixture
def whole_processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real one; all it wants of torchvision is the size that its PIL sibling works out too."""
    pil = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    if not is_torchvision_available():
        monkeypatch.setitem(sys.modules, "transformers.models.pixtral.image_processing_pixtral", pil)
    module = importlib.import_module("transformers.models.pixtral.processing_pixtral")
    return module.PixtralProcessor(
        PixtralImages(size={"longest_edge": 112}),
        tokenizer(),
        patch_size=14,
        spatial_merge_size=2,
        image_token="<image>",
        image_break_token=f"w{BREAK}",
        image_end_token=f"w{END}",
    )


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_session(whole_processor: Any, keep: float) -> None:
    model = ROWS["mistral3"].make("sdpa")
    generator = np.random.default_rng(3)
    pictures = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES[:2]]
    session = foveate.look(model, whole_processor, pictures)
    for question in ("is there a cat?", "what color is the card?"):
        answer = session.ask(question, foveate.AdaFV(keep=keep), max_new_tokens=4, do_sample=False)
        inputs = whole_processor(text=[session.prompt(question)], images=[pictures], return_tensors="pt")
        assert int((inputs["input_ids"] == BREAK).sum()) > 0
        with foveate.AdaFV(keep=keep)(model):
            alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0]
        assert torch.equal(answer.sequence, alone)
