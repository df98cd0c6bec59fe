"""Sessions that encode a crop when a question first asks for it."""

from __future__ import annotations

import copy
import itertools
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
from foveate import bundled
from foveate.models.encoded import EncodedImage
from foveate.pruners import Pruner
from tests.models import test_onevision, test_siglip_sessions
from tests.test_crops import Shown, seen_by
from tests.tiny import ROWS

QUESTIONS = [
    "is there a cat", "what color is the card", "how many", "the number on the sign", "is the dog left", "a red dog ?",
]  # fmt: skip
OPTIONS = {"max_new_tokens": 4, "do_sample": False}


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def onevision() -> tuple[Any, Any, list[Image.Image]]:
    """2 x 2 crops, above the limit: tokens at their borders are made of two or more."""
    return test_onevision.model(), test_onevision.session_processor(), [picture(0, 333, 333)]


def idefics3() -> tuple[Any, Any, list[Image.Image]]:
    """6 and 9 tiles."""
    pictures = test_siglip_sessions.pictures(2)
    return ROWS["idefics3"].make("sdpa"), test_siglip_sessions.idefics3(), pictures


def llava_next() -> tuple[Any, Any, list[Image.Image]]:
    """The bundled model; 4 crops each."""
    return (*bundled.load(), [picture(0, 320, 240), picture(1, 300, 310)])


SETUPS = {"onevision": onevision, "idefics3": idefics3, "llava_next": llava_next}


@pytest.fixture(params=list(SETUPS), scope="module")
def setup(request: pytest.FixtureRequest) -> tuple[Any, Any, list[Image.Image]]:
    return SETUPS[request.param]()


