"""What GLM's processors write, read by the adapter: pictures and videos, and the words that guide."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

from foveate.models import family_for
from tests.chat import TALKS, check_one_budget, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import END, IMAGE, ROWS, SILENT, START
from tests.tiny.glm import CUT, FILM

FOLDERS = {
    "glm4v": ("glm4v", "Glm4v"),
    "glm46v": ("glm46v", "Glm46V"),
    "glm_ocr": ("glm46v", "Glm46V"),
    "glm5_next": ("glm5_next", "Glm5Next"),
}
"""By row: where its processor is, and what its name begins with."""
MARKS = {
    **dict.fromkeys(("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"), -1),
    "<|image|>": IMAGE,
    "<|video|>": 98,
    "<|begin_of_image|>": START,
    "<|end_of_image|>": END,
    "<|begin_of_video|>": FILM,
    "<|end_of_video|>": CUT,
}
TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|begin_of_{{ part['type'] }}|><|{{ part['type'] }}|>"
    "<|end_of_{{ part['type'] }}|>{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
    "{% endif %}"
)
SIZE = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 168 * 168}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [*SILENT, FILM, CUT]}


@pytest.fixture(params=[name for name in FOLDERS if name in ROWS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder, prefix = FOLDERS[name]
    images = getattr(
        pytest.importorskip(f"transformers.models.{folder}.image_processing_pil_{folder}"), f"{prefix}ImageProcessorPil"
    )(size=SIZE)
    module = pytest.importorskip(f"transformers.models.{folder}.processing_{folder}")
    videos = None
    if is_torchvision_available():
        made = pytest.importorskip(f"transformers.models.{folder}.video_processing_{folder}")
        videos = getattr(made, f"{prefix}VideoProcessor")(size=SIZE)
    else:  # only the check for one is left out
        monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    words = tokenizer(MARKS, {"image_token": "<|image|>", "video_token": "<|video|>"})
    return getattr(module, f"{prefix}Processor")(images, words, videos, chat_template=TEMPLATE)


@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides(name: str, processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(90, 140), (200, 70)], strict=False)]
    inputs = written(processor, said, images=pictures)
    assert guiding(ROWS[name].make("sdpa"), processor, inputs) == expected


needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="videos are processed by torchvision")


def films(processor: Any, said: Any, count: int, frames: int = 6) -> dict[str, Any]:
    videos = [moving(seed, frames, 60 + 40 * seed, 90) for seed in range(count)]
    about = [{"fps": 1.0, "total_num_frames": frames, "duration": float(frames), "frames_indices": [*range(frames)]}]
    return written(
        processor, of_kind(said, "video"), videos=videos, video_metadata=about * count, do_sample_frames=False
    )


@needs_torchvision
@pytest.mark.parametrize("frames", [2, 4, 8])
@pytest.mark.parametrize("talk", TALKS)
def test_times_of_frames_do_not_guide(name: str, processor: Any, talk: str, frames: int) -> None:
    """However few there are: what stands between a video's marks is no question."""
    said, expected = TALKS[talk]
    inputs = films(processor, said, len(expected), frames)
    assert inputs["video_grid_thw"][:, 0].tolist() == [frames // 2] * len(expected)
    assert guiding(ROWS[name].make("sdpa"), processor, inputs, "video") == expected


@needs_torchvision
@pytest.mark.parametrize("talk", ["question last", "turns"])
def test_a_video_is_one_budget(name: str, processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    inputs = films(processor, said, len(expected))
    assert len(inputs["video_grid_thw"]) == len(expected)
    check_one_budget(ROWS[name].make("sdpa"), inputs, 3, GREEDY)


SHAPES = [(196, 280), (150, 211), (30, 40), (100, 90), (20, 1300), (2000, 7000)]
"""Kept; kept, and padded; scaled up from fewer than 16 tokens, by much and by less than padding; long and thin; scaled
down."""


@pytest.mark.skipif("glm5_next" not in ROWS, reason="this transformers has no GLM-5.3-Flash")
@pytest.mark.parametrize("kind", ["image", pytest.param("video", marks=needs_torchvision)])
@pytest.mark.parametrize("size", SHAPES)
def test_padding_is_in_no_box(size: tuple[int, int], kind: str) -> None:
    """GLM-5.3-Flash's processors lay pictures into a canvas: white ones show how much of it they fill."""
    folder, prefix = FOLDERS["glm5_next"]
    fewer: Any = {"return_tensors": "pt", "max_image_tokens": 1000}  # than there may be: the encoder runs over all
    if kind == "image":
        module = pytest.importorskip(f"transformers.models.{folder}.image_processing_pil_{folder}")
        made = getattr(module, f"{prefix}ImageProcessorPil")()(Image.new("RGB", size[::-1], "white"), **fewer)
    else:
        module = importlib.import_module(f"transformers.models.{folder}.video_processing_{folder}")
        white = torch.full((4, 3, *size), 255, dtype=torch.uint8)
        made = getattr(module, f"{prefix}VideoProcessor")()(white, do_sample_frames=False, **fewer)
    pixels = made["pixel_values" if kind == "image" else "pixel_values_videos"]
    times, rows, columns = made[f"{kind}_grid_thw"][0].tolist()
    first = pixels.view(times, rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[0, ..., 0, 0, :, :]
    canvas = first.permute(0, 2, 4, 1, 3, 5).reshape(rows * 14, columns * 14) > 0
    seen = torch.stack([canvas.any(dim=0).sum(), canvas.any(dim=1).sum()])  # of the picture: width, height
    (image,) = encode(ROWS["glm5_next"].make("sdpa"), made, kind, saliency=False)
    boxes = image.tokens.geometry.boxes_in(*size)
    cells = torch.cartesian_prod(torch.arange(rows // 2), torch.arange(columns // 2)).flip(1) * 28
    pixel = torch.tensor(size[::-1]) / seen  # of the canvas, in the picture's
    wanted = torch.cat([cells.minimum(seen), (cells + 28).minimum(seen)], dim=1) * pixel.repeat(2)
    assert float((boxes - wanted.repeat(times, 1)).abs().max()) <= max(1.0, float(pixel.max()))  # it holds whole pixels


def test_marks_are_pairs() -> None:
    """A start that nothing ends opens nothing, and what follows an end is text again."""
    family = family_for(ROWS["glm4v"].make("sdpa"))
    ids = torch.tensor([[5, FILM, IMAGE, 6, CUT, 7, FILM, 8, 9], [CUT, 5, FILM, 6, CUT, CUT, 7, FILM, 8]])
    expected = [[0, 1, 1, 1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 1, 0]]
    assert family.marks(ids).int().tolist() == expected
