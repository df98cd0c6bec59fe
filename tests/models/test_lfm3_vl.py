"""What LFM3-VL's processor writes, read by the adapter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import is_torchvision_available

import foveate
from foveate.models import family_for
from tests.chat import TALKS, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.tiny import END, IMAGE, ROWS, SILENT, START, VIDEO
from tests.tiny.lfm3 import VISION

if "lfm3_vl" not in CONFIG_MAPPING_NAMES:
    pytest.skip("this transformers has no LFM3-VL", allow_module_level=True)
MARKS = {
    "<|startoftext|>": -1,
    "<|im_start|>": -1,
    "<|im_end|>": -1,
    "<image>": IMAGE,
    "<video>": VIDEO,
    "<|vision_start|>": START,
    "<|vision_end|>": END,
}
NAMED = {
    "image_token": "<image>",
    "video_token": "<video>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
TEMPLATE = (
    "<|startoftext|>{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "<|vision_start|><{{ part['type'] }}><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = {"shortest_edge": 2 * 64 * 64, "longest_edge": 2 * 192 * 192}
pytestmark = pytest.mark.skipif(not is_torchvision_available(), reason="its processor wants a video processor")


@pytest.fixture
def processor() -> Any:
    images = transformers.Qwen2VLImageProcessor(size=SIZE, patch_size=16)
    videos = transformers.Qwen3VLVideoProcessor(size=SIZE, patch_size=16)
    return transformers.Lfm3VlProcessor(images, tokenizer(MARKS, NAMED), videos, chat_template=TEMPLATE)


@pytest.mark.parametrize("talk", TALKS)
def test_the_question_guides(processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(90, 140), (200, 70)], strict=False)]
    inputs = written(processor, said, images=pictures)
    assert guiding(ROWS["lfm3_vl"].make("sdpa"), processor, inputs) == expected


@pytest.mark.parametrize("talk", TALKS)
def test_a_video_is_one_budget(processor: Any, talk: str) -> None:
    """From three frames on, the times in front of them do not guide."""
    model = ROWS["lfm3_vl"].make("sdpa")
    said, expected = TALKS[talk]
    videos = [moving(seed, 6, 60 + 40 * seed, 90) for seed in range(len(expected))]
    about = [{"fps": 1.0, "total_num_frames": 6, "duration": 6.0, "frames_indices": [*range(6)]}] * len(expected)
    inputs = written(processor, of_kind(said, "video"), videos=videos, video_metadata=about, do_sample_frames=False)
    inputs.pop("video_metadata", None)
    assert guiding(model, processor, inputs, "video") == expected
    pruner = foveate.AdaFV(keep=5)
    with pruner(model):
        model.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=SILENT)
    assert [len(one) for one in pruner.selections] == [5] * len(expected)
    assert all(len(one.geometry.grids) == 3 for one in pruner.selections)


def test_an_encoder_without_attention_is_refused() -> None:
    model = copy.deepcopy(ROWS["lfm3_vl"].make("sdpa"))
    model.config.vision_config.layer_types = ["conv"] * len(VISION["layer_types"])
    with pytest.raises(ValueError, match="has no full_attention"):
        family_for(model)
