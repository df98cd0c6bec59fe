"""Videos whose frames stand in the prompt as images (InternVL, SmolVLM): one budget and one question for each."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from foveate.models import family_for
from foveate.models.films import counted, timed
from tests.encoding import encode
from tests.tiny import BOS, END, IMAGE, ROWS, SIDE, START, prompts
from tests.tiny.films import BREAK, COLON, FRAME, FRAMES, TOKENS, digits, frames_of, write_numbered, write_timed
from tests.tiny.siglip import FENCE, GLOBAL, write_grid
from tests.tiny.tiles import tiles_of
from tests.words import guided, tokenizer

NAMES = ["internvl-video", "smolvlm-video"]
QUESTIONS = ["Is there a cat?", "What color is the card?"]
INTRO = "You are provided the following series of three frames from a 0:00:12 [H:MM:SS] video."
real = pytest.mark.skipif(not is_torchvision_available(), reason="video processors need torchvision")


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_views_of_one_video(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    videos = encode(model, inputs)
    assert [(one.placeholders, len(one.tokens.geometry.grids)) for one in videos] == [
        (TOKENS * frames, frames) for frames in FRAMES
    ]
    for one in videos:
        geometry = one.tokens.geometry
        frames = [geometry.boxes[geometry.view == view] for view in range(len(geometry.grids))]
        assert geometry.view.tolist() == sorted(geometry.view.tolist())
        assert all(torch.equal(frame, frames[0]) for frame in frames)
        assert frames[0].tolist()[0] == [0, 0, SIDE / 2, SIDE / 2] and geometry.image_size == (SIDE, SIDE)


@pytest.mark.parametrize("name", NAMES)
def test_labels_guide_nothing(name: str) -> None:
    """Also where seconds become minutes, and numbers grow a digit."""
    row = ROWS[name]
    model = row.make("sdpa")
    ids = [BOS, 5, 6, *row.write(0, 3 * TOKENS), 20, *row.write(1, 4 * TOKENS), 40, 41]
    marks = family_for(model).marks(torch.tensor([ids]))[0].tolist()
    left = [token for token, mark in zip(ids, marks, strict=True) if not mark]
    assert left == [BOS, 5, 6, 20, 40, 41]


def internvl(*labels: list[int]) -> list[int]:
    return [token for label in labels for token in (*label, START, *[IMAGE] * TOKENS, END)]


def first(number: int) -> list[int]:
    return [FRAME, *digits(number), COLON]


def later(number: int) -> list[int]:
    return [BREAK, *first(number)]


ALONE = {
    "two frames": internvl(first(1), later(2)),
    "no labels": internvl([], [], []),
    "line breaks": internvl([], [BREAK], [BREAK]),
    "another word before each": internvl([31, 32, COLON], [BREAK, 31, 36, COLON], [BREAK, 31, 34, COLON]),
    "numbers in two words": internvl(*([BREAK, FRAME, 31, *digits(number), COLON] for number in (1, 2, 3))),
    "not in order": internvl(first(1), later(3), later(2)),
}


@pytest.mark.parametrize("case", ALONE)
def test_internvl_images_stay_images(case: str) -> None:
    """What a prompt with several images may look like: a budget each."""
    ids = torch.tensor([[BOS, 5, *ALONE[case], 40, 41]])
    images = int((ids == IMAGE).sum()) // TOKENS
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": frames_of(1)[:images]}
    assert [one.placeholders for one in encode(ROWS["internvl"].make("sdpa"), inputs)] == [TOKENS] * images


def test_internvl_images_and_videos_in_one_prompt() -> None:
    """Pictures of one tile and of three before, between and behind; a second video right behind the first."""
    image, cut = internvl([]), [START, *[IMAGE] * 3 * TOKENS, END]
    ids = [BOS, 5, *image, BREAK, *write_numbered(0, 3 * TOKENS), BREAK, *write_numbered(1, 4 * TOKENS), BREAK, *cut]
    ids = torch.tensor([[*ids, BREAK, *write_numbered(2, 3 * TOKENS), *image, 40, 41]])
    films = [frames_of(number) for number in range(3)]
    pixels = torch.cat([films[1][:1], films[0], films[1], tiles_of(0, False), films[2], films[1][:1]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    found = encode(ROWS["internvl"].make("sdpa"), inputs)
    assert [one.placeholders for one in found] == [TOKENS * count for count in (1, 3, 4, 3, 3, 1)]
    assert found[3].tokens.geometry.image_size == (SIDE, 2 * SIDE)  # the picture in crops
    alone = encode(
        ROWS["internvl-video"].make("sdpa"),
        {**inputs, "input_ids": torch.tensor([write_numbered(1, 4 * TOKENS)]), "pixel_values": films[1],
         "attention_mask": torch.ones(1, len(write_numbered(1, 4 * TOKENS)))},
    )[0]  # fmt: skip
    torch.testing.assert_close(found[2].tokens.features, alone.tokens.features)
    torch.testing.assert_close(found[2].tokens.saliency, alone.tokens.saliency)


def test_smolvlm_images_and_videos_in_one_prompt() -> None:
    ids = [BOS, 5, *write_grid((0, 0), TOKENS), 31, *write_timed(1, 4 * TOKENS), BREAK, 32, *write_grid((1, 2), TOKENS)]
    ids = torch.tensor([[*ids, 33, *write_timed(0, 3 * TOKENS), BREAK, BREAK, 40, 41]])
    pixels = torch.cat([frames_of(2)[:1], frames_of(1), frames_of(2), frames_of(0)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    found = encode(ROWS["smolvlm"].make("sdpa"), inputs)
    assert [one.placeholders for one in found] == [TOKENS * count for count in (1, 4, 3, 3)]
    assert [one.tokens.geometry.image_size for one in found] == [(SIDE, SIDE)] * 2 + [(SIDE, 2 * SIDE), (SIDE, SIDE)]


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_pictures_in_a_row_are_no_video(name: str) -> None:
    """Uncut, one after the other, or with the same words between: a budget each."""
    for between in ([], [BREAK], [BREAK, 31, 32, 33, COLON]):
        ids = torch.tensor([[BOS, *[*between, *write_grid((0, 0), TOKENS)] * 3, 40, 41]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": frames_of(0)[None]}
        assert [one.placeholders for one in encode(ROWS[name].make("sdpa"), inputs)] == [TOKENS] * 3


@pytest.mark.parametrize("name", NAMES)
def test_where_crops_are_chosen_every_frame_is_a_picture(name: str) -> None:
    """No frame is a crop of another: none may be left out for a question."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    family = family_for(model)
    assert family.views_of(inputs, inputs["input_ids"]) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    "texts, frames",
    [
        ([[1, 2, 11, 5], [7, 2, 12, 5], [7, 2, 13, 5]], 3),
        ([[2, 11, 5], [7, 2, 12, 5], [7, 2, 13, 5], [7, 2, 11, 5]], 3),
        ([[2, 11, 5], *([7, 2, *(10 + int(one) for one in str(number)), 5] for number in range(2, 121))], 120),
        ([[2, 11, 5], [7, 2, 12, 5], [7, 2, 14, 5]], 2),
        ([[2, 11, 5], [7, 3, 12, 5], [7, 3, 13, 5]], 0),
        ([[2, 11], [7, 2, 12], [7, 2, 13]], 0),
        ([[], [], []], 0),
    ],
)
def test_numbers(texts: list[list[int]], frames: int) -> None:
    assert counted(texts)[0] == frames


