"""Clips in the dynamic model's training: tokens, prompts and losses are the stock model's and processor's."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.bundled.processors import qwen3_vl
from foveate.evaluation.clips.composing import RATE
from foveate.evaluation.clips.files import Sample, make_sample, places
from foveate.videos import Video

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the training package is not installed

from training.dynamic.clips import Clip, make_clip  # noqa: E402
from training.dynamic.drawing import make_batch  # noqa: E402
from training.dynamic.export import CHAT_TEMPLATE, image_options, make_tokenizer, video_options  # noqa: E402
from training.dynamic.language import Shown, answer_loss, answerable, kept_of  # noqa: E402
from training.dynamic.model import build, see  # noqa: E402
from training.dynamic.presets import PRESETS  # noqa: E402
from training.dynamic.words import UNKNOWN, encode  # noqa: E402

PRESET = PRESETS["dynamic-smoke"]
SEED = 6


@pytest.fixture(scope="module")
def processor() -> Any:
    return qwen3_vl(image_options(), make_tokenizer(), CHAT_TEMPLATE, video_options())


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """Ours, and the stock class with the same weights, which embeds frames by its convolution over two of them."""
    ours = build(PRESET).eval()
    stock = type(ours)(ours.config).eval()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def seen_by_processor(processor: Any, sample: Sample, texts: list[str]) -> Any:
    times = tuple(number / 2 for number in range(2 * sample.play.seconds))
    frames = tuple(sample.frames[int(time * RATE)] for time in times)
    video = Video(frames, times, float(sample.play.seconds))
    return processor(
        text=texts, videos=[list(video.frames)], video_metadata=[video.metadata], do_sample_frames=False,
        return_tensors="pt",
    )  # fmt: skip


def test_tokens_of_a_clip_are_those_of_the_stock_encoder(processor: Any, models: tuple[Any, Any]) -> None:
    ours, stock = models
    clip = make_clip(SEED, 1, clutter=True, scale=1.0)
    mark = "<|vision_start|><|video_pad|><|vision_end|>"
    inputs = seen_by_processor(processor, make_sample("train", SEED, 1, clutter=True), [mark])
    assert inputs["video_grid_thw"].tolist() == [[len(clip.stamps), 2 * clip.grid.rows, 2 * clip.grid.columns]]
    with torch.no_grad():
        tokens, deep = see(ours, [clip], torch.device("cpu"))
        wanted = stock.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    torch.testing.assert_close(tokens, wanted.pooler_output, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(deep, wanted.deepstack_features[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kept", [None, 20])
def test_the_loss_of_a_clip_is_that_of_the_stock_model(
    processor: Any, models: tuple[Any, Any], kept: int | None
) -> None:
    """Times, places and words are those of the processor's prompt; dropped tokens are cut out of it, all else stays."""
    ours, stock = models
    sample = make_sample("train", SEED, 2, clutter=False)
    clip = replace(make_clip(SEED, 2, clutter=False, scale=1.0), questions=[])
    with torch.no_grad():
        planes = see(ours, [clip], torch.device("cpu"))
    off = torch.autocast("cpu", enabled=False)
    for question in make_clip(SEED, 2, clutter=False, scale=1.0).questions[:3]:
        # Every question is asked, whatever is left: what must be seen of it is not what is compared here.
        asked = replace(clip, questions=[replace(question, regions=())])
        left = kept_of(clip, kept, np.random.default_rng(0))
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        inputs = seen_by_processor(processor, sample, [prompt + question.answer + "<|im_end|>"])
        ids = inputs["input_ids"][0]
        visual = ids == processor.video_token_id
        assert int(visual.sum()) == clip.cells
        stays = ~visual
        stays[visual.nonzero()[:, 0][left]] = True
        with torch.no_grad():
            loss, _ = answer_loss(ours, [Shown(asked, *planes)], kept, np.random.default_rng(0), off)
            positions, _ = stock.model.get_rope_index(
                inputs["input_ids"], video_grid_thw=inputs["video_grid_thw"],
                mm_token_type_ids=inputs["mm_token_type_ids"], attention_mask=inputs["attention_mask"],
            )  # fmt: skip
            embeds = stock.get_input_embeddings()(ids)
            embeds[visual] = planes[0]
            states = stock.model.language_model(
                inputs_embeds=embeds[None, stays], position_ids=positions[:, :, stays],
                visual_pos_masks=visual[None, stays], deepstack_visual_embeds=[planes[1][left]], use_cache=False,
            ).last_hidden_state  # fmt: skip
            logits = stock.lm_head(states)[0].log_softmax(-1)
        answer = ids[stays]
        count = len(encode(question.answer))
        each = -logits[-2 - count : -1].gather(1, answer[-1 - count :, None])[:, 0]
        wanted = (each[:-1].sum() + 0.2 * each[-1]) / count
        torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)


