"""Families that write a time before every frame: prompts by their own processors, and the words that guide."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

from tests.chat import TALKS, check_one_budget, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.tiny import END, IMAGE, ROWS, SILENT, START, VIDEO

NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
MARKS = {
    **dict.fromkeys(("<|im_start|>", "<|im_end|>"), -1),
    **dict(zip(NAMED.values(), (IMAGE, VIDEO, START, END), strict=True)),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %} <|vision_start|><|{{ part['type'] }}_pad|>"
    "<|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
COHERE_NAMED = {name: token.upper() for name, token in NAMED.items()}
COHERE_ROLES = {"system": "<|SYSTEM_TOKEN|>", "user": "<|USER_TOKEN|>", "assistant": "<|CHATBOT_TOKEN|>"}
COHERE_MARKS = {
    **dict.fromkeys(("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", *COHERE_ROLES.values()), -1),
    **dict(zip(COHERE_NAMED.values(), (IMAGE, VIDEO, START, END), strict=True)),
}
COHERE = (
    f"{{% set roles = {COHERE_ROLES} %}}{{% for message in messages %}}<|START_OF_TURN_TOKEN|>"
    "{{ roles[message['role']] }}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|VISION_START|><|{{ part['type'] | upper }}_PAD|><|VISION_END|>{% endif %}{% endfor %}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
SIZE = {"shortest_edge": 64 * 64, "longest_edge": 6 * 128 * 128}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}


# By row: the folder and the name of its processor, and where its image processor is.
FOLDERS = {
    "qwen3_vl": ("qwen3_vl", "Qwen3VL", "qwen2_vl", "Qwen2VL"),
    "qwen3_5": ("qwen3_vl", "Qwen3VL", "qwen2_vl", "Qwen2VL"),
    "cohere_compass": ("cohere_compass", "CohereCompass", "cohere_compass", "CohereCompass"),
    "cosmos3_edge": ("cosmos3_edge", "Cosmos3Edge", "cosmos3_edge", "Cosmos3Edge"),
}


@pytest.fixture(params=[name for name in FOLDERS if name in ROWS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder, prefix, images_folder, images_prefix = FOLDERS[name]
    pil = pytest.importorskip(f"transformers.models.{images_folder}.image_processing_pil_{images_folder}")
    images = getattr(pil, f"{images_prefix}ImageProcessorPil")(size=SIZE, patch_size=16)
    module = importlib.import_module(f"transformers.models.{folder}.processing_{folder}")
    videos = None
    if is_torchvision_available():
        made = pytest.importorskip(f"transformers.models.{folder}.video_processing_{folder}")
        videos = getattr(made, f"{prefix}VideoProcessor")(size=SIZE)
    else:  # only the check for one is left out
        monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    cohere = name == "cohere_compass"
    words = tokenizer(COHERE_MARKS if cohere else MARKS, COHERE_NAMED if cohere else NAMED)
    template = COHERE if cohere else TEMPLATE
    return getattr(module, f"{prefix}Processor")(images, words, videos, chat_template=template)


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
        processor,
        of_kind(said, "video"),
        videos=videos,
        video_metadata=about * count,
        do_sample_frames=False,
        return_metadata=True,
        return_mm_token_type_ids=True,
    )


@needs_torchvision
@pytest.mark.parametrize("frames", [6, 12])
@pytest.mark.parametrize("talk", TALKS)
def test_times_of_frames_do_not_guide(name: str, processor: Any, talk: str, frames: int) -> None:
    said, expected = TALKS[talk]
    inputs = films(processor, said, len(expected), frames)
    times = frames // processor.video_processor.temporal_patch_size
    assert inputs["video_grid_thw"][:, 0].tolist() == [times] * len(expected)
    assert processor.tokenizer.decode(inputs["input_ids"][0]).count("seconds") == times * len(expected)
    assert guiding(ROWS[name].make("sdpa"), processor, inputs, "video") == expected


@needs_torchvision
@pytest.mark.parametrize("talk", ["question last", "turns"])
def test_a_video_is_one_budget(name: str, processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    inputs = films(processor, said, len(expected))
    assert len(inputs["video_grid_thw"]) == len(expected)
    check_one_budget(ROWS[name].make("sdpa"), inputs, 6 // processor.video_processor.temporal_patch_size, GREEDY)