def time(minutes: int, seconds: int) -> list[int]:
    return [7, 2, *digits(minutes, 2), 5, *digits(seconds, 2), 5]


@pytest.mark.parametrize(
    "texts, frames",
    [
        ([time(0, 0), time(0, 1), time(0, 2)], 3),
        ([[1, 2, 3, *time(0, 59)], time(1, 0), time(1, 0)], 3),
        ([[1, *time(0, 59)[1:]], time(1, 0), time(12, 30), time(99, 59), time(100, 0)], 5),
        ([time(0, 0)] * 9, 9),
        ([time(0, 5), time(0, 4), time(0, 6)], 1),
        ([time(0, 0), time(0, 1), [8, *time(0, 2)]], 2),
        ([[7, 2, 31, 5, 5, 90, 33, 5]] * 3, 1),
        ([time(0, 0)[2:], time(0, 1)[2:], time(0, 2)[2:]], 0),
        ([[], [], []], 0),
    ],
)
def test_times(texts: list[list[int]], frames: int) -> None:
    assert timed(texts)[0] == frames


TEMPLATES = {
    "internvl": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "smolvlm": "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<{{ part['type'] }}>{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
}


def processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real one, its video processor among it."""
    texts = [*QUESTIONS, "Frame:", "\nFrame from", " from", "user", "assistant", "system", "User: Assistant: System:"]
    texts += [" Be brief.", " No.", " Is What", "\n\n"]
    if name == "internvl":
        marks = {"<img>": START, "</img>": END, "<IMG_CONTEXT>": IMAGE, "<video>": 92}
        marks |= {"<|im_start|>": 90, "<|im_end|>": 91}
        named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        words = tokenizer(marks, texts, **named, video_token="<video>")
        module = importlib.import_module("transformers.models.internvl.processing_internvl")
        film = importlib.import_module("transformers.models.internvl.video_processing_internvl")
        images = importlib.import_module("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
        square = {"height": SIDE, "width": SIDE}
        return module.InternVLProcessor(
            images.GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, max_patches=6), words,
            film.InternVLVideoProcessor(size=square), image_seq_length=TOKENS, chat_template=TEMPLATES[name],
        )  # fmt: skip
    marks = {"<fake_token_around_image>": FENCE, "<global-img>": GLOBAL, "<image>": IMAGE, "<video>": 92}
    marks |= {"<|im_start|>": 90, "<end_of_utterance>": 91}
    words = tokenizer(marks, [*texts, INTRO.replace("three", "")])
    module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
    film = importlib.import_module("transformers.models.smolvlm.video_processing_smolvlm")
    images = importlib.import_module("transformers.models.smolvlm.image_processing_pil_smolvlm")
    monkeypatch.setattr(module, "num2words", lambda number: "three")
    edges = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return module.SmolVLMProcessor(
        images.SmolVLMImageProcessorPil(**edges), words, film.SmolVLMVideoProcessor(**edges), image_seq_len=TOKENS,
        chat_template=TEMPLATES[name],
    )  # fmt: skip


def film(seed: int, frames: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 60, 80, 3), dtype=np.uint8)


def asked(words: Any, talk: list[tuple[str, list[Any]]], videos: list[Any], **more: Any) -> dict[str, Any]:
    messages = [
        {
            "role": role,
            "content": [{"type": "text", "text": part} if part != VIDEO else {"type": VIDEO} for part in parts],
        }
        for role, parts in talk
    ]
    text = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = words(text=[text], videos=videos or None, return_tensors="pt", **more)
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}


VIDEO = "video"
FIRST, SECOND = QUESTIONS
TALKS: dict[str, tuple[list[tuple[str, list[Any]]], list[str]]] = {
    "question last": ([("user", [VIDEO, FIRST])], [FIRST]),
    "question first": ([("user", [FIRST, VIDEO])], [FIRST]),
    "system prompt": ([("system", [" Be brief."]), ("user", [VIDEO, FIRST])], [FIRST]),
    "several turns": (
        [("user", [VIDEO, FIRST]), ("assistant", [" No."]), ("user", [VIDEO, SECOND])], [FIRST, SECOND],
    ),
    "two in a turn": ([("user", [VIDEO, VIDEO, SECOND])], [SECOND, SECOND]),
}  # fmt: skip


@real
@pytest.mark.parametrize("frames", [3, 12])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_what_the_real_processors_write(name: str, talk: str, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One budget per video, and the question guides: no label, nobody else's words. SmolVLM's processor also says what
    is coming; that stands in the user's turn and is taken for the user's words."""
    words = processor(name, monkeypatch)
    messages, expected = TALKS[talk]
    videos = [film(seed, frames) for seed in range(len(expected))]
    more = {}
    if name == "smolvlm":
        metadata = importlib.import_module("transformers.video_utils").VideoMetadata
        seconds = [58 + 2 * number for number in range(frames)]  # from one minute into the next
        more = {
            "video_metadata": [
                metadata(total_num_frames=200, fps=1.0, duration=200.0, frames_indices=seconds) for _ in videos
            ],
        }
    inputs = asked(words, messages, videos, **more)
    found = guided(ROWS[name].make("sdpa"), words, inputs, keep=5)
    assert [(total, kept) for _, total, kept in found] == [(frames * TOKENS, 5)] * len(expected)
    for (text, _, _), question in zip(found, expected, strict=True):
        assert "Frame" not in text
        if name == "internvl":
            assert text == question
        else:
            assert question in text


