"""Families that share an encoder and its adapter with another: what their own processors write, and what guides."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import VideoLlavaImageProcessor
from transformers.utils import is_torchvision_available

import foveate
from tests.models.test_films import FIRST, SECOND
from tests.tiny import END, IMAGE, PINPOINTS, ROWS, SIDE, START, VIDEO, prompts
from tests.tiny.tiles import TOKENS
from tests.words import guided, tokenizer

pytestmark = pytest.mark.skipif(not is_torchvision_available(), reason="video and Pixtral processors need torchvision")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}MARK{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}{% else %}"
    "{{ message['role'] | upper }}: {% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% else %}<{{ part['type'] }}>\n{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SQUARE = {"height": SIDE, "width": SIDE}


def made(name: str, processor: str, *parts: Any, **options: Any) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{name}.processing_{name}"), processor)(
        *parts, **options
    )


def images(name: str, kind: str, **options: Any) -> Any:
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    return getattr(module, f"{kind}ImageProcessorPil")(**options)


def processor(name: str) -> Any:
    """The real one, with a chat template as its checkpoint's."""
    texts = [FIRST, SECOND, " Be brief.", " No.", "user", "system", "assistant", "USER: ASSISTANT:", " Is What", "\n"]
    chat = {"<|im_start|>": 90, "<|im_end|>": 91}
    if name == "qianfan_ocr":
        marks = {"<img>": START, "</img>": END, "<IMG_CONTEXT>": IMAGE, **chat}
        named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        tiles = images("got_ocr2", "GotOcr2", size=SQUARE, crop_to_patches=True, max_patches=6)
        words = tokenizer(marks, texts, **named)
        template = CHATML.replace("MARK", "<image>\n")
        return made(name, "QianfanOCRProcessor", tiles, words, image_seq_length=TOKENS, chat_template=template)
    if name == "lighton_ocr":
        named = {"image_token": "<image>", "image_break_token": "<break>", "image_end_token": "<end>"}
        words = tokenizer({"<image>": IMAGE, "<break>": START, "<end>": END, **chat}, texts, **named)
        pixtral = images("pixtral", "Pixtral", size={"longest_edge": 112}, patch_size={"height": 28, "width": 28})
        return made(name, "LightOnOcrProcessor", pixtral, words, chat_template=CHATML.replace("MARK", "<image>"))
    words = tokenizer({"<image>": IMAGE, "<video>": VIDEO}, texts)
    edge = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
    more = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if name == "vipllava":
        return made("llava", "LlavaProcessor", images("clip", "CLIP", **edge), words, chat_template=VICUNA, **more)
    if name == "video_llava":
        film = importlib.import_module("transformers.models.video_llava.video_processing_video_llava")
        pair = VideoLlavaImageProcessor(**edge), film.VideoLlavaVideoProcessor(**edge)
        return made(name, "VideoLlavaProcessor", *pair, words, chat_template=VICUNA, **more)
    film = importlib.import_module("transformers.models.llava_next_video.video_processing_llava_next_video")
    still = images("llava_next", "LlavaNext", **edge, image_grid_pinpoints=PINPOINTS)
    return made(
        "llava_next_video", "LlavaNextVideoProcessor", film.LlavaNextVideoVideoProcessor(**edge), still, words,
        chat_template=VICUNA, **more,
    )  # fmt: skip


TALKS: dict[str, tuple[list[tuple[str, list[str]]], list[str]]] = {
    "question last": ([("user", ["PICTURE", FIRST])], [FIRST]),
    "question first": ([("user", [FIRST, "PICTURE"])], [FIRST]),
    "system prompt": ([("system", [" Be brief."]), ("user", ["PICTURE", FIRST])], [FIRST]),
    "several turns": (
        [("user", ["PICTURE", FIRST]), ("assistant", [" No."]), ("user", ["PICTURE", SECOND])], [FIRST, SECOND],
    ),
    "two in a turn": ([("user", ["PICTURE", "PICTURE", SECOND])], [SECOND, SECOND]),
}  # fmt: skip


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize(
    "name, kind", [("vipllava", "image"), ("lighton_ocr", "image"), ("qianfan_ocr", "image"),
                   ("llava_next_video", "image"), ("llava_next_video", "video"), ("video_llava", "image"),
                   ("video_llava", "video")],
)  # fmt: skip
def test_the_question_guides(name: str, kind: str, talk: str) -> None:
    """One budget for each picture or video, and the words of its own turn."""
    row = name if kind == "image" else {"video_llava": "video_llava-video"}.get(name, f"{name}-clip-video")
    if row not in ROWS:
        pytest.skip("not in this transformers")
    said, expected = TALKS[talk]
    messages = [
        {
            "role": role,
            "content": [{"type": kind} if one == "PICTURE" else {"type": "text", "text": one} for one in parts],
        }
        for role, parts in said
    ]
    words = processor(name)
    text = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    noise = np.random.default_rng(0).integers(0, 256, (len(expected), 3, 60, 80, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one[0]) for one in noise]
    given = {"videos": list(noise)} if kind == "video" else {"images": pictures}
    inputs = words(text=[text], **given, return_tensors="pt")
    names = {"input_ids", "attention_mask", "pixel_values", "pixel_values_images", "pixel_values_videos", "image_sizes"}
    found = guided(ROWS[row].make("sdpa"), words, {key: inputs[key] for key in names & inputs.keys()})
    assert [text for text, _, _ in found] == expected
    assert all(kept == 3 < total for _, total, kept in found)


def test_vipllava_reads_layers_that_its_config_names() -> None:
    model = ROWS["vipllava"].make("sdpa")
    inputs = prompts(ROWS["vipllava"], model, "one")
    for name in ("vision_feature_layer", "vision_feature_layers"):
        with foveate.AdaFV(keep=0.5)(model), pytest.raises((ValueError, TypeError), match=name):
            model.generate(**inputs, **{name: [-1, 1, 2]}, max_new_tokens=1)


def test_videos_of_another_shape() -> None:
    row = ROWS["llava_next_video-clip-video"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    wrong = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][0]}
    with foveate.Saliency(keep=0.5)(model), pytest.raises(ValueError, match="videos, frames, channels, height, width"):
        model.generate(**wrong, max_new_tokens=1)
    with foveate.Saliency(keep=0.5)(model), pytest.raises(ValueError, match="cannot arrange in a grid"):
        model.generate(**inputs, vision_feature_select_strategy="full", max_new_tokens=1)
