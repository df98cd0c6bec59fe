"""Idefics3, SmolVLM, Gemma 3 and PaliGemma: where a token's pixels are, tiles and prompts, padding, refusals."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

import foveate
from foveate.models import family_for
from foveate.models.tile_marks import tile_grids
from tests import reference
from tests.encoding import encode
from tests.test_matrix import OLD
from tests.tiny import BOS, IMAGE, ROWS, SIDE, SILENT, prompts
from tests.tiny.rows import TEXT, VISION
from tests.tiny.siglip import FENCE, GLOBAL, NEWLINE, PALIGEMMA2, TAG, write_grid

try:  # the PIL processors: no torchvision needed
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Gemma3Images
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil as Idefics3Images
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil as SiglipImages
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as SmolVlmImages
except ImportError:  # before 5.10
    from transformers import Gemma3ImageProcessor as Gemma3Images
    from transformers import Idefics3ImageProcessor as Idefics3Images
    from transformers import SiglipImageProcessor as SiglipImages
    from transformers import SmolVLMImageProcessor as SmolVlmImages

SIZES = [(300, 420), (420, 300), (333, 333), (200, 640), (640, 200), (97, 131)]
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
PER_TILE = 4
TILED = ["idefics3", "smolvlm"]


def painted(size: tuple[int, int], box: Tensor) -> Image.Image:
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    left, top, right, bottom = (int(value) for value in box.round().tolist())
    pixels[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
    return Image.fromarray(pixels)


def brightest(view: Tensor, size: int) -> tuple[int, int]:
    """(row, column) of the brightest square of ``size`` pixels of one (3, H, W) view."""
    means = view.mean(0).unfold(0, size, size).unfold(1, size, size).mean((-1, -2))
    return divmod(int(means.argmax()), means.shape[1])


def tiled(name: str, picture: Image.Image, **options: Any) -> dict[str, Tensor]:
    """What the real image processor makes of one picture, with the prompt that goes with it."""
    images = {"idefics3": Idefics3Images, "smolvlm": SmolVlmImages}[name]
    processor = images(size={"longest_edge": 4 * SIDE}, max_image_size={"longest_edge": SIDE}, **options)
    found = processor([[picture]], return_tensors="pt", return_row_col_info=True)
    grid = (int(found["rows"][0][0]), int(found["cols"][0][0]))
    ids = torch.tensor([[BOS, *write_grid(grid, PER_TILE), 5, 6]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": found["pixel_values"],
        "pixel_attention_mask": found["pixel_attention_mask"],
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TILED)
def test_every_token_of_a_tiled_image_is_found_where_its_box_is(name: str, size: tuple[int, int]) -> None:
    (image,) = encode(ROWS[name].make("sdpa"), tiled(name, Image.new("RGB", size[::-1])))
    geometry = image.tokens.geometry
    views = len(geometry.grids)
    assert views > 5 and image.placeholders == views * PER_TILE
    boxes = geometry.boxes_in(*size)
    for token in range(0, len(geometry), 3):
        tiles = tiled(name, painted(size, boxes[token]))["pixel_values"][0]
        view = int(geometry.view[token])
        place = (int(geometry.row[token]), int(geometry.column[token]))
        assert brightest(tiles[(view - 1) % views], SIDE // 2) == place, token
        if view:  # and in no other tile is it as bright
            assert int(tiles[:-1].mean((1, 2, 3)).argmax()) == view - 1, token


def test_an_image_that_is_not_cut_is_one_view() -> None:
    inputs = tiled("smolvlm", Image.new("RGB", (90, 40)), do_image_splitting=False)
    (image,) = encode(ROWS["smolvlm"].make("sdpa"), inputs)
    assert (image.tokens.geometry.view == 0).all() and len(image.tokens) == PER_TILE
    assert torch.equal(image.tokens.geometry.boxes_in(40, 90)[-1], torch.tensor([45.0, 20, 90, 40]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name, token", [("gemma3", 28), ("paligemma", 14)])
def test_every_token_of_a_square_is_found_where_its_box_is(name: str, token: int, size: tuple[int, int]) -> None:
    side = 2 * SIDE if name == "gemma3" else SIDE
    images = Gemma3Images if name == "gemma3" else SiglipImages
    processor = images(size={"height": side, "width": side})
    pixels = processor(Image.new("RGB", size[::-1]), return_tensors="pt")["pixel_values"]
    geometry = encode(ROWS[name].make("sdpa"), {"pixel_values": pixels})[0].tokens.geometry
    assert len(geometry) == 16
    boxes = geometry.boxes_in(*size)
    for number in range(len(geometry)):
        view = processor(painted(size, boxes[number]), return_tensors="pt")["pixel_values"][0]
        assert brightest(view, token) == (int(geometry.row[number]), int(geometry.column[number]))


def test_pan_and_scan_crops_are_images() -> None:
    """One picture, three runs of placeholders in Gemma 3's prompt: every crop is an image with a budget of its own."""
    processor = Gemma3Images(
        size={"height": 112, "width": 112},
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=32,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    found = processor(Image.new("RGB", (200, 100)), return_tensors="pt")
    assert found["num_crops"].tolist() == [2]
    model = ROWS["gemma3"].make("sdpa")
    pictures = encode(model, {"pixel_values": found["pixel_values"]})
    assert [len(one.tokens) for one in pictures] == [16, 16, 16]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TILED)
