"""Families that talk ChatML: what their own processors write, read by the adapter, and the words that guide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import ProcessorMixin, Qwen3VLProcessor
from transformers.utils import is_torchvision_available

import foveate
from tests.chat import TALKS, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.tiny import END, IMAGE, ROWS, SILENT, START, VIDEO

MARKS = {
    **dict.fromkeys(("<|im_start|>", "<|im_end|>"), -1),
    "<|image_pad|>": IMAGE,
    "<|video_pad|>": VIDEO,
    "<|vision_start|>": START,
    "<|vision_end|>": END,
}
NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|{{ part['type'] }}_pad|>"
    "<|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
SIZE = {"shortest_edge": 64 * 64, "longest_edge": 6 * 128 * 128}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}


@pytest.fixture(params=[name for name in ("qwen3_vl", "qwen3_5") if name in ROWS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Qwen3-VL's, which Qwen3.5 has too."""
    pil = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    videos = None
    if is_torchvision_available():
        made = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")
        videos = made.Qwen3VLVideoProcessor(size=SIZE)
    else:  # only the check for one is left out
        monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    images = pil.Qwen2VLImageProcessorPil(size=SIZE, patch_size=16)
    return Qwen3VLProcessor(images, tokenizer(MARKS, NAMED), videos, chat_template=TEMPLATE)


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
@pytest.mark.parametrize("frames", [6, 12])
@pytest.mark.parametrize("talk", TALKS)
def test_times_of_frames_do_not_guide(name: str, processor: Any, talk: str, frames: int) -> None:
    said, expected = TALKS[talk]
    inputs = films(processor, said, len(expected), frames)
    assert inputs["video_grid_thw"][:, 0].tolist() == [frames // 2] * len(expected)
    read = processor.tokenizer.decode(inputs["input_ids"][0])
    assert read.count("seconds") == frames // 2 * len(expected)
    assert guiding(ROWS[name].make("sdpa"), processor, inputs, "video") == expected


@needs_torchvision
@pytest.mark.parametrize("talk", ["question last", "turns"])
def test_a_video_is_one_budget(name: str, processor: Any, talk: str) -> None:
    model = ROWS[name].make("sdpa")
    said, expected = TALKS[talk]
    inputs = films(processor, said, len(expected))
    inputs.pop("video_metadata", None)
    whole = foveate.AdaFV(keep=1.0)
    with whole(model):
        result = model.generate(**inputs, **GREEDY)
    assert torch.equal(result, model.generate(**inputs, **GREEDY))
    assert [one.total for one in whole.selections] == (inputs["video_grid_thw"].prod(dim=1) // 4).tolist()
    pruner = foveate.AdaFV(keep=5)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    assert [len(one) for one in pruner.selections] == [5] * len(expected)
    assert all(len(one.geometry.grids) == 3 for one in pruner.selections)
