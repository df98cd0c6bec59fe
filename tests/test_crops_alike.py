"""Crops with the same pixels are encoded once, and nobody sees a difference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
from foveate.models import view_store
from foveate.models.alike import alike_views
from foveate.tokens import VisualTokens
from tests.test_crops import Shown, runs_of
from tests.test_crops_sessions import OPTIONS, QUESTIONS, SETUPS, same
from tests.test_matrix import GREEDY, TILING
from tests.tiny import ROWS, SIDE, prompts

BLANK = 0.5


def counted(runs: list[Tensor]) -> Counter[bytes]:
    """How often each view went through the tower."""
    return Counter(view.numpy().tobytes() for run in runs for view in run)


def with_blanks(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blank are both crops of the first picture of "mixed", and the first of the last picture, which is in another
    prompt; where several pictures of a prompt are not cut, only the former."""
    pixels = inputs["pixel_values"].clone()
    places: list[Any] = [(0, 1), (0, 2), (-1, 1)]  # picture and view
    if name.startswith(("idefics3", "smolvlm")):
        places = [(0, 0), (0, 1), (2, 1)]  # prompt and tile; the base view is the last
    elif pixels.ndim == 4:
        places = [1, 2, 5] if name == "ovis2" else [0, 1, 4]
    for place in places:
        pixels[place] = BLANK
    return {**inputs, "pixel_values": pixels}


def result_of(model: Any, inputs: dict[str, Tensor], pruner: Any, crops: Any) -> tuple[Tensor, list[Tensor]]:
    """The generated ids, and what went through the tower."""
    with pruner(model, crops=crops), runs_of(model) as runs:
        return model.generate(**inputs, **GREEDY), runs