def test_no_word_about_clips_is_unknown() -> None:
    mix = replace(PRESET.mix.asked(), clips=1.0)
    kinds = set()
    for clip in make_batch(5, 0, 40, mix, 0.5):
        assert isinstance(clip, Clip) and not any(UNKNOWN in stamp for stamp in clip.stamps)
        for question in clip.questions:
            assert UNKNOWN not in encode(question.text) + encode(question.answer), question
            kinds.add(question.kind)
    assert kinds == {"shown", "what", "when", "where", "color", "often"}


def test_what_a_question_needs_is_where_and_when_the_clip_says() -> None:
    """Every cell that is to show an answer lies in a box of the question, at a time of it."""
    asked = 0
    for index in range(12):
        clip = make_clip(SEED, index, clutter=index % 2 == 1, scale=1.0)
        sample = make_sample("train", SEED, index, clutter=index % 2 == 1)
        width, height = sample.frames[0].size
        for question, drawn in zip(clip.questions, sample.questions, strict=True):
            boxes = [place for actor, spell in drawn.seen for place in places(sample.play, actor, spell, sample.zoom)]
            allowed = np.zeros((len(clip.stamps), clip.grid.rows, clip.grid.columns), bool)
            for (x0, y0, x1, y1), (start, end) in boxes:
                for moment in range(len(clip.stamps)):
                    if any(start <= time < end for time in (moment, moment + 0.5)):
                        columns = slice(int(x0 / width * clip.grid.columns), int(x1 / width * clip.grid.columns) + 1)
                        rows = slice(int(y0 / height * clip.grid.rows), int(y1 / height * clip.grid.rows) + 1)
                        allowed[moment, rows, columns] = True
            for region in question.regions:
                shown = clip.shows[region].reshape(allowed.shape)
                assert shown.any() or question.kind == "often", question
                assert not (shown & ~allowed).any(), question
                asked += 1
    assert asked > 30


def test_a_question_is_not_asked_where_nothing_of_its_answer_is_left() -> None:
    clip = make_clip(SEED, 1, clutter=True, scale=1.0)
    needed = [number for number, one in enumerate(clip.questions) if one.regions]
    nothing = np.flatnonzero(~clip.shows.any(0))
    asked = answerable(clip, nothing, everything=False)
    assert needed and not any(asked[number] for number in needed)
    assert all(answerable(clip, np.arange(clip.cells), everything=False))


def test_a_frame_is_a_picture_where_nothing_moves(models: tuple[Any, Any]) -> None:
    """The encoder makes of a moment whose two frames are one what it makes of that picture."""
    ours, _ = models
    picture = make_batch(7, 0, 1, PRESET.mix.asked(), 0.5)[0]
    still = Image.fromarray(picture.frames[0])
    clip = Clip(
        np.asarray(still, np.float16)[None], picture.grid, ((),), picture.owner, picture.shows, picture.questions
    )
    with torch.no_grad():
        one, other = (see(ours, [shown], torch.device("cpu"))[0] for shown in (picture, clip))
    assert torch.equal(one, other)