def separately(setup: tuple[Any, Any, list[Image.Image]], question: str, pruner: Pruner, **options: Any) -> Any:
    """What a user without a session writes; the new tokens and the selections."""
    model, processor, images = setup
    text = foveate.look(model, processor, images).prompt(question)
    add = not text.startswith(processor.tokenizer.bos_token or "\0")
    inputs = processor(images=[images], text=[text], return_tensors="pt", add_special_tokens=add)
    with pruner(model, processor=processor, **options):
        result = model.generate(**inputs, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
    return result, pruner.selections


def same(answer: Any, alone: Any) -> None:
    tokens, selections = alone
    assert torch.equal(answer.sequence[len(answer.sequence) - answer.new_tokens :], tokens)
    for one, other in zip(answer.selections, selections, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert one.encoded_views == other.encoded_views
        assert (one.encoded is None) == (other.encoded is None)
        assert one.encoded is None or torch.equal(one.encoded, other.encoded)
        for name, score in one.scores.items():
            torch.testing.assert_close(score, other.scores[name], atol=1e-5, rtol=1e-4, equal_nan=True)


def test_answers_equal_separate_calls(setup: Any) -> None:
    """Whatever earlier questions have had encoded: no question sees more than its own crops."""
    lazy, whole = foveate.look(*setup, crops=0.5), foveate.look(*setup)
    for number, question in enumerate(QUESTIONS[:4]):
        crops, keep = [(0.5, 0.3), (1, 1.0), ("auto", 0.3), (0, 3)][number]
        alone = separately(setup, question, foveate.AdaFV(keep=keep), crops=crops)
        for session in (lazy, whole):
            same(session.ask(question, foveate.AdaFV(keep=keep), crops=crops, **OPTIONS), alone)
        assert any(one.encoded is not None for one in alone[1]) or crops == "auto"


def views_of(selections: Any) -> set[tuple[int, int]]:
    return {(number, view) for number, one in enumerate(selections) for view in one.encoded_views}


def test_each_view_is_encoded_once_and_only_when_asked_for(setup: Any) -> None:
    model = setup[0]
    with seen_by(model) as seen:
        session = foveate.look(*setup, crops=1)
        known = {(number, 0) for number in range(len(session.images))}
        assert len(seen) == len(known)
        for question, crops in [*itertools.product(QUESTIONS[:4], (None, 2)), (QUESTIONS[0], 1)]:
            answer = session.ask(question, foveate.AdaFV(keep=3), crops=crops, **OPTIONS)
            known |= views_of(answer.selections)
            assert len(seen) == len(known)
        everything = sum(len(image.tokens.geometry.grids) for image in session.images)
        session.ask(QUESTIONS[0], foveate.AdaFV(keep=3), crops=1.0, **OPTIONS)
        assert len(seen) == everything
        session.ask(QUESTIONS[1], crops=9, **OPTIONS)
        assert len(seen) == everything
    assert max(Counter(view.numpy().tobytes() for view in seen).values()) == 1


def test_a_batch_of_questions_encodes_the_union_at_once(setup: Any) -> None:
    model = setup[0]
    runs: list[int] = []
    with seen_by(model) as seen:
        session = foveate.look(*setup, crops=1)
        base = len(seen)
        hook = model.model.register_forward_pre_hook(lambda *_: runs.append(len(seen)))
        try:
            together = session.ask_many(QUESTIONS[1:5], foveate.AdaFV(keep=0.3), **OPTIONS)
        finally:
            hook.remove()
    union = set().union(*(views_of(answer.selections) for answer in together))
    assert len(seen) == len(union) and len(union) > base
    assert set(runs) == {len(seen)}  # all of it before the LLM's first step
    for question, answer in zip(QUESTIONS[1:5], together, strict=True):
        alone = foveate.look(*setup, crops=1).ask(question, foveate.AdaFV(keep=0.3), **OPTIONS)
        same(answer, (alone.sequence[len(alone.sequence) - alone.new_tokens :], alone.selections))


def test_all_crops_of_a_session_that_has_encoded_some(setup: Any) -> None:
    """1.0 is everything, not what happens to be there: the same answer as of a session without crops."""
    plain = foveate.look(*setup)
    for pruner in (foveate.AdaFV(keep=0.4), None):
        session = foveate.look(*setup, crops=0)
        session.ask(QUESTIONS[0], pruner, **OPTIONS)
        answer, wanted = (
            session.ask(QUESTIONS[1], pruner, crops=1.0, **OPTIONS),
            plain.ask(QUESTIONS[1], pruner, **OPTIONS),
        )
        assert torch.equal(answer.sequence, wanted.sequence) and answer.prompt_tokens == wanted.prompt_tokens
        assert all(torch.equal(a.indices, b.indices) for a, b in zip(answer.selections, wanted.selections, strict=True))
        assert all(one.encoded is None for one in answer.selections)


@pytest.mark.parametrize("crops", [0, 1, 2, 3])
def test_tokens_at_borders(crops: int) -> None:
    """Of shrunk crops, only tokens that are made of encoded patches alone; they are as if all were encoded."""
    model, processor, images = onevision()
    (whole,) = foveate.look(model, processor, images).images
    pruner = Shown(keep=1.0)
    session = foveate.look(model, processor, images, crops=crops)
    answer = session.ask(QUESTIONS[0], pruner, **OPTIONS)
    (visual,), (selection,) = pruner.shown, answer.selections
    assert selection.encoded is not None and visual.total == len(whole.tokens)
    torch.testing.assert_close(visual.features, whole.tokens.features[selection.encoded], atol=1e-5, rtol=1e-4)
    assert selection.encoded.tolist() == [made <= set(selection.encoded_views) | {0} for made in _made_of(whole)]


def _made_of(image: EncodedImage) -> list[set[int]]:
    """By token, the views whose patches are in it: those that change it when they change."""
    model = test_onevision.model()
    height, width = image.tokens.geometry.image_size
    views, side = len(image.tokens.geometry.grids), test_onevision.PER_SIDE

    def packed(planes: Tensor) -> Tensor:
        features, _ = model.model.pack_image_features(
            [planes], torch.tensor([[height, width]]), image_newline=torch.full((1,), -1.0),
            vision_aspect_ratio=model.config.vision_aspect_ratio,
        )  # fmt: skip
        return features[0][:, 0]

    newline = packed(torch.zeros(views, side**2, 1)) == -1
    found: list[set[int]] = [set() for _ in range(int((~newline).sum()))]
    for view in range(views):
        planes = torch.zeros(views, side**2, 1)
        planes[view] = 1.0
        for number in (packed(planes)[~newline] > 0).nonzero()[:, 0].tolist():
            found[number].add(view)
    return found


@pytest.mark.parametrize("name", ["idefics3", "llava_next"])
def test_threads_of_one_session(name: str) -> None:
    """Two threads ask at once: every view is encoded once, and each gets what it gets alone."""
    setup = SETUPS[name]()
    alone = {
        (question, crops): foveate.look(*setup).ask(question, foveate.AdaFV(keep=0.3), crops=crops, **OPTIONS)
        for question, crops in itertools.product(QUESTIONS[:3], (1, 0.5))
    }
    wrong: list[str] = []
    with seen_by(setup[0]) as seen:
        session = foveate.look(*setup, crops=0)
        barrier = threading.Barrier(2)

        def work(crops: float | int) -> None:
            try:
                barrier.wait(timeout=60)
                for question in QUESTIONS[:3]:
                    answer = session.ask(question, foveate.AdaFV(keep=0.3), crops=crops, **OPTIONS)
                    one = alone[question, crops]
                    same(answer, (one.sequence[len(one.sequence) - one.new_tokens :], one.selections))
            except BaseException as error:
                wrong.append(f"crops={crops}: {error!r}")

        threads = [threading.Thread(target=work, args=(crops,)) for crops in (1, 0.5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    known = {(number, 0) for number in range(len(setup[2]))}.union(
        *(views_of(one.selections) for one in alone.values())
    )
    assert len(seen) == len(known)
    assert max(Counter(view.numpy().tobytes() for view in seen).values()) == 1


def test_under_other_modes_of_torch() -> None:
    """Crops that are encoded in inference mode or under autocast go beside those that were not, and back."""
    setup = onevision()
    pruner = foveate.Saliency(keep=0.4)
    with torch.inference_mode():
        session = foveate.look(*setup, crops=0)
    wanted = foveate.look(*setup).ask(QUESTIONS[0], pruner, crops=2, **OPTIONS)
    assert torch.equal(session.ask(QUESTIONS[0], pruner, crops=2, **OPTIONS).sequence, wanted.sequence)
    session = foveate.look(*setup, crops=0)
    with torch.inference_mode():
        assert torch.equal(session.ask(QUESTIONS[0], pruner, crops=2, **OPTIONS).sequence, wanted.sequence)
    session = foveate.look(*setup, crops=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        session.ask(QUESTIONS[0], pruner, crops=2, **OPTIONS)
    (image,) = session.images
    assert image.tokens.features.dtype == torch.float32


def test_asking_again() -> None:
    """The second pass has the crops of the session too; all tokens are all of these crops'."""
    setup = onevision()
    session = foveate.look(*setup, crops=1)
    again = foveate.AskAgain(foveate.AdaFV(keep=3), None, margin=1.0)
    answer = session.ask(QUESTIONS[0], again, **OPTIONS)
    assert answer.asked_again and answer.before is not None
    views = [one.encoded_views for one in answer.selections]
    assert views == [one.encoded_views for one in answer.before.selections]
    assert [len(one) for one in answer.selections] == [int(one.encoded.sum()) for one in answer.selections]


def test_refusals_of_sessions() -> None:
    model, processor, images = llava_next()
    session = foveate.look(model, processor, images[:1], crops=0.5)
    with pytest.raises(ValueError, match="fastv prunes inside the LLM and has no crops='0.5'"):
        session.ask(QUESTIONS[0], foveate.get_pruner("fastv", keep=0.3))
    # All crops are what it knows: those that are missing are encoded for it.
    wanted = foveate.look(model, processor, images[:1]).ask(
        QUESTIONS[0], foveate.get_pruner("fastv:layer=1", keep=0.3), **OPTIONS
    )
    answer = session.ask(QUESTIONS[0], foveate.get_pruner("fastv:layer=1", keep=0.3), crops=1.0, **OPTIONS)
    assert torch.equal(answer.sequence, wanted.sequence)
    with pytest.raises(ValueError, match="leave crops out"):
        foveate.look(model, processor, images, layout="released", crops=0.5)
    with pytest.raises(ValueError, match="leave crops out"):
        foveate.look(model, processor, images[:1], layout="released").ask(QUESTIONS[0], foveate.AdaFV(), crops=0.5)
    with pytest.raises(ValueError, match="crops"):
        session.ask(QUESTIONS[0], foveate.AdaFV(), crops=2.5)


@pytest.mark.parametrize("crops", [None, 0.5])
def test_a_copy_of_a_session(crops: float | None) -> None:
    """Has locks of its own, and answers as the original does."""
    picture = Image.effect_noise((110, 70), 90).convert("RGB")
    session = foveate.look(*bundled.load(), picture, crops=crops)
    wanted = session.ask("is there a cat?", foveate.Cover(keep=0.2), max_new_tokens=3)
    found = copy.deepcopy(session).ask("is there a cat?", foveate.Cover(keep=0.2), max_new_tokens=3)
    assert torch.equal(found.sequence, wanted.sequence)
    assert torch.equal(found.selections[0].indices, wanted.selections[0].indices)
