"""LLaVA-OneVision: where a token's pixels are, refusals, pictures beside videos, a session."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor
from transformers.utils import is_torchvision_available

import foveate
from tests.checkpoint import tokenizer
from tests.encoding import encode
from tests.tiny import BOS, IMAGE, ROWS, SILENT, VIDEO, prompts, text_config
from tests.tiny.llava import clip
from tests.tiny.onevision import EDGE, FILM, FRAMES, LIMIT, PER_SIDE, PINPOINTS, VIDEOS, video_pixels

try:  # the PIL processor: no torchvision needed
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil as OnevisionImages,
    )
except ImportError:  # before 5.10
    from transformers import LlavaOnevisionImageProcessor as OnevisionImages

GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}
SIZES = [(300, 420), (420, 300), (333, 333), (200, 640), (97, 131), (640, 200)]
PATCH = EDGE // PER_SIDE
needs_videos = pytest.mark.skipif(not VIDEOS, reason="this transformers puts the newline after a video by itself")


def images() -> Any:
    if "Pil" not in OnevisionImages.__name__ and not is_torchvision_available():
        pytest.skip("this transformers has no image processor that works without torchvision")
    return OnevisionImages(size={"height": EDGE, "width": EDGE}, image_grid_pinpoints=PINPOINTS)


def model() -> Any:
    return ROWS["llava_onevision"].make("sdpa")


def painted(size: tuple[int, int], box: Tensor) -> Image.Image:
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    left, top, right, bottom = (int(value) for value in box.round().tolist())
    pixels[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
    return Image.fromarray(pixels)


def patch_means(view: Tensor) -> Tensor:
    """(rows, columns) brightness of the patches of one (3, H, W) view."""
    return view.mean(0).unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).mean((-1, -2))


def brightest(view: Tensor) -> tuple[int, int]:
    """(row, column) of its brightest patch."""
    means = patch_means(view)
    return divmod(int(means.argmax()), means.shape[1])


@pytest.mark.parametrize("size, left", [((2, 900), 2 * PER_SIDE), ((900, 2), 0)])
def test_thin_pictures(size: tuple[int, int], left: int) -> None:
    """Unpadding leaves a single row of their crops, or nothing: then the base view is all there is."""
    tokens = encode(model(), images()(Image.new("RGB", size[::-1]), return_tensors="pt"))[0].tokens
    assert len(tokens) == len(tokens.geometry) == PER_SIDE**2 + left
    assert (tokens.geometry.view == 0).sum() == PER_SIDE**2


@pytest.mark.parametrize("size", SIZES)
def test_geometry_of_crops(size: tuple[int, int]) -> None:
    """The box of a token, shrunk or not, holds the patch its row and column name, and the boxes tile the picture."""
    processor = images()
    processed = processor(Image.new("RGB", size[::-1]), return_tensors="pt")
    geometry = encode(model(), processed)[0].tokens.geometry
    assert geometry.image_size == size
    crops = geometry.boxes[geometry.view > 0]
    shrunk = len(geometry.grids) - 1 > LIMIT
    spread = (geometry.boxes[:, 2:] - geometry.boxes[:, :2]).min(dim=1).values
    # Stock unpadding may cut off part of a patch at the border, no more.
    largest = crops[:, 2:] - crops[:, :2]
    assert (crops[:, :2].amin(0) < largest.amax(0)).all()
    assert (torch.tensor(size[::-1]) - crops[:, 2:].amax(0) < largest.amax(0)).all()
    checked = 0
    for token in range(0, len(geometry), 3):
        if spread[token] < 8:  # mostly padding: nothing to paint
            continue
        box = geometry.boxes[token]
        if shrunk:  # it takes in parts of other patches; the middle of it is in the one that is named
            middle = box.view(2, 2).mean(0).repeat(2)
            box = middle + (box - middle) / 3
        view = processor(painted(size, box), return_tensors="pt")["pixel_values"][0][int(geometry.view[token])]
        place = (int(geometry.row[token]), int(geometry.column[token]))
        if shrunk:
            light = patch_means(view) - patch_means(view).min()
            assert light[place] > 0.3 * light.max(), token
        else:
            assert brightest(view) == place, token
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("size", SIZES)
def test_the_box_is_where_the_feature_comes_from(size: tuple[int, int]) -> None:
    """Brightness per patch, packed as stock packs features, is highest at the token whose box was painted."""
    processor, whole = images(), model()
    processed = processor(Image.new("RGB", size[::-1]), return_tensors="pt")
    (encoded,) = encode(whole, processed)
    geometry = encoded.tokens.geometry
    spread = (geometry.boxes[:, 2:] - geometry.boxes[:, :2]).min(dim=1).values
    checked = 0
    for token in (geometry.view > 0).nonzero()[::4, 0].tolist():
        if spread[token] < 8:
            continue
        views = processor(painted(size, geometry.boxes[token]), return_tensors="pt")["pixel_values"][0]
        patches = views.mean(1).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).mean((-1, -2)).flatten(1)[..., None]
        packed, _ = whole.model.pack_image_features(
            [patches], torch.tensor([size]), torch.tensor([-1e9]), whole.config.vision_aspect_ratio
        )
        light = packed[0][:, 0][encoded.slots >= 0]
        light[geometry.view == 0] = -1e9
        assert int(light.argmax()) == token
        checked += 1
    assert checked > 3


@pytest.mark.parametrize("size", SIZES)
def test_geometry_of_one_of_several_images(size: tuple[int, int]) -> None:
    processor = images()

    def views(picture: Image.Image) -> dict[str, Any]:
        return dict(processor([[picture, Image.new("RGB", (50, 40))]], return_tensors="pt"))

    first, second = encode(model(), views(Image.new("RGB", size[::-1])))
    assert len(first.tokens) == len(second.tokens) == PER_SIDE**2
    assert first.placeholders == PER_SIDE**2 + 1  # one newline
    geometry = first.tokens.geometry
    boxes = geometry.boxes_in(*size)
    empty = views(Image.new("RGB", size[::-1]))["pixel_values"][0, 0]
    for token in range(len(geometry)):
        if (boxes[token, 2:] - boxes[token, :2]).min() < 8:  # padding
            continue
        view = views(painted(size, boxes[token]))["pixel_values"][0, 0] - empty
        assert brightest(view) == (int(geometry.row[token]), int(geometry.column[token])), token


@needs_videos
def test_geometry_of_videos() -> None:
    """Frames as the video processor makes them (it needs torchvision): stretched to a square."""
    frames = video_pixels([[0]])
    (encoded,) = encode(model(), frames, "video")
    geometry = encoded.tokens.geometry
    pooled = math.ceil(PER_SIDE / 2)
    assert geometry.grids == ((pooled, pooled),) * FRAMES
    boxes = geometry.boxes_in(EDGE, EDGE)
    for token in range(len(geometry)):
        pixels = torch.zeros(FRAMES, EDGE, EDGE)
        left, top, right, bottom = (int(value) for value in boxes[token].round().tolist())
        pixels[int(geometry.view[token]), top:bottom, left:right] = 1
        patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).mean((-1, -2))
        light = interpolate(patches[:, None], size=(pooled, pooled), mode="bilinear").flatten()
        assert int(light.argmax()) == token


def test_refusals() -> None:
    inputs = prompts(ROWS["llava_onevision"], model(), "several")
    pixels = inputs["pixel_values"]
    alone = prompts(ROWS["llava_onevision"], model(), "one")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**inputs, "image_sizes": None}, "needs image_sizes"),
        ({**inputs, "image_sizes": inputs["image_sizes"][:1]}, "speak of 2 images, and image_sizes of 1"),
        ({**inputs, "pixel_values": pixels[0, 0]}, "images, views, channels, height, width"),
        ({**inputs, "pixel_values": list(pixels)}, "got list"),
        ({**inputs, "batch_num_images": torch.tensor([1])}, "speak of 1 images, and image_sizes of 2"),
        ({**inputs, "batch_num_images": None}, "make up to 5 views of an image, and pixel_values hold 1"),
        ({**inputs, "batch_num_images": torch.tensor([1, 1])}, "from one processor"),
        ({**alone, "vision_aspect_ratio": "anyres_max_9"}, "set it in the model's and the processor's config"),
        ({**alone, "vision_feature_select_strategy": "default"}, "SigLIP tower has none"),
    ]
    with foveate.AdaFV(keep=0.3)(model()):
        for changed, message in wrong:
            with pytest.raises(ValueError, match=message):
                model().generate(**changed, **GREEDY)


def test_only_siglip() -> None:
    config = LlavaOnevisionConfig(vision_config=clip(), text_config=text_config(1), image_token_index=IMAGE)
    with pytest.raises(ValueError, match="'clip_vision_model' is not supported.*known: siglip_vision_model"):
        foveate.attach(LlavaOnevisionForConditionalGeneration(config), foveate.AdaFV())


def test_videos_of_a_wrong_shape() -> None:
    ids = torch.tensor([[BOS, 5, *[VIDEO] * 28, 6]])
    frames = video_pixels([[0]])["pixel_values_videos"]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with foveate.AdaFV(keep=0.3)(model()):
        for pixels, message in ((frames[0], "videos, frames, channels"), (list(frames), "got list")):
            with pytest.raises(ValueError, match=message):
                model().generate(**inputs, pixel_values_videos=pixels, **GREEDY)


@pytest.mark.skipif(VIDEOS, reason="only where stock puts the newline after a video by itself")
def test_old_videos_are_refused() -> None:
    inputs = {"input_ids": torch.tensor([[BOS, 5, *[VIDEO] * 28, 6]]), **FILM.pixels([[0]])}
    with foveate.AdaFV(keep=0.3)(model()), pytest.raises(ValueError, match="videos cannot be pruned: update it"):
        model().generate(**inputs, **GREEDY)


@needs_videos
def test_a_picture_beside_a_video() -> None:
    """Each has its own budget, in prompt order; keep=1 is the stock model."""
    pictures = prompts(ROWS["llava_onevision"], model(), "one")
    videos = video_pixels([[0]])
    stream = len(encode(model(), videos, "video")[0].stream)
    count = int((pictures["input_ids"] == IMAGE).sum())
    ids = torch.tensor([[BOS, 5, *[VIDEO] * stream, 6, *[IMAGE] * count, 7, 8]])
    inputs = {**pictures, **videos, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with foveate.AdaFV(keep=1.0)(model()):
        whole = model().generate(**inputs, **GREEDY)
    assert torch.equal(whole, model().generate(**inputs, **GREEDY))
    pruner = foveate.AdaFV(keep=4)
    with pruner(model()):
        model().generate(**inputs, **GREEDY)
    assert [one.total for one in pruner.selections] == [stream - 1, len(encode(model(), pictures)[0].tokens)]
    assert [len(one) for one in pruner.selections] == [4, 4]


class Processor(LlavaOnevisionProcessor):
    """Without a video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


def session_processor() -> Any:
    return Processor(
        images(),
        tokenizer(),
        num_image_tokens=PER_SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{LIMIT}",
    )


@pytest.mark.parametrize("count", [1, 2])
def test_session(count: int) -> None:
    """``look`` and ``ask`` give what a call with the processor's own inputs gives."""
    processor = session_processor()
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES[:count]]
    session = foveate.look(model(), processor, pictures)
    assert len(session.images) == count
    pruner = foveate.AdaFV(keep=5)
    answers = session.ask_many(["what color is the cat", "how many"], pruner, max_new_tokens=4, suppress_tokens=SILENT)
    for answer in answers:
        inputs = processor(
            text=[session.prompt(answer.question)], images=[pictures], return_tensors="pt", add_special_tokens=True
        )
        with foveate.AdaFV(keep=5)(model()):
            alone = model().generate(**inputs, **GREEDY)
        assert torch.equal(answer.sequence[-4:], alone[0, -4:])
        assert answer.visual_tokens == 5 * count