@real
@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_questions_of_several_turns_are_no_labels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures of as many tokens, each asked about in almost the same words, in a turn of its own."""
    words = processor(name, monkeypatch)
    asked_of = ["What color is the card?", "What color is the cat?", "What color is there?"]
    parts = [[{"type": "image"}, {"type": "text", "text": question}] for question in asked_of]
    talk = [
        message for part in parts for message in (("user", part), ("assistant", [{"type": "text", "text": " No."}]))
    ]
    text = words.apply_chat_template(
        [{"role": role, "content": part} for role, part in talk[:-1]], add_generation_prompt=True, tokenize=False
    )
    pictures = [Image.fromarray(film(seed, 1)[0]).resize((SIDE, SIDE)) for seed in range(len(asked_of))]
    made = words(text=[text], images=[pictures] if name == "smolvlm" else pictures, return_tensors="pt")
    inputs = {one: made[one] for one in ("input_ids", "attention_mask", "pixel_values")}
    model = ROWS[name].make("sdpa")
    monkeypatch.setattr(model.generation_config, "eos_token_id", 91)
    assert [question for question, _, _ in guided(model, words, inputs)] == asked_of


def test_words_between_pictures_guide() -> None:
    """Of a template that breaks the line behind every picture; and in a family without videos, the same words too."""
    tile = [START, *[IMAGE] * TOKENS, END]
    named = [BOS, *tile, BREAK, 31, 32, *tile, BREAK, 33, *tile, BREAK, 40, 41]
    marks = family_for(ROWS["internvl"].make("sdpa")).marks(torch.tensor([named]))[0].tolist()
    left = [BOS, BREAK, 31, 32, BREAK, 33, BREAK, 40, 41]
    assert [token for token, mark in zip(named, marks, strict=True) if not mark] == left
    if "qianfan_ocr" in ROWS:
        alike = [BOS, *[*tile, BREAK, 31, 32, 33, COLON] * 3]
        marks = family_for(ROWS["qianfan_ocr"].make("sdpa")).marks(torch.tensor([alike]))[0].tolist()
        left = [BOS, *[BREAK, 31, 32, 33, COLON] * 3]
        assert [token for token, mark in zip(alike, marks, strict=True) if not mark] == left


def test_labels_by_unknown_digits_guide_nothing() -> None:
    """Numbers whose ids do not follow each other tell of no video, and are no words of the question's all the same."""
    ids = internvl(*([BREAK, FRAME, number, COLON] for number in (31, 36, 33)))
    marks = family_for(ROWS["internvl"].make("sdpa")).marks(torch.tensor([[BOS, 5, *ids, 40]]))[0].tolist()
    assert [token for token, mark in zip([BOS, 5, *ids, 40], marks, strict=True) if not mark] == [BOS, 5, 40]
