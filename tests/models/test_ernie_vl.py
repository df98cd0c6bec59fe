"""What ERNIE-4.5-VL's and PaddleOCR-VL's processors write, read by the adapters; what ERNIE has beyond the matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

import foveate
from tests.chat import TALKS, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import END, IMAGE, ROWS, SILENT, START, VIDEO, prompts
from tests.tiny.ernie import CUT, FILM

if "ernie4_5_vl_moe" not in ROWS:
    pytest.skip("this transformers has no ERNIE-4.5-VL", allow_module_level=True)
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [*SILENT, FILM, CUT]}
MARKS = {
    "<|begin_of_sentence|>": -1,
    "<|end_of_sentence|>": -1,
    "<|image|>": IMAGE,
    "<|video|>": VIDEO,
    "<|image_start|>": START,
    "<|image_end|>": END,
    "<|video_start|>": FILM,
    "<|video_end|>": CUT,
}
NAMED = {
    f"{kind}_{part}token": f"<|{kind}{rest}|>"
    for kind in ("image", "video")
    for part, rest in (("", ""), ("start_", "_start"), ("end_", "_end"))
}
# The templates write "Picture 1:" in front of an image; nobody tells it from a question, so it is left out here.
TEMPLATE = (
    "<|begin_of_sentence|>{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'] }} : "
    "{% endif %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "<|{{ part['type'] }}_start|><|{{ part['type'] }}|><|{{ part['type'] }}_end|>{% endif %}{% endfor %}"
    "{{ '<|end_of_sentence|>' if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
SIZE = {"shortest_edge": 56 * 56, "longest_edge": 168 * 168}


@pytest.fixture
def ernie(monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = "transformers.models.ernie4_5_vl_moe"
    images = pytest.importorskip(f"{folder}.image_processing_pil_ernie4_5_vl_moe").Ernie4_5_VLMoeImageProcessorPil
    module = pytest.importorskip(f"{folder}.processing_ernie4_5_vl_moe")
    videos = None
    if is_torchvision_available():
        made = pytest.importorskip(f"{folder}.video_processing_ernie4_5_vl_moe").Ernie4_5_VLMoeVideoProcessor
        videos = made(size=SIZE, draw_on_frames=False)
    else:  # only the check for one is left out
        monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    words = tokenizer(MARKS, NAMED)
    return module.Ernie4_5_VLMoeProcessor(images(size=SIZE), words, videos, chat_template=TEMPLATE)


@pytest.fixture
def paddle() -> Any:
    folder = "transformers.models.paddleocr_vl"
    images = pytest.importorskip(f"{folder}.image_processing_pil_paddleocr_vl").PaddleOCRVLImageProcessorPil
    module = pytest.importorskip(f"{folder}.processing_paddleocr_vl")
    words = tokenizer(MARKS, NAMED)
    return module.PaddleOCRVLProcessor(images(size=SIZE), words, chat_template=TEMPLATE)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", ["ernie4_5_vl_moe", "paddleocr_vl"])
def test_the_question_guides(name: str, talk: str, request: pytest.FixtureRequest) -> None:
    processor = request.getfixturevalue("ernie" if name.startswith("ernie") else "paddle")
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(90, 140), (200, 70)], strict=False)]
    inputs = written(processor, said, images=pictures)
    assert guiding(ROWS[name].make("sdpa"), processor, inputs) == expected


@pytest.mark.skipif(not is_torchvision_available(), reason="videos are processed by torchvision")
@pytest.mark.parametrize("talk", TALKS)
def test_a_video_is_one_budget(ernie: Any, talk: str) -> None:
    model = ROWS["ernie4_5_vl_moe"].make("sdpa")
    said, expected = TALKS[talk]
    videos = [moving(seed, 4, 60 + 40 * seed, 90) for seed in range(len(expected))]
    inputs = written(ernie, of_kind(said, "video"), videos=videos, do_sample_frames=False)
    assert inputs["video_grid_thw"][:, 0].tolist() == [4] * len(expected)
    assert guiding(model, ernie, inputs, "video") == expected
    pruner = foveate.AdaFV(keep=5)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    assert [one.total for one in pruner.selections] == (inputs["video_grid_thw"].prod(dim=1) // 8).tolist()
    assert [len(one) for one in pruner.selections] == [5] * len(expected)
    assert all(len(one.geometry.grids) == 2 for one in pruner.selections)


def test_the_experts_types_are_shortened_with_the_prompt() -> None:
    """Sliced from the right instead, as stock does, they are another answer."""
    row = ROWS["ernie4_5_vl_moe"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    seen: list[torch.Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["moe_mm_token_type_ids"]), with_kwargs=True
    )
    pruner = foveate.Uniform(keep=3)
    with pruner(model):
        model.generate(**inputs, **{**GREEDY, "max_new_tokens": 1})
    hook.remove()
    dropped = inputs["input_ids"].shape[1] - seen[0].shape[1]
    assert dropped == pruner.selections[0].total - 3
    assert int(seen[0].bool().sum()) == 3 + 2  # and the two marks
    assert not torch.equal(seen[0], inputs["moe_mm_token_type_ids"][:, dropped:])


def test_two_frames_are_one() -> None:
    row = ROWS["ernie4_5_vl_moe-video"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    (film,) = encode(model, inputs, "video")
    frames, rows, columns = inputs["video_grid_thw"][0].tolist()
    assert film.tokens.geometry.grids == ((rows // 2, columns // 2),) * (frames // 2)
    assert film.tokens.geometry.view.tolist() == sorted([*range(frames // 2)] * (rows * columns // 4))
