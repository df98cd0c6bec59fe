"""Gemma 4 beyond the matrix: what its processor writes, the question that guides, detail, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

import foveate
from tests import reference
from tests.chat import TALKS, guiding, moving, of_kind, tokenizer, written
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import END, IMAGE, ROWS, SILENT, START, VIDEO, prompts
from tests.tiny.gemma4 import PATCH, SIDE
from tests.tiny.siglip import WINDOW

pytestmark = pytest.mark.skipif("gemma4" not in ROWS, reason="this transformers has no Gemma 4")
NAMES = ["gemma4", "gemma4-per-layer"]
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}
MARKS = {
    "<|turn>": -1, "<turn|>": -1, "<|image>": START, "<|image|>": IMAGE, "<image|>": END, "<|video|>": VIDEO,
    "<|audio>": 94, "<|audio|>": 93, "<audio|>": 95,
}  # fmt: skip
NAMED = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>",
}  # fmt: skip
TEMPLATE = (
    "<s>{% for message in messages %}<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "<|{{ part['type'] }}|>{% endif %}{% endfor %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n"
    "{% endif %}"
)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The family's own, but for audio; without torchvision there is none for videos."""
    images = pytest.importorskip("transformers.models.gemma4.image_processing_pil_gemma4").Gemma4ImageProcessorPil
    made = pytest.importorskip("transformers.models.gemma4.processing_gemma4").Gemma4Processor
    sizes = {"patch_size": PATCH, "pooling_kernel_size": SIDE, "max_soft_tokens": 70}
    words = tokenizer(MARKS, NAMED)
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # as the released one has it
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    videos = None
    if is_torchvision_available():
        kind = pytest.importorskip("transformers.models.gemma4.video_processing_gemma4").Gemma4VideoProcessor
        videos = kind(**sizes)
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    return made(None, images(**sizes), words, videos, chat_template=TEMPLATE)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", NAMES)
def test_the_question_guides(name: str, processor: Any, talk: str) -> None:
    said, expected = TALKS[talk]
    pictures = [picture(seed, *size) for seed, size in zip(range(len(expected)), [(90, 140), (200, 70)], strict=False)]
    inputs = written(processor, said, images=pictures)
    assert guiding(ROWS[name].make("sdpa"), processor, inputs) == expected


@pytest.mark.skipif("gemma4-video" not in ROWS, reason="this transformers wants videos of one length")
@pytest.mark.skipif(not is_torchvision_available(), reason="videos are processed by torchvision")
@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("talk", TALKS)
def test_a_video_is_one_budget_and_its_times_do_not_guide(processor: Any, talk: str, frames: int) -> None:
    model = ROWS["gemma4-video"].make("sdpa")
    said, expected = TALKS[talk]
    about = [{"fps": 1.0, "total_num_frames": frames, "duration": frames / 1.0, "frames_indices": [*range(frames)]}]
    films = [moving(seed, frames, 60 + 40 * seed, 90) for seed, _ in enumerate(expected)]
    inputs = written(
        processor, of_kind(said, "video"), videos=films, video_metadata=about * len(expected), do_sample_frames=False,
    )  # fmt: skip
    assert inputs["num_frames_per_video"].tolist() == [frames] * len(expected)
    assert guiding(model, processor, inputs, "video") == expected
    pruner = foveate.Saliency(keep=5)
    with pruner(model):
        model.generate(**inputs, **GREEDY)
    assert [len(one) for one in pruner.selections] == [5] * len(expected)
    assert sum(one.total for one in pruner.selections) == int((inputs["input_ids"] == VIDEO).sum())
    assert all(len(one.geometry.grids) == frames for one in pruner.selections)


@pytest.mark.parametrize("name", NAMES)
def test_encoded_in_detail_and_shown_as_little(name: str, processor: Any) -> None:
    """At 1120 tokens, 280 of them kept: the LLM reads what it would read at 280, made of four times the patches."""
    model = ROWS[name].make("sdpa")
    said, _ = TALKS["question last"]
    inputs = written(processor, said, images=[picture(1, 400, 300)], images_kwargs={"max_soft_tokens": 1120})
    count = int((inputs["input_ids"] == IMAGE).sum())
    assert 1000 < count <= 1120
    pruner = foveate.AdaFV(keep=280)
    with pruner(model, processor=processor):
        model.generate(**inputs, **GREEDY)
    (selection,) = pruner.selections
    assert (len(selection), selection.total) == (280, count)
    (image,) = encode(model, inputs)
    height, width = image.tokens.geometry.image_size
    assert (height // (PATCH * SIDE)) * (width // (PATCH * SIDE)) == count


def moved(places: torch.Tensor) -> torch.Tensor:
    return places.roll(1, dims=1)


def swapped(places: torch.Tensor) -> torch.Tensor:
    return places.flip(-1)


def odd(places: torch.Tensor) -> torch.Tensor:
    """A last row less: sides that the average cannot share out."""
    last = places[..., 1].amax(dim=1, keepdim=True)
    return places.masked_fill((places[..., 1] == last)[..., None], -1)


@pytest.mark.parametrize("change", [moved, swapped, odd])
def test_positions_that_its_processor_does_not_write(change: Any) -> None:
    model = ROWS["gemma4"].make("sdpa")
    inputs = prompts(ROWS["gemma4"], model, "one")
    inputs["image_position_ids"] = change(inputs["image_position_ids"])
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="row by row, sides that are a multiple of 3"):
        model.generate(**inputs, **GREEDY)


