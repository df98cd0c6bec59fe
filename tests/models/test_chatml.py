"""Families that talk ChatML: their own processors write the prompts, and the question alone guides the choice."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from transformers import ProcessorMixin, Qwen3VLProcessor
from transformers.utils import is_torchvision_available

from tests import chat
from tests.tiny import END, IMAGE, ROWS, START, VIDEO

pil = pytest.importorskip(
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", reason="image processors on PIL came with 5.10"
)
SPECIAL = {
    "<|im_start|>": 94, "<|im_end|>": 95, "<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": START,
    "<|vision_end|>": END,
}  # fmt: skip
NAMED = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>", "eos_token": "<|im_end|>",
}  # fmt: skip
AROUND = "<|vision_start|>{}<|vision_end|>"
TEMPLATE = chat.template(chat.CHATML, image=AROUND.format("<|image_pad|>"), video=AROUND.format("<|video_pad|>"))
NAMES = [name for name in ("qwen3_vl", "qwen3_5") if name in ROWS]


@cache
def processor(name: str) -> Any:
    """The family's own; without torchvision there is none for videos."""
    images = pil.Qwen2VLImageProcessorPil(size={"shortest_edge": 32**2, "longest_edge": 160**2}, patch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        videos = None
        if is_torchvision_available():
            from transformers import Qwen3VLVideoProcessor

            videos = Qwen3VLVideoProcessor(
                size={"shortest_edge": 4096, "longest_edge": 6 * 128 * 96}, do_sample_frames=False
            )
        else:
            patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        return Qwen3VLProcessor(images, chat.tokenizer(SPECIAL, **NAMED), videos, chat_template=TEMPLATE)


def inputs_for(name: str, turns: Any, **given: Any) -> Any:
    processing = processor(name)
    text = processing.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return processing(text=[text], return_tensors="pt", **given)


@pytest.mark.parametrize("conversation", list(chat.CONVERSATIONS))
@pytest.mark.parametrize("name", NAMES)
def test_the_question_guides(name: str, conversation: str) -> None:
    turns, questions = chat.CONVERSATIONS[conversation]
    pictures = [chat.picture(number) for number, _ in enumerate(questions)]
    inputs = inputs_for(name, turns, images=pictures)
    heard = chat.guided_by(ROWS[name].make("sdpa"), processor(name), inputs)
    assert heard == [chat.words(processor(name), question) for question in questions]


@pytest.mark.skipif(not is_torchvision_available(), reason="the video processor needs torchvision")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_film_is_one_budget_and_its_times_do_not_guide(name: str, first: bool) -> None:
    model = ROWS[name].make("sdpa")
    parts = (chat.FIRST, "<video>") if first else ("<video>", chat.FIRST)
    metadata = {"fps": 2.0, "total_num_frames": 6, "frames_indices": list(range(6))}
    inputs = inputs_for(name, [chat.said("user", *parts)], videos=[chat.film(1)], video_metadata=[metadata])
    frames, rows, columns = inputs["video_grid_thw"][0].tolist()
    assert frames == 3
    assert processor(name).tokenizer.decode(inputs["input_ids"][0]).count("seconds") == frames
    assert chat.guided_by(model, processor(name), inputs) == [chat.words(processor(name), chat.FIRST)]
    pruner = chat.Listening(keep=5)
    pruner.heard = []
    with pruner(model, processor=processor(name)):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    (selection,) = pruner.selections
    assert (len(selection), selection.total) == (5, frames * rows * columns // 4)
    assert selection.geometry.grids == ((rows // 2, columns // 2),) * frames
