"""Video-LLaVA: both names of its pictures, pictures beside videos, CLS tokens, sessions."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor
from transformers.processing_utils import ProcessorMixin

import foveate
from foveate.models import family_for
from foveate.models.encoded import STAYS
from tests.dynamic import picture
from tests.encoding import encode
from tests.tiny import BOS, IMAGE, ROWS, SIDE, SILENT, VIDEO, prompts
from tests.tiny.llava import FRAMES
from tests.tiny.video_llava import PIXELS
from tests.tiny.words import tokenizer

OLD = "pixel_values_images"
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}
PATCHES = 16


def make() -> Any:
    return ROWS["video_llava"].make("sdpa")


def both() -> dict[str, Tensor]:
    """A picture and two videos, in one prompt."""
    film = PATCHES + 1
    ids = [BOS, 5, *[VIDEO] * film * FRAMES, 6, *[IMAGE] * PATCHES, 7, *[VIDEO] * film * FRAMES, 40, 41]
    prompt = torch.tensor([ids])
    return {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        **ROWS["video_llava"].pixels([[0]]),
        **ROWS["video_llava-video"].pixels([[1, 2]]),
    }


def test_the_older_name_of_pictures() -> None:
    """In newer versions a call may use it; a pruned one may too, as may a forward."""
    model = make()
    inputs = prompts(ROWS["video_llava"], model, "mixed")
    old = {OLD if name == PIXELS else name: value for name, value in inputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = model.generate(**old, **GREEDY)
        for keep in (1.0, 0.4):
            pruner = foveate.AdaFV(keep=keep)
            with pruner(model), torch.no_grad():
                answer, logits = model.generate(**old, **GREEDY), model(**old).logits
                assert len(pruner.selections) == 3
                assert torch.equal(answer, model.generate(**inputs, **GREEDY))
                assert torch.equal(logits, model(**inputs).logits)
            assert torch.equal(answer, stock) == (keep == 1.0)
            assert torch.equal(foveate.generate(model, pruner, **old, **GREEDY).output, answer)


def test_the_inner_models_forward_is_guarded_under_both_names() -> None:
    model = make()
    inputs = prompts(ROWS["video_llava"], model, "one")
    pixels = inputs.pop(PIXELS)
    with foveate.AdaFV(keep=0.4)(model):
        for name in {PIXELS, OLD}:
            with pytest.raises(ValueError, match="forward was called directly"):
                model.model(**inputs, **{name: pixels})


def test_pixels_that_are_missing_are_named() -> None:
    model = make()
    inputs = prompts(ROWS["video_llava"], model, "one")
    del inputs[PIXELS]
    with foveate.AdaFV(keep=0.4)(model), pytest.raises(ValueError, match=f"no {PIXELS} came with it"):
        model.generate(**inputs, **GREEDY)


def test_pictures_beside_videos() -> None:
    """A budget for each; CLS of every frame stays."""
    model, inputs = make(), both()
    pruner = foveate.AdaFV(keep=1.0)
    with pruner(model):
        whole = model.generate(**inputs, **GREEDY)
    assert torch.equal(whole, model.generate(**inputs, **GREEDY))
    assert sorted(one.total for one in pruner.selections) == [PATCHES, FRAMES * PATCHES, FRAMES * PATCHES]
    found = foveate.generate(model, foveate.AdaFV(keep=5), **inputs, **GREEDY)
    assert [len(one) for one in found.selections] == [5, 5, 5]
    assert found.visual_tokens == [3 * 5 + 2 * FRAMES]


def test_frames_are_views_with_a_cls_each() -> None:
    model = make()
    first, second = encode(model, prompts(ROWS["video_llava-video"], model, "several"), "video")
    for video in (first, second):
        assert video.kind == "video"
        assert (video.slots == STAYS).nonzero()[:, 0].tolist() == [0, PATCHES + 1, 2 * (PATCHES + 1)]
        geometry = video.tokens.geometry
        assert geometry.grids == ((4, 4),) * FRAMES
        assert geometry.view.tolist() == [frame for frame in range(FRAMES) for _ in range(PATCHES)]
        assert geometry.boxes[-1].tolist() == [SIDE - 14, SIDE - 14, SIDE, SIDE]


def test_the_towers_are_two() -> None:
    """What one's keys say of a picture, the other's do not."""
    model = make()
    (image,) = encode(model, {PIXELS: ROWS["video_llava-video"].pixels([[1]])["pixel_values_videos"][0, :1]}, keys=True)
    (video,) = encode(model, ROWS["video_llava-video"].pixels([[1]]), "video", keys=True)
    assert not torch.allclose(image.tokens.keys, video.tokens.keys[:PATCHES], atol=1e-2)


def test_cls_of_pictures_stays_where_it_is_sent() -> None:
    model = make()
    prompt = torch.tensor([[BOS, 5, *[IMAGE] * (PATCHES + 1), 40, 41]])
    inputs = {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        **ROWS["video_llava"].pixels([[0]]),
        "vision_feature_select_strategy": "full",
    }
    found = foveate.generate(model, foveate.AdaFV(keep=1.0), **inputs, **GREEDY)
    assert torch.equal(found.output, model.generate(**inputs, **GREEDY))
    assert foveate.generate(model, foveate.AdaFV(keep=3), **inputs, **GREEDY).visual_tokens == [4]


def test_videos_of_another_shape() -> None:
    model = make()
    inputs = prompts(ROWS["video_llava-video"], model, "one")
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][0]
    with foveate.Saliency(keep=0.5)(model), pytest.raises(ValueError, match="videos, frames, channels, height, width"):
        model.generate(**inputs, **GREEDY)


class Videos:
    """What the processor asks of the one for videos, which needs torchvision."""


def test_a_session_answers_as_a_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    images = VideoLlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = VideoLlavaProcessor(images, Videos(), tokenizer({"<image>": IMAGE, "<video>": VIDEO}))
    model, pictures = make(), [picture(seed, 80, 60) for seed in range(2)]
    if not any(one.kind is one.VAR_KEYWORD for one in inspect.signature(processor).parameters.values()):  # 5.5
        with pytest.raises(ValueError, match="takes no padding_side.*upgrade transformers"):
            foveate.look(model, processor, pictures)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = foveate.look(model, processor, pictures)
        inputs = processor(
            text=["USER: <image>\n<image>\nis there a cat ? ASSISTANT:"], images=pictures, return_tensors="pt"
        )
        for keep in (1.0, 3):
            answers = session.ask_many(["is there a cat ?", "is there a dog ?"], foveate.AdaFV(keep=keep), **GREEDY)
            called = foveate.generate(model, foveate.AdaFV(keep=keep), **inputs, **GREEDY).output
            assert answers[0].sequence.tolist()[-4:] == called[0].tolist()[-4:]


def test_names_are_left_as_they_are_where_both_are_given() -> None:
    family = family_for(make())
    given = {PIXELS: 1, OLD: 2} if PIXELS != OLD else {OLD: 2}
    assert family.named(given) == given
    assert family.named({OLD: 2}) == {PIXELS: 2}
