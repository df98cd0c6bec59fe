"""Look once, ask often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate import bundled
from tests.checkpoint import llava_processor
from tests.tiny import ROWS

QUESTIONS = ["Is there a dog?", "What color is the card of the cat?", "How many apples are there?"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return bundled.load()


def picture(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


IMAGES = [picture(0, 320, 240), picture(1, 200, 300)]


def separately(pair: tuple[Any, Any], images: list[Image.Image], question: str, pruner: foveate.Pruner) -> Any:
    """What a user without a session writes."""
    model, processor = pair
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    add = not text.startswith(processor.tokenizer.bos_token or "\0")
    inputs = processor(images=images, text=text, return_tensors="pt", add_special_tokens=add)
    with pruner(model):
        return model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]


@pytest.mark.parametrize("images", [IMAGES[:1], IMAGES])
@pytest.mark.parametrize("method", ["adafv", "saliency", "text"])
def test_answers_equal_separate_calls(pair: tuple[Any, Any], images: list[Image.Image], method: str) -> None:
    session = foveate.look(*pair, images)
    for question in QUESTIONS:
        pruner = foveate.get_pruner(method, keep=0.1)
        answer = session.ask(question, pruner, max_new_tokens=6, do_sample=False)
        kept = [one.indices for one in answer.selections]
        alone = separately(pair, images, question, pruner)
        assert torch.equal(answer.sequence, alone)
        assert all(torch.equal(a, b.indices) for a, b in zip(kept, pruner.selections, strict=True))
        assert answer.visual_tokens == sum(map(len, kept))


def test_the_tower_runs_once(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    runs: list[int] = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    try:
        session = foveate.look(*pair, IMAGES)
        assert len(runs) == 1
        for question in QUESTIONS:
            session.ask(question, foveate.AdaFV(keep=0.1), max_new_tokens=2, do_sample=False)
            session.ask(question, max_new_tokens=2, do_sample=False)
        session.ask_many(QUESTIONS, foveate.AdaFV(keep=0.1), max_new_tokens=2, do_sample=False)
        assert len(runs) == 1
    finally:
        hook.remove()


def test_many_questions_at_once_are_each_as_if_alone(pair: tuple[Any, Any]) -> None:
    session = foveate.look(*pair, IMAGES[0])
    for pruner in (None, foveate.AdaFV(keep=0.1), foveate.Random(keep=9)):
        together = session.ask_many(QUESTIONS, pruner, max_new_tokens=4, do_sample=False)
        for question, answer in zip(QUESTIONS, together, strict=True):
            alone = session.ask(question, pruner, max_new_tokens=4, do_sample=False)
            assert (answer.text, answer.visual_tokens) == (alone.text, alone.visual_tokens)
            assert answer.question == question
    assert session.ask_many([]) == []


def test_without_a_pruner_nothing_is_dropped(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    session = foveate.look(*pair, IMAGES[0])
    answer = session.ask(QUESTIONS[0], max_new_tokens=6, do_sample=False)
    inputs = processor(
        images=IMAGES[:1], text=session.prompt(QUESTIONS[0]), return_tensors="pt", add_special_tokens=False
    )
    if not torch.equal(inputs["input_ids"][0], answer.sequence[: inputs["input_ids"].shape[1]]):
        inputs = processor(images=IMAGES[:1], text=session.prompt(QUESTIONS[0]), return_tensors="pt")
    assert torch.equal(answer.sequence, model.generate(**inputs, max_new_tokens=6, do_sample=False)[0])
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]


def test_leaves_no_trace(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    foveate.look(*pair, IMAGES[0]).ask(QUESTIONS[0], foveate.AdaFV(keep=5), max_new_tokens=1)
    assert "generate" not in vars(model) and "forward" not in vars(model)
    assert not any(name.startswith("_foveate") for name in vars(model))


def test_works_beside_an_attachment(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    session = foveate.look(*pair, IMAGES[0])
    outer = foveate.AdaFV(keep=3)
    with outer(model):
        answer = session.ask(QUESTIONS[0], foveate.AdaFV(keep=7), max_new_tokens=1)
    assert len(answer.selections[0]) == 7
    assert outer.selections == []


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_question(pair: tuple[Any, Any], question: str) -> None:
    with pytest.raises(ValueError, match="question is empty"):
        foveate.look(*pair, IMAGES[0]).ask(question)


def test_no_image(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="no image"):
        foveate.look(*pair, [])


def test_a_question_with_an_image_token(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        foveate.look(*pair, IMAGES[0]).ask("What is <image>?")


def test_several_returns(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="num_return_sequences"):
        foveate.look(*pair, IMAGES[0]).ask("Is there a dog?", num_beams=2, num_return_sequences=2, max_new_tokens=1)


def test_turn_end_from_the_chat_template(pair: tuple[Any, Any]) -> None:
    """text_span="turn" with the template's own turn end: the choice does not change as the conversation grows."""
    _, processor = pair
    ends = foveate.turn_end(processor)
    pruner = foveate.AdaFV(keep=8, text_span="turn")
    session = foveate.look(*pair, IMAGES[0])
    answer = session.ask(QUESTIONS[0], pruner, turn_end=ends, max_new_tokens=1)
    assert len(answer.selections[0]) == 8


def test_llava_1_5_without_a_chat_template() -> None:
    """Another family, several images, and the plain prompt for processors that have no template."""
    model, processor = ROWS["llava-clip"].make("sdpa"), llava_processor()
    images = [picture(3, 120, 90), picture(4, 70, 140)]
    pruner = foveate.AdaFV(keep=0.4)
    answer = foveate.look(model, processor, images).ask("is there a cat ?", pruner, max_new_tokens=5, do_sample=False)
    assert [one.total for one in answer.selections] == [16, 16]
    inputs = processor(images=images, text="USER: <image>\n<image>\nis there a cat ? ASSISTANT:", return_tensors="pt")
    with pruner(model):
        assert torch.equal(answer.sequence, model.generate(**inputs, max_new_tokens=5, do_sample=False)[0])
