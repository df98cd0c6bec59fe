"""Sessions about videos answer as separate calls do, with the families' own processors or with Pillow's."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

import foveate
from foveate.bundled.processors import qwen3_vl
from foveate.bundled.videos import PillowVideos
from foveate.inputs import process
from foveate.videos import Video
from foveate.watching import kept_by_moment, moments, watch
from tests import checkpoint
from tests.chat import tokenizer
from tests.models import test_films
from tests.models.test_chatml import MARKS, NAMED, SIZE, TEMPLATE
from tests.tiny import IMAGE, ROWS, SILENT, VIDEO
from tests.tiny.onevision import EDGE, PER_SIDE, VIDEOS

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}
OPTIONS = {
    "size": SIZE,
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
}
QUESTIONS = ["is there a cat ?", "what color is the card ?"]
needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="videos are processed by torchvision")


def video(frames: int = 5, size: tuple[int, int] = (90, 60)) -> Video:
    random = np.random.default_rng(frames)
    coarse = random.integers(0, 256, (frames, 7, 7, 3), dtype=np.uint8)
    pictures = tuple(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in coarse)
    return Video(pictures, tuple(0.5 * number for number in range(frames)), frames / 2)


def dynamic(most: int = SIZE["longest_edge"]) -> tuple[Any, Any]:
    """A tiny model of the shape of the dynamic one, and its processor, which needs no torchvision.

    Args:
        most: pixels of all of a video's frames.
    """
    pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    videos = {**OPTIONS, "size": {**SIZE, "longest_edge": most}}
    return ROWS["qwen3_vl"].make("sdpa"), qwen3_vl(OPTIONS, tokenizer(MARKS, NAMED), TEMPLATE, videos)


def inputs_of(model: Any, processor: Any, prompt: str, film: Video) -> dict[str, Any]:
    return process(
        processor, model, [prompt], (), videos=[list(film.frames)], video_metadata=[film.metadata],
        do_sample_frames=False,
    )  # fmt: skip


def check_as_alone(model: Any, processor: Any, film: Video, questions: list[str], views: int) -> None:
    """Several questions in a session are answered as each by a call with what the processor makes of it."""
    session = watch(model, processor, film)
    assert len(session.moments) == views and [one for some in session.moments for one in some] == [*range(len(film))]
    for keep in (1.0, 5):
        answers = session.ask_many(questions, foveate.AdaFV(keep=keep), **GREEDY)
        for question, answer in zip(questions, answers, strict=True):
            pruner = foveate.AdaFV(keep=keep)
            inputs = inputs_of(model, processor, session.prompt(question), film)
            with pruner(model, processor=processor):
                alone = model.generate(**inputs, **GREEDY)
            assert torch.equal(answer.sequence[-4:], alone[0, -4:])
            if keep == 1.0:
                assert torch.equal(model.generate(**inputs, **GREEDY), alone)
            (selection,) = answer.selections
            assert torch.equal(selection.indices, pruner.selections[0].indices)
            assert sum(kept_by_moment(selection)) == len(selection) == (selection.total if keep == 1.0 else 5)


def test_the_dynamic_models_processor_takes_videos() -> None:
    model, processor = dynamic()
    check_as_alone(model, processor, video(), QUESTIONS, views=3)


def test_times_in_the_prompt_are_those_of_the_frames() -> None:
    model, processor = dynamic()
    film = video(4)
    ids = inputs_of(model, processor, "<|vision_start|><|video_pad|><|vision_end|> is", film)["input_ids"][0]
    words = processor.tokenizer.convert_ids_to_tokens(ids[ids != VIDEO])
    told = [" ".join(words[place - 3 : place]) for place, word in enumerate(words) if word == "seconds"]
    assert told == ["0 . 2", "1 . 2"]  # the middles of 0 and 0.5, 1 and 1.5, to a tenth


SIZES = [(4, 168, 224), (5, 100, 300), (3, 40, 40), (2, 20, 300), (12, 360, 640)]


@needs_torchvision
@pytest.mark.parametrize("frames, height, width", SIZES)
def test_pillows_videos_are_the_stock_processors(frames: int, height: int, width: int) -> None:
    """The same grid; pixels differ by what the two resize otherwise: two levels of 255 at most, mostly none."""
    from transformers import Qwen3VLVideoProcessor

    films = np.random.default_rng(0).integers(0, 256, (2, frames, height, width, 3), dtype=np.uint8)
    stock = Qwen3VLVideoProcessor(**OPTIONS, cap_pixels_per_frame=False)
    theirs = stock(videos=list(films), do_sample_frames=False, return_tensors="pt")
    ours = PillowVideos(**OPTIONS)(list(films))
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    levels = (ours["pixel_values_videos"] - theirs["pixel_values_videos"]).abs() * 0.25 * 255
    assert levels.max() < 2.1 and levels.mean() < 0.02


def test_pillows_videos_refuse_what_they_do_not_do() -> None:
    whole = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="takes all frames it is given"):
        PillowVideos(**OPTIONS)([whole], do_sample_frames=True)
    with pytest.raises(ValueError, match=r"RGB frames of 8 bits, got \(64, 64, 3\) of float32"):
        PillowVideos(**OPTIONS)([whole.astype(np.float32)])
    first, turned = (
        PillowVideos(**OPTIONS)([one])["pixel_values_videos"] for one in (whole, whole.transpose(0, 3, 1, 2))
    )
    assert torch.equal(first, turned)


def real_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    if name in ("internvl", "smolvlm"):
        return test_films.processor(name, monkeypatch)
    if name == "llava_onevision":
        module = importlib.import_module("transformers.models.llava_onevision.image_processing_pil_llava_onevision")
        square = {"height": EDGE, "width": EDGE}
        words = tokenizer({"<image>": IMAGE, "<video>": VIDEO}, {})
        from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

        return LlavaOnevisionProcessor(
            module.LlavaOnevisionImageProcessorPil(size=square), words, LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=PER_SIDE**2, vision_feature_select_strategy="full",
        )  # fmt: skip
    prefix = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[name]
    pil = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    patch = 16 if name == "qwen3_vl" else 14
    folder = "qwen3_vl" if name == "qwen3_vl" else "qwen2_vl"
    kind = "Qwen3VLVideoProcessor" if name == "qwen3_vl" else "Qwen2VLVideoProcessor"
    films = getattr(importlib.import_module(f"transformers.models.{folder}.video_processing_{folder}"), kind)
    module = importlib.import_module(f"transformers.models.{name}.processing_{name}")
    return getattr(module, f"{prefix}Processor")(
        pil.Qwen2VLImageProcessorPil(size=SIZE, patch_size=patch), tokenizer(MARKS, NAMED),
        films(size=SIZE, patch_size=patch), chat_template=TEMPLATE,
    )  # fmt: skip


@needs_torchvision
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "llava_onevision", "internvl", "smolvlm"])
def test_the_families_own_processors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "llava_onevision" and not VIDEOS:
        pytest.skip("this transformers puts the newline after a video by itself")
    words = test_films.QUESTIONS if name in ("internvl", "smolvlm") else QUESTIONS
    model = ROWS[name].make("sdpa")
    views = 3 if name.startswith("qwen") else 5
    check_as_alone(model, real_processor(name, monkeypatch), video(), words, views)


@needs_torchvision
def test_too_few_frames_to_be_told_from_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = ROWS["internvl"].make("sdpa"), real_processor("internvl", monkeypatch)
    with pytest.raises(ValueError, match="only from three frames on, and this one has 2: sample more"):
        watch(model, processor, video(2))


@pytest.mark.parametrize("views, frames, lengths", [(3, 5, [2, 2, 1]), (4, 4, [1] * 4), (1, 3, [3]), (2, 8, [4, 4])])
def test_moments(views: int, frames: int, lengths: list[int]) -> None:
    assert [len(some) for some in moments([(2, 2)] * views, frames)] == lengths


def test_moments_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="4 moments of 6 frames"):
        moments([(2, 2)] * 4, 6)


def test_what_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = dynamic()
    with pytest.raises(TypeError, match="expected a foveate.videos.Video, got list: foveate.videos.load_video"):
        watch(model, processor, list(video().frames))
    with pytest.raises(TypeError, match="got a model"):
        watch(model, model, video())
    with pytest.raises(ValueError, match="LLaVA-NeXT takes no videos"):
        watch(checkpoint.model(), checkpoint.processor(), video())
    monkeypatch.setattr(processor, "chat_template", "{{ messages[0]['content'][1]['text'] }}")
    with pytest.raises(ValueError, match="has no place for a video"):
        watch(model, processor, video())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="must not contain"):
        watch(model, processor, video()).ask("what is <|video_pad|> ?")


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = dynamic()
    monkeypatch.setattr(processor, "video_processor", None)
    monkeypatch.setattr("foveate.watching.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        watch(model, processor, video())