def test_what_is_missing_is_named() -> None:
    model = ROWS["gemma4"].make("sdpa")
    inputs = prompts(ROWS["gemma4"], model, "one")
    places = inputs.pop("image_position_ids")
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="needs image_position_ids"):
        model.generate(**inputs, **GREEDY)
    inputs |= {"image_position_ids": places, "pixel_values": inputs["pixel_values"][0]}
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match=r"one tensor \(views, patches, values\)"):
        model.generate(**inputs, **GREEDY)


@pytest.mark.skipif("gemma4-video" not in ROWS, reason="this transformers wants videos of one length")
@pytest.mark.parametrize("counts, message", [(None, "needs num_frames_per_video"), ([3, 9, 9], "does not add up")])
def test_videos_without_their_counts(counts: Any, message: str) -> None:
    row = ROWS["gemma4-video"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    inputs["num_frames_per_video"] = None if counts is None else torch.tensor(counts)
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match=message):
        model(**inputs)


def test_videos_are_refused_where_they_must_have_one_length() -> None:
    row = ROWS["gemma4"]
    model = copy.deepcopy(row.make("sdpa"))
    inputs = prompts(row, model, "one")
    inputs["pixel_values_videos"] = inputs["pixel_values"]
    model.model.get_video_features = lambda pixel_values_videos, video_position_ids=None: None  # as before 5.19
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="wants videos of one length"):
        model.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("name", [one for one in ("gemma4", "gemma4_unified") if one in ROWS])
def test_stock_masks_a_static_cache_otherwise_where_its_row_says_so(name: str) -> None:
    """What stock's LLM makes of a whole prompt, in three ways of asking, against each mask by hand; nothing is pruned.
    An image is longer than the window, so that its end shows too."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    streams = row.streams(model, inputs, row.kind)
    assert max(map(len, streams)) > WINDOW
    seen: list[torch.Tensor] = []
    hook = model.model.language_model.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
    try:
        with torch.no_grad():
            model(**inputs)
        model.generate(**inputs, max_new_tokens=1)
        model.generate(**inputs, max_new_tokens=1, cache_implementation="static", disable_compile=True)
    finally:
        hook.remove()
    forward, dynamic, static = seen
    prompt = reference.assemble(row, model, inputs, [torch.arange(len(stream)) for stream in streams])
    given = (model, prompt.embeddings, prompt.mask, prompt.positions, prompt)
    for found in (forward, dynamic):
        torch.testing.assert_close(found, row.hidden(*given), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(static, (row.static or row.hidden)(*given), atol=1e-4, rtol=1e-4)
    assert torch.allclose(static, dynamic, atol=1e-2) == (row.static is None)


@pytest.mark.skipif("gemma4_unified" not in ROWS, reason="this transformers has no Gemma 4 without an encoder")
@pytest.mark.parametrize("size", [(400, 300), (60, 200), (96, 96)])
def test_without_an_encoder_a_token_is_a_square_of_pixels(size: tuple[int, int]) -> None:
    """One coloured square in a black picture, through its own image processor: it goes into the token of that box.

    Of many colours: what is flat is black to this model, which takes every square's mean away first.
    """
    pytest.importorskip("torchvision", reason="its image processor has no form without torchvision")
    from transformers import Gemma4UnifiedImageProcessor

    model = ROWS["gemma4_unified"].make("sdpa")
    process = Gemma4UnifiedImageProcessor(patch_size=PATCH, pooling_kernel_size=SIDE, max_soft_tokens=70)

    def inputs(shown: Image.Image) -> dict[str, Any]:
        found = process(shown, return_tensors="pt")
        return {name: found[name] for name in ("pixel_values", "image_position_ids")}

    black = Image.new("RGB", size)
    (image,) = encode(model, inputs(black), saliency=False)
    boxes = image.tokens.geometry.boxes_in(size[1], size[0])
    assert 35 < len(boxes) <= 70
    for token in (0, len(boxes) // 2, len(boxes) - 1):
        left, top, right, bottom = boxes[token].round().int().tolist()
        drawn = black.copy()
        drawn.paste(picture(token, right - left, bottom - top), (left, top))
        given = inputs(drawn)
        bright = given["pixel_values"][0].mean(dim=1)
        assert int(bright.argmax()) == token
        (found,) = encode(model, given, saliency=False)
        changed = (found.stream - image.stream).norm(dim=1) > 0
        assert changed[token]
        assert not changed[bright[: len(boxes)] == 0].any()