def equal(ours: list[VisualTokens], theirs: list[VisualTokens]) -> None:
    """To the last bit, on one thread of a CPU. But for saliency: the product of CLS's query and all keys is rounded one
    way or the other by how many views stand in it (with the 6 heads of the bundled model it is, with 4 it is not)."""
    for one, other in zip(ours, theirs, strict=True):
        for name in ("features", "keys", "encoded"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.saliency is not None and other.saliency is not None
        torch.testing.assert_close(one.saliency, other.saliency, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TILING)
def test_what_is_alike_is_encoded_once(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = with_blanks(name, prompts(ROWS[name], model, "mixed"))
    stock, once = Shown(keep=1.0), Shown(keep=1.0)
    wanted, all_runs = result_of(model, inputs, stock, None)
    given, runs = result_of(model, inputs, once, "distinct")
    views = counted(all_runs)
    twins = 1 if name == "llava_onevision" else 2
    assert views.total() - len(views) == twins and len(runs) == 1
    assert counted(runs) == Counter(set(views))
    assert torch.equal(given, wanted)
    equal(once.shown, stock.shown)
    pruners = [foveate.AdaFV(keep=0.4), foveate.AdaFV(keep=0.4)]
    results = [result_of(model, inputs, *one)[0] for one in zip(pruners, (None, "distinct"), strict=True)]
    assert torch.equal(*results)
    for one, other in zip(*(pruner.selections for pruner in pruners), strict=True):
        assert torch.equal(one.indices, other.indices) and one.scores.keys() == other.scores.keys()
        assert all(torch.equal(score, other.scores[kind]) for kind, score in one.scores.items())
        assert one.encoded is None and other.encoded is None and one.encoded_views == other.encoded_views


@pytest.mark.parametrize("name", TILING)
def test_nothing_alike_changes_nothing(name: str) -> None:
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "mixed")
    stock, once = Shown(keep=1.0), Shown(keep=1.0)
    wanted, all_runs = result_of(model, inputs, stock, None)
    given, runs = result_of(model, inputs, once, "distinct")
    (ours,), (theirs,) = runs, all_runs
    assert torch.equal(ours, theirs) and torch.equal(given, wanted)
    equal(once.shown, stock.shown)


@pytest.mark.parametrize("crops", ["distinct", 1, 0.5])
@pytest.mark.parametrize("name", TILING)
def test_a_picture_that_a_batch_has_twice(name: str, crops: Any) -> None:
    model = ROWS[name].make("sdpa")
    one = prompts(ROWS[name], model, "one")
    alone, twice = foveate.AdaFV(keep=0.4), foveate.AdaFV(keep=0.4)
    wanted, once = result_of(model, one, alone, crops)
    inputs = {key: torch.cat([value, value]) for key, value in one.items()}
    given, runs = result_of(model, inputs, twice, crops)
    assert counted(runs) == counted(once) and max(counted(runs).values()) == 1
    assert torch.equal(given[0], given[1]) and torch.equal(given[0], wanted[0])
    for selection in twice.selections:
        assert torch.equal(selection.indices, alone.selections[0].indices)
        assert selection.encoded_views == alone.selections[0].encoded_views


@pytest.mark.parametrize("crops", [1, 2, "0.5:by=saliency"])
@pytest.mark.parametrize("name", ["llava_next-clip", "internvl", "ovis2", "idefics3", "llava_onevision-crops"])
def test_chosen_crops_that_are_alike(name: str, crops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same crops are chosen, and the same tokens of them. Scores are equal but for rounding: on some CPUs stock's
    projector makes of the four tokens of one view alone only nearly what it makes of them beside a second view's."""
    model = ROWS[name].make("sdpa")
    inputs = with_blanks(name, prompts(ROWS[name], model, "mixed"))
    once, each = foveate.AdaFV(keep=0.4), foveate.AdaFV(keep=0.4)
    given, runs = result_of(model, inputs, once, crops)
    monkeypatch.setattr(view_store, "alike_views", lambda *given: None)
    wanted, all_runs = result_of(model, inputs, each, crops)
    assert counted(runs) == Counter(set(counted(all_runs)))
    assert torch.equal(given, wanted)
    for one, other in zip(once.selections, each.selections, strict=True):
        assert torch.equal(one.indices, other.indices) and one.encoded_views == other.encoded_views
        for kind, score in one.scores.items():
            torch.testing.assert_close(score, other.scores[kind], rtol=0, atol=1e-5, equal_nan=True)
    if crops == 2:
        assert sum(map(len, runs)) < sum(map(len, all_runs))


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_equal_pixels_under_another_mask(name: str) -> None:
    """Of the second of two blank crops, a column of patches is padding."""
    model = ROWS[name].make("sdpa")
    inputs = prompts(ROWS[name], model, "one")
    inputs["pixel_values"][0, :2] = BLANK
    masked = {**inputs, "pixel_attention_mask": inputs["pixel_attention_mask"].clone()}
    masked["pixel_attention_mask"][0, 1, :, SIDE * 3 // 4 :] = 0
    for given, twins in ((inputs, 1), (masked, 0)):
        stock, once = Shown(keep=1.0), Shown(keep=1.0)
        wanted, all_runs = result_of(model, given, stock, None)
        answer, runs = result_of(model, given, once, "distinct")
        assert len(runs[0]) == len(all_runs[0]) - twins
        assert torch.equal(answer, wanted)
        equal(once.shown, stock.shown)
        (shown,) = once.shown
        first, second = (shown.features[shown.geometry.view == view] for view in (1, 2))
        assert torch.equal(first, second) == bool(twins)


def test_gradients_of_pixels_are_each_views_own() -> None:
    """Where somebody asks for them, every view is encoded."""
    row = ROWS["llava_next-siglip"]
    model = row.make("sdpa")
    inputs = with_blanks("llava_next-siglip", prompts(row, model, "one"))
    gradients = []
    for crops in (None, "distinct"):
        pixels = inputs["pixel_values"].clone().requires_grad_()
        with Shown(keep=1.0)(model, crops=crops):
            model(**{**inputs, "pixel_values": pixels}, labels=inputs["input_ids"]).loss.backward()
        assert pixels.grad is not None
        gradients.append(pixels.grad)
    model.zero_grad()
    assert bool(gradients[0][0, 1].any()) and not torch.equal(gradients[0][0, 1], gradients[0][0, 2])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_gradients_of_weights_are_of_all_twins() -> None:
    row = ROWS["internvl"]
    model = row.make("sdpa")
    inputs = with_blanks("internvl", prompts(row, model, "mixed"))
    gradients = []
    for crops in (None, "distinct"):
        model.zero_grad()
        with Shown(keep=1.0)(model, crops=crops):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(row.read(model).q_proj.weight.grad.clone())
    model.zero_grad()
    assert bool(gradients[0].any())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


# Sessions.


@pytest.fixture(params=list(SETUPS))
def pages(request: pytest.FixtureRequest) -> tuple[Any, Any, list[Image.Image]]:
    """White pictures with noise in the lower right corner, as a processor cuts them."""
    model, processor, pictures = SETUPS[request.param]()
    pages = []
    for number, one in enumerate(pictures):
        page = Image.new("RGB", one.size, "white")
        noise = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        page.paste(Image.fromarray(noise), (one.size[0] - 20, one.size[1] - 20))
        pages.append(page)
    return model, processor, pages


def test_sessions(pages: Any) -> None:
    model = pages[0]
    plain = foveate.look(*pages)
    with runs_of(model) as runs:
        session = foveate.look(*pages, crops="distinct")
        assert len(runs) == 1
        with runs_of(model) as all_runs:
            foveate.look(*pages)
        views = counted(all_runs)
        del runs[1:]  # those of the plain session
        assert counted(runs) == Counter(set(views)) and len(views) < views.total()
        for ours, theirs in zip(session.images, plain.images, strict=True):
            equal([ours.tokens], [theirs.tokens])
        for question in QUESTIONS[:2]:
            wanted = plain.ask(question, foveate.AdaFV(keep=0.3), **OPTIONS)
            answer = session.ask(question, foveate.AdaFV(keep=0.3), **OPTIONS)
            assert torch.equal(answer.sequence, wanted.sequence)
            same(answer, (wanted.sequence[len(wanted.sequence) - wanted.new_tokens :], wanted.selections))
        some = session.ask(QUESTIONS[2], foveate.AdaFV(keep=0.3), crops=1, **OPTIONS)
        alone = plain.ask(QUESTIONS[2], foveate.AdaFV(keep=0.3), crops=1, **OPTIONS)
        same(some, (alone.sequence[len(alone.sequence) - alone.new_tokens :], alone.selections))
        assert len(runs) == 1  # all is known


def test_a_session_never_encodes_what_it_knows_of_a_twin(pages: Any) -> None:
    model = pages[0]
    plain = foveate.look(*pages)
    with runs_of(model) as runs:
        session = foveate.look(*pages, crops=0)
        for crops in (1, 2, 1, 0.5, "distinct", 1.0):
            for question in QUESTIONS[:2]:
                wanted = plain.ask(question, foveate.AdaFV(keep=0.3), crops=crops, **OPTIONS)
                answer = session.ask(question, foveate.AdaFV(keep=0.3), crops=crops, **OPTIONS)
                same(answer, (wanted.sequence[len(wanted.sequence) - wanted.new_tokens :], wanted.selections))
    assert max(counted(runs).values()) == 1
    assert len(counted(runs)) < sum(len(one.tokens.geometry.grids) for one in session.images)


# What is alike.


def test_alike_is_equal_in_every_pixel() -> None:
    first = torch.rand(3, 4, 4)
    swapped = first.flip(-1)  # the same numbers elsewhere
    near = first.clone()
    near[0, 0, 0] = torch.nextafter(near[0, 0, 0], torch.tensor(2.0))
    views = torch.stack([first, swapped, first, near, swapped, near, first])
    for dtype in (torch.float32, torch.float64):
        assert alike_views(views.to(dtype)) == (0, 1, 0, 3, 1, 3, 0)
    assert alike_views((views * 255).round().to(torch.uint8)) == (0, 1, 0, 0, 1, 0, 0)
    assert alike_views(views.bfloat16().movedim(1, -1)) == (0, 1, 0, 0, 1, 0, 0)  # not contiguous
    assert alike_views(views[:1]) == (0,) and alike_views(views[:0]) == ()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_alike_in_all_that_is_given(dtype: torch.dtype) -> None:
    views = torch.zeros(4, 3, 2, 2)
    masks = torch.ones(4, 2, 2, dtype=dtype)
    masks[2, 0, 1] = 0
    masks[3, 1, 0] = 0  # as many, elsewhere
    assert alike_views(views) == (0, 0, 0, 0)
    assert alike_views(views, masks) == (0, 0, 2, 3)


def test_what_is_never_alike() -> None:
    views = torch.zeros(3, 2, 2)
    views[1:, 0, 0] = torch.nan
    assert alike_views(views) == (0, 1, 2)
    assert alike_views(torch.zeros(3, 2, 2).requires_grad_()) == (0, 1, 2)