def test_padding_inside_a_tile(name: str, attention: str) -> None:
    """Two tiles, the second half empty: nobody attends to its padding, and the padding is no part of the picture."""
    model = ROWS[name].make(attention)
    pixels = torch.randn(1, 3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 3, SIDE, SIDE, dtype=torch.long)
    mask[0, 1, :, 28:] = 0
    ids = torch.tensor([[BOS, *write_grid((1, 2), PER_TILE), 5]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    inputs["pixel_attention_mask"] = mask
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    seen: list[Tensor] = []
    layer = eager.model.vision_model.encoder.layers[-1].self_attn
    layer.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    with torch.no_grad():
        stock = eager.get_image_features(pixels, pixel_attention_mask=mask, return_dict=True).pooler_output
    stock = stock.flatten(0, 1) if torch.is_tensor(stock) else torch.cat(list(stock))  # since 5.23 one per prompt
    (image,) = encode(model, inputs)
    received = seen[0].double().mean((1, 2)).view(3, 2, 2, 2, 2).sum((2, 4)).flatten()
    torch.testing.assert_close(image.tokens.saliency.double(), received, atol=1e-6, rtol=0)
    torch.testing.assert_close(image.stream, stock)
    geometry = image.tokens.geometry
    assert geometry.image_size == (56, 84)
    padding = torch.tensor([False, False, False, False, False, True, False, True, False, False, False, False])
    area = (geometry.boxes[:, 2:] - geometry.boxes[:, :2]).prod(dim=1)
    assert torch.equal(area == 0, padding)
    assert torch.equal(image.tokens.saliency == 0, padding)
    assert geometry.boxes[-1].tolist() == [42, 28, 84, 56]
    with foveate.AdaFV(keep=1.0)(model):
        ours = model.generate(**inputs, **GREEDY)
    assert torch.equal(ours, model.generate(**inputs, **GREEDY))


def test_frames_of_a_video_are_images() -> None:
    """SmolVLM's processor writes every frame as a whole image with its time before it, and may pad all frames."""
    model = ROWS["smolvlm"].make("sdpa")
    pixels = torch.randn(1, 3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(1, 3, SIDE, SIDE, dtype=torch.long)
    mask[..., 42:, :] = 0
    frames = [token for time in (7, 8, 9) for token in (NEWLINE, time, *write_grid((0, 0), PER_TILE))]
    ids = torch.tensor([[BOS, *frames, NEWLINE, 5, 6]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    images = encode(model, {**inputs, "pixel_attention_mask": mask})
    assert [image.placeholders for image in images] == [PER_TILE] * 3
    assert all(image.tokens.geometry.image_size == (42, 56) for image in images)
    pruner = foveate.AdaFV(keep=2)
    with pruner(model):
        model.generate(**inputs, pixel_attention_mask=mask, **GREEDY)
    assert [len(one) for one in pruner.selections] == [2, 2, 2]


def test_grids_of_a_prompt() -> None:
    """Images side by side, with text between them, cut in every way; tags of several tokens."""
    grids = [(1, 2), (0, 0), (0, 0), (3, 2), (2, 1), (4, 4), (0, 0)]
    ids = [-1, -1, BOS, NEWLINE]
    for number, grid in enumerate(grids):
        ids += [*write_grid(grid, PER_TILE), *([7, NEWLINE, 8] if number % 2 else [])]
    assert tile_grids(torch.tensor([*ids, 9]), IMAGE, PER_TILE) == grids
    assert tile_grids(torch.tensor([BOS, 5, FENCE]), IMAGE, PER_TILE) == []


RUN = [IMAGE] * PER_TILE


@pytest.mark.parametrize(
    "ids, message",
    [
        ([FENCE, GLOBAL, *RUN], "a mark behind it"),
        ([FENCE, GLOBAL, *RUN, -1], "a mark behind it"),
        ([FENCE, GLOBAL, *RUN[1:], FENCE], r"runs of \[3\] image placeholders.*4 long"),
        ([FENCE, GLOBAL, *RUN, *RUN, FENCE], r"runs of \[8\] image placeholders.*4 long"),
        ([GLOBAL, *RUN, 5, GLOBAL, *RUN, FENCE], "nothing marks the border"),
        ([FENCE, TAG, *RUN, FENCE, GLOBAL, *RUN, FENCE], r"rows of \[2\] tiles"),
        (
            [FENCE, TAG, *RUN, FENCE, TAG, *RUN, NEWLINE, FENCE, TAG, *RUN, NEWLINE, FENCE, GLOBAL, *RUN, FENCE],
            r"rows of \[2, 1, 1\] tiles",
        ),
    ],
)
def test_prompts_that_no_processor_writes(ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}.*as the model's own processor writes it"):
        tile_grids(torch.tensor([BOS, *ids]), IMAGE, PER_TILE)


def test_tags_and_line_breaks_are_no_text() -> None:
    """What stands between the tiles of an image guides no selection; text between images does."""
    family = family_for(ROWS["idefics3"].make("sdpa"))
    first, second = write_grid((2, 2), PER_TILE), write_grid((0, 0), PER_TILE)
    ids = torch.tensor([[-1, BOS, 5, NEWLINE, *first, 6, NEWLINE, *second, 7, NEWLINE], [-1] * 50 + [5, NEWLINE, 8]])
    text = ids[~family.marks(ids) & (ids >= 0)].tolist()
    assert text == [BOS, 5, NEWLINE, 6, NEWLINE, 7, NEWLINE, 5, NEWLINE, 8]


@pytest.mark.parametrize("name", TILED)
def test_refusals_of_tiles(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "several")
    pixels, mask = inputs["pixel_values"], inputs["pixel_attention_mask"]
    wrong = {
        r"\(prompts, tiles, channels, height, width\)": {"pixel_values": pixels[0]},
        "tiles of 56x42 pixels are 4x3 patches: .*multiple of 2": {"pixel_values": pixels[..., :42]},
        r"pixel_attention_mask must be \(1, 8, 56, 56\)": {"pixel_attention_mask": mask[..., :42]},
        "hold 8 runs of 4 image placeholders .2 image.*hold 7 tiles": {
            "pixel_values": pixels[:, :7],
            "pixel_attention_mask": mask[:, :7],
        },
    }
    for message, changed in wrong.items():
        with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match=message):
            model.generate(**{**inputs, **changed}, **GREEDY)
    with pytest.raises(ValueError, match="only the prompt says which tiles"):
        encode(model, {"pixel_values": pixels})
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="videos are not supported"):
        model.generate(**inputs, pixel_values_videos=pixels, **GREEDY)


@pytest.mark.parametrize("name", TILED)
def test_without_a_pixel_mask(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "mixed")
    del inputs["pixel_attention_mask"]
    with foveate.AdaFV(keep=1.0)(model):
        ours = model.generate(**inputs, **GREEDY)
    assert torch.equal(ours, model.generate(**inputs, **GREEDY))


@pytest.mark.parametrize("name, side", [("gemma3", 112), ("paligemma", 56)])
def test_refusals_of_squares(name: str, side: int) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    pixels = inputs["pixel_values"]
    for wrong in (pixels[None], pixels[..., :-14], [pixels]):
        with (
            foveate.AdaFV(keep=0.3)(model),
            pytest.raises(ValueError, match=rf"\(images, channels, {side}, {side}\), got"),
        ):
            model.generate(**{**inputs, "pixel_values": wrong}, **GREEDY)


def test_a_tower_with_cls_is_refused() -> None:
    config = PaliGemmaConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=64),
        text_config={"model_type": "gemma", "head_dim": 16, **TEXT},
        image_token_index=IMAGE,
    )
    with pytest.raises(ValueError, match="vision tower 'clip_vision_model' is not supported.*siglip_vision_model"):
        foveate.attach(PaliGemmaForConditionalGeneration(config), foveate.AdaFV())


@pytest.mark.parametrize("attention", ["sdpa", "eager", "apart"])
@pytest.mark.parametrize("batch", ["several", "mixed"])
def test_paligemma_2(batch: str, attention: str) -> None:
    """Gemma 2 as the language model: layers with a sliding window, which the prompt's own block is exempt from.
    "apart": what 5.24 loads unless asked otherwise, an eager language model behind an SDPA tower."""
    row = PALIGEMMA2
    if attention == "apart":
        model = copy.deepcopy(row.make("eager"))
        model.set_attn_implementation({"": "sdpa", "vision_config": "sdpa", "text_config": "eager"})
        assert model.config._attn_implementation != model.model.language_model.config._attn_implementation
    else:
        try:
            model = row.make(attention)
        except ValueError as error:
            pytest.skip(f"stock itself: {error}")  # 5.24: Gemma 2 caps its logits, and SDPA does not
    inputs = prompts(row, model, batch)
    pruner = foveate.AdaFV(keep=0.4)
    for options in ({}, {"use_cache": False}):
        with pruner(model):
            result = model.generate(**inputs, **GREEDY, **options, output_logits=True, return_dict_in_generate=True)
        assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
        tokens, logits = reference.greedy(row, model, assembled, GREEDY["max_new_tokens"])
        assert torch.equal(result.sequences[:, inputs["input_ids"].shape[1] :], tokens)
        # Stock 5.5 without a cache takes new tokens into the prompt's block, and then differs from itself with one.
        steps = 1 if OLD and options else len(result.logits)
        got = torch.stack(result.logits, dim=1)
        torch.testing.assert_close(got[:, :steps], logits[:, :steps], atol=1e-4, rtol=1e-4)


def test_token_types_are_shortened_with_the_prompt() -> None:
    """PaliGemma's answer to be learned stays causal: the loss of a suffix, which the prompt's image must not shift."""
    model = ROWS["paligemma"].make("sdpa")
    inputs = prompts(ROWS["paligemma"], model, "one")
    inputs["token_type_ids"][:, -3:] = 1
    labels = inputs["input_ids"].masked_fill(inputs["token_type_ids"] == 0, -100)
    pruner = foveate.Saliency(keep=5)
    with torch.no_grad(), pruner(model):
        before = model(**inputs, labels=labels).logits
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, -1] = 33
        after = model(**changed, labels=labels).logits
    assert torch.equal(before[:, :-1], after[:, :-1])  # what comes before does not see the last token
    assert not torch.equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("name, first", [("paligemma", 1), ("gemma3", 0)])
def test_original_positions_start_where_stock_starts(name: str, first: int) -> None:
    """Relative positions would hide a shift: the ids the language model gets are looked at."""
    model = copy.deepcopy(ROWS[name].make("sdpa"))
    inputs = prompts(ROWS[name], model, "one")
    seen: list[Tensor | None] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    pruner = foveate.Saliency(keep=3)
    with torch.no_grad(), pruner(model, positions="original"):
        model(**inputs)
    ids = inputs["input_ids"][0]
    patches = (ids == IMAGE).nonzero()[:, 0]
    kept = torch.cat([(ids != IMAGE).nonzero()[:, 0], patches[pruner.selections[0].indices]]).sort().values
    assert seen[-1] is not None and torch.equal(seen[-1][0], kept + first)
