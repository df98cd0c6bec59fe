"""What Llama 4 has beyond the matrix: its prompts, marks, refusals, padding of the canvas, stock's own failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import is_torchvision_available

import foveate
from foveate.guiding import Guide, ImageSpan
from foveate.models import family_for
from foveate.turns import Turns
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, ROWS, SIDE, SILENT, START, llama4, prompts
from tests.tiny.rows import noise

pytestmark = pytest.mark.skipif(not llama4.KNOWN, reason="this transformers has no Llama 4")
RUNS = pytest.mark.skipif("llama4" not in ROWS, reason="stock's own forward fails, as the last test shows")
OPEN, CLOSE, TURN, USER, BOT, SYSTEM = 80, 81, 82, 83, 84, 85
"""Header start and end, end of turn, the roles."""
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}


def said(role: int, *ids: int) -> list[int]:
    return [OPEN, role, CLOSE, *ids, TURN]


TURNS = Turns(
    starts=((OPEN, USER, CLOSE),),
    ends=((TURN, OPEN, BOT, CLOSE), (TURN,)),
    special=frozenset({BOS, OPEN, CLOSE, TURN}),
)
PICTURE = llama4.write(0, 12)
WAITING = [OPEN, BOT, CLOSE]


def guiding(ids: list[int], image: int = 0) -> list[int]:
    """The ids that guide the choice for the image-th picture of three tiles."""
    prompt = torch.tensor([ids])
    family = family_for(llama4.llama4("sdpa"))
    spots = (prompt[0] == IMAGE).nonzero()[:, 0][12 * image : 12 * (image + 1)]
    found: list[int] = Guide(prompt, ~family.marks(prompt), TURNS).of(ImageSpan(0, spots)).ids.tolist()
    return found


@pytest.mark.parametrize("system", [[], said(SYSTEM, 70, 71)])
def test_the_question_guides(system: list[int]) -> None:
    start = [BOS, *system]
    assert guiding([*start, *said(USER, *PICTURE, 40, 41), *WAITING]) == [40, 41]
    assert guiding([*start, *said(USER, 40, 41, *PICTURE), *WAITING]) == [40, 41]
    before = [*said(USER, 50), *said(BOT, 60)]
    after = [*said(BOT, 61), *said(USER, 51), *WAITING]
    assert guiding([*start, *before, *said(USER, *PICTURE, 40, 41), *after]) == [40, 41]
    two = [*start, *said(USER, *PICTURE, *PICTURE, 40), *said(BOT, 60), *said(USER, 41), *WAITING]
    assert guiding(two, 0) == guiding(two, 1) == [40]


def asked(ids: list[int], tiles: int = 3) -> dict[str, Tensor]:
    prompt = torch.tensor([[BOS, *ids, 40, 41]])
    return {
        "pixel_values": noise(0, tiles, 3, SIDE, SIDE),
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
    }


def test_pictures_side_by_side() -> None:
    single = llama4.write(1, 4)
    model = llama4.llama4("sdpa")
    images = encode(model, asked([*PICTURE, *single, *single, *PICTURE], 8))
    assert [image.placeholders for image in images] == [12, 4, 4, 12]
    assert [len(image.tokens.geometry.grids) for image in images] == [3, 1, 1, 3]


TILE = [IMAGE] * 4
A, D, W = llama4.ACROSS, llama4.DOWN, llama4.WHOLE


@pytest.mark.parametrize("ids", [
    [START, *TILE, A, *TILE, D, W, *TILE],  # no end
    [*TILE, A, *TILE, D, W, *TILE, END],  # no start
    [START, *TILE, A, *TILE, D, *TILE, END],  # no mark before the whole
    [START, *TILE, *TILE, D, W, *TILE, END],  # nothing between tiles
    [START, *TILE, A, *TILE, A, *TILE, D, *TILE, D, W, *TILE, END],  # rows of three and of one
    [START, *TILE, END],  # a single tile without its mark
])  # fmt: skip
def test_prompts_written_otherwise_are_refused(ids: list[int]) -> None:
    tiles = sum(token == IMAGE for token in ids) // 4
    with pytest.raises(ValueError, match="not a picture as Llama 4's processor writes it"):
        encode(llama4.llama4("sdpa"), asked(ids, tiles))


def canvas(height: int, width: int, border: int = 0) -> dict[str, Tensor]:
    """A picture in the upper left corner of 1 x 2 tiles, its last ``border`` columns as dark as the padding."""
    pixels = torch.full((3, SIDE, 2 * SIDE), -1.0)
    picture = noise(3, 3, height, width)
    picture[..., width - border :] = -1.0
    pixels[:, :height, :width] = picture
    whole = torch.nn.functional.interpolate(picture[None], (SIDE, SIDE), mode="nearest")
    tiles = torch.cat([pixels.unflatten(2, (2, SIDE)).permute(2, 0, 1, 3), whole])
    return {**asked(PICTURE), "pixel_values": tiles}


@pytest.mark.parametrize(
    "height, width, border", [(56, 112, 0), (40, 100, 0), (56, 84, 0), (50, 80, 20), (56, 112, 30)]
)
def test_the_picture_is_what_is_not_padding(height: int, width: int, border: int) -> None:
    """The whole view tells a dark edge of the picture from padding, to a pixel of its own."""
    (image,) = encode(llama4.llama4("sdpa"), canvas(height, width, border))
    geometry = image.tokens.geometry
    assert abs(geometry.image_size[0] - height) <= 1 and abs(geometry.image_size[1] - width) <= 2
    if not border:
        assert geometry.image_size == (height, width)
    boxes = geometry.boxes
    for view, row, column, box in zip(geometry.view, geometry.row, geometry.column, boxes, strict=True):
        if view == 0:
            continue
        left, top = (int(view) - 1) * SIDE + 28 * int(column), 28 * int(row)
        shown = left < geometry.image_size[1] and top < geometry.image_size[0]
        assert bool(((box[2:] - box[:2]) > 0).all()) == shown
        if shown:
            assert box[:2].tolist() == [left, top]


def test_a_black_picture_fills_its_canvas() -> None:
    inputs = {**asked(PICTURE), "pixel_values": torch.full((3, 3, SIDE, SIDE), -1.0)}
    (image,) = encode(llama4.llama4("sdpa"), inputs)
    assert image.tokens.geometry.image_size == (SIDE, 2 * SIDE)


@RUNS
def test_merged_tokens_go_through_the_projector_as_they_would_have() -> None:
    """Weights apply to what the encoder gives; the projector, a linear map, makes of it what they make of tokens."""
    model = ROWS["llama4"].make("sdpa")
    inputs = prompts(ROWS["llama4"], model, "one")
    seen: list[Tensor] = []
    hook = model.multi_modal_projector.register_forward_hook(lambda module, args, output: seen.append(output))
    pruner = foveate.get_pruner("pool", keep=4)
    try:
        with pruner(model), torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    (image,) = encode(model, inputs)
    (selection,) = pruner.selections
    torch.testing.assert_close(seen[-1], selection.gather(image.tokens.features), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not is_torchvision_available(), reason="its image processor needs torchvision")
def test_prompts_of_its_own_processor() -> None:
    from PIL import Image
    from transformers import Llama4ImageProcessor, Llama4Processor

    from tests.tiny.words import tokenizer

    marks = {
        "<|image|>": W, "<|patch|>": IMAGE, "<|image_start|>": START, "<|image_end|>": END,
        "<|tile_x_separator|>": A, "<|tile_y_separator|>": D, "<|header_start|>": OPEN, "<|header_end|>": CLOSE,
        "<|eot|>": TURN,
    }  # fmt: skip
    images = Llama4ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=6)
    processor = Llama4Processor(images, tokenizer(marks))
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a cat?"}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    for size, tiles in (((100, 50), 3), ((50, 160), 4), ((112, 112), 5), ((40, 40), 1)):
        inputs: Any = processor(images=Image.new("RGB", size, "red"), text=text, return_tensors="pt")
        pixels = inputs["pixel_values"].float()
        (image,) = encode(llama4.llama4("sdpa"), {**inputs, "pixel_values": pixels})
        assert image.placeholders == 4 * len(pixels) == 4 * tiles
        family = family_for(llama4.llama4("sdpa"))
        left = inputs["input_ids"][0][~family.marks(inputs["input_ids"])[0]]
        assert not set(left.tolist()) & {W, A, D, START, END, IMAGE}


@pytest.mark.skipif("llama4" in ROWS, reason="its forward runs here")
def test_stock_itself_fails() -> None:
    model = llama4.llama4("sdpa")
    with pytest.raises(AttributeError, match="has no attribute 'image_outputs'"):
        model(input_ids=torch.tensor([[BOS, 5, 6]]))
