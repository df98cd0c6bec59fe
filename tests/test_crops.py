"""Crops by question around the matrix: how they are asked for, what goes through the tower, sessions, every method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import foveate
from foveate import show
from foveate.crops import Crops, regions_of
from foveate.functional import Merge
from foveate.models.encoded import EncodedImage
from foveate.models.view_store import among
from foveate.pruners import Choice, Pruner
from foveate.pruners.registry import INSIDE_METHODS
from foveate.tokens import Geometry, Keep, Selection, TextTokens, VisualTokens
from tests import crops_by_hand, reference
from tests.encoding import encode
from tests.models import test_onevision
from tests.test_matrix import GREEDY, NEW, OLD, TILING, WRAPPED, indices, new_tokens
from tests.tiny import BATCHES, BOS, IMAGE, ROWS, VIDEO, prompts
from tests.tiny.siglip import _tiles
from tests.tiny.tiles import tiles_of

# How crops are asked for.


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0.5, Crops(0.5)), (2, Crops(2)), (0, Crops(0)), (np.int64(3), Crops(3)), ("auto", Crops("auto")),
        ("0.25", Crops(0.25)), ("2", Crops(2)), (" 0.5:by=text ", Crops(0.5, by="text")), ("1e-1", Crops(0.1)),
        ("auto:share=0.6:by=saliency", Crops("auto", by="saliency", share=0.6)),
        ("1:by=random:seed=-7", Crops(1, by="random", seed=-7)), (Crops(3), Crops(3)),
        ("distinct", Crops("distinct")), (Crops("distinct"), Crops("distinct")),
        (None, None), (1.0, None), ("1.0", None), ("all", None), (Crops(1.0), None), (np.float32(1.0), None),
    ],
)  # fmt: skip
def test_what_may_be_written(given: Any, meant: Crops | None) -> None:
    assert Crops.of(given) == meant


@pytest.mark.parametrize("one", [
    Crops(0.5), Crops(1.0), Crops(1), Crops(0), Crops("auto"), Crops(0.123456789), Crops(1e-7), Crops(1 / 3, "text"),
    Crops("auto", "saliency", 0.55), Crops(4, "random", seed=12), Crops(0.5, share=1 / 3),
    Crops("distinct"),
])  # fmt: skip
def test_spelled_and_read_again(one: Crops) -> None:
    again = Crops.of(str(one))
    assert again == (None if isinstance(one.amount, float) and one.amount == 1.0 else one)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (True, TypeError, "fraction in"), ([1], TypeError, "fraction in"), (torch.ones(1), TypeError, "fraction in"),
        (1.5, ValueError, "fraction of the crops"), (0.0, ValueError, "fraction of the crops"),
        (-0.1, ValueError, "fraction of the crops"), (-1, ValueError, "an int >= 0"),
        (math.nan, ValueError, "fraction of the crops"), (math.inf, ValueError, "fraction of the crops"),
        ("nan", ValueError, "fraction of the crops"), ("-1", ValueError, "an int >= 0"),
        ("half", ValueError, "write a fraction"), ("", ValueError, "write a fraction"), ("--1", ValueError, "write a"),
        ("²", ValueError, "write a fraction"), ("0.5:by", ValueError, "options are by, seed, share"),
        ("0.5:amount=2", ValueError, "options are by"), ("0.5:by=size", ValueError, "not known; known: both"),
        ("0.5:share=much", ValueError, "share must be a number"), ("0.5:seed=0.5", ValueError, "seed must be a number"),
        ("distinct:by=text", ValueError, "nothing to choose by"), ("Distinct", ValueError, "write a fraction"),
        ("auto:share=0", ValueError, r"must be in \(0, 1\]"), ("auto:share=nan", ValueError, r"must be in \(0, 1\]"),
        ("auto:by=random", ValueError, "has none"), ("all:by=size", ValueError, "not known"),
        ("0.5:by=text:by=random", ValueError, "by is given twice"),
    ],
)  # fmt: skip
def test_what_may_not(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Crops.of(given)
    with pytest.raises(error, match=message):
        foveate.attach(ROWS["internvl"].make("sdpa"), foveate.AdaFV(), crops=given)


@pytest.mark.parametrize("options", [{"share": True}, {"share": "0.5"}, {"seed": 0.5}, {"seed": True}])
def test_options_of_another_type(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        Crops(0.5, **options)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 10])
def test_how_many(count: int) -> None:
    for tenths in range(1, 11):  # exact, where 0.1 * 10 need not be
        wanted = -(-tenths * count // 10)
        assert Crops(tenths / 10).count(count) == Crops(np.float32(tenths / 10)).count(count) == wanted
    assert [Crops(n).count(count) for n in (0, 1, 5, 99)] == [min(n, count) for n in (0, 1, 5, 99)]
    assert Crops("auto").count(count) is None and Crops("distinct").count(count) == count


def test_the_heaviest_are_chosen() -> None:
    """Several pictures at once; ties go to the earlier crop; a picture without crops has none."""
    weights = [torch.tensor([0.1, 0.4, 0.2, 0.3]), None, torch.tensor([0.25] * 4), torch.tensor([1.0])]
    assert Crops(0.5).chosen(weights) == [(2, 4), (), (1, 2), (1,)]
    assert Crops(0).chosen(weights) == [(), (), (), ()]
    assert Crops(9).chosen(weights) == [(1, 2, 3, 4), (), (1, 2, 3, 4), (1,)]
    assert Crops("auto", share=0.65).chosen(weights) == [(2, 4), (), (1, 2, 3), (1,)]
    assert Crops(0.5).chosen([None, None]) == [(), ()] and Crops(0.5).chosen([]) == []


# What a crop sees.


def test_regions_are_what_is_not_padding() -> None:
    """The crops of a real processor: together they see the picture but for what no patch sees, and nothing twice."""
    for size in [(97, 131), (131, 97), (60, 200)]:
        processed = test_onevision.images()(Image.new("RGB", size[::-1]), return_tensors="pt")
        place = encode(test_onevision.model(), processed)[0].tokens.geometry
        regions = regions_of(place)
        assert regions.tolist() == [pytest.approx(one) for one in crops_by_hand.regions_of(place)]
        assert regions.min() >= 0
        assert (regions[:, 2:].amax(0) <= torch.tensor(size[::-1]) + 1e-3).all()


def test_a_crop_that_is_all_padding_sees_nothing() -> None:
    view = torch.tensor([0, 1, 3])
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 4], [2, 0, 4, 4]])
    place = Geometry(view, view, view, boxes, (4, 4), ((1, 1),) * 4)
    assert regions_of(place).tolist() == [[0, 0, 2, 4], [0, 0, 0, 0], [2, 0, 4, 4]]


def test_a_picture_so_thin_that_its_crops_have_no_token() -> None:
    """Unpadding leaves nothing of them: nothing to choose from but the base view, and no error."""
    model, processor = test_onevision.model(), test_onevision.session_processor()
    with foveate.Saliency(keep=0.4)(model, crops=0.5):
        inputs = processor(text=["<image> is there a cat"], images=[[Image.new("RGB", (2, 900))]], return_tensors="pt")
        result = model.generate(**inputs, **GREEDY)
    with foveate.Saliency(keep=0.4)(model):
        assert torch.equal(result, model.generate(**inputs, **GREEDY))


# What goes through the tower.


def view_pixels(name: str, inputs: dict[str, Tensor], place: int, number: int, view: int) -> Tensor:
    """(3, side, side): the pixels of a view of the call's ``place``-th picture, tiny picture ``number``; 0 the base."""
    if name.startswith("llava"):
        return inputs["pixel_values"][place, view]
    if name == "ovis2":
        return tiles_of(number, True)[view]
    if name in ("internvl", "qianfan_ocr", "aya_vision", "cohere2_vision", "llama4"):  # the base view comes last
        return tiles_of(number, False)[view - 1]
    return _tiles(number, inputs["pixel_values"].shape[-1])[view - 1]


@contextmanager
def telling(model: Any, note: Callable[[Tensor], None]) -> Iterator[None]:
    """Hands (views, 3, side, side) of every run of the vision tower over: what its first layer is given, a convolution
    or what cuts patches out."""
    base = getattr(model, "model", model)
    tower = base.vision_tower if hasattr(base, "vision_tower") else base.vision_model
    first = next(module for module in tower.modules() if isinstance(module, (nn.Conv2d, nn.Unfold)))
    hook = first.register_forward_pre_hook(lambda module, args: note(args[0].detach().clone()))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def seen_by(model: Any) -> Iterator[list[Tensor]]:
    """The pixels of every view that goes through the vision tower."""
    seen: list[Tensor] = []
    with telling(model, seen.extend):
        yield seen


@contextmanager
def runs_of(model: Any) -> Iterator[list[Tensor]]:
    """The same, run by run."""
    runs: list[Tensor] = []
    with telling(model, runs.append):
        yield runs


class Shown(Pruner):
    """Keeps all, and remembers all that it was shown."""

    name = "shown"
    reads_saliency = reads_keys = reads_encoded = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shown: list[VisualTokens] = []

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        raise AssertionError("all are kept")

    def keep_all(self, visual: VisualTokens, text: TextTokens | None) -> Choice:
        self.shown.append(visual)
        return super().keep_all(visual, text)


@pytest.mark.parametrize("crops", [1, "auto", None])
@pytest.mark.parametrize("name", TILING)
def test_just_the_chosen_views_go_through_the_tower(name: str, crops: Any) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.AdaFV(keep=0.4)
    with pruner(model, crops=crops), seen_by(model) as seen:
        model.generate(**inputs, **GREEDY)
    numbers = [number for images in BATCHES["mixed"] for number in images]
    wanted = [
        view_pixels(name, inputs, place, number, view)
        for place, (number, selection) in enumerate(zip(numbers, pruner.selections, strict=True))
        for view in selection.encoded_views
    ]
    assert len(seen) == len(wanted)
    left = list(range(len(seen)))
    for view in wanted:
        left.remove(next(place for place in left if torch.equal(seen[place], view)))


# Methods.


@pytest.mark.parametrize("method", [*foveate.METHODS, *WRAPPED])
@pytest.mark.parametrize("name", ["internvl", "llava_onevision-crops"])
def test_every_method(name: str, method: str) -> None:
    """None knows that there could have been more tokens; K is of the whole picture's."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(method, keep=0.3)
    with pruner(model, crops=0.5):
        result = model.generate(**inputs, **GREEDY)
    weights = [one.weights for one in pruner.selections]
    some = 0
    for selection in pruner.selections:
        budget = Keep(0.3).budget(selection.total)
        assert len(selection) == budget if pruner.exact and not pruner.adaptive else 1 <= len(selection) <= budget
        if selection.encoded is None:
            continue
        some += 1
        assert selection.encoded.shape == (selection.total,) and selection.encoded.dtype == torch.bool
        assert bool(selection.encoded[selection.indices].all())
        assert set(selection.view.tolist()) <= set(selection.encoded_views)
        assert bool((selection.indices.diff() > 0).all())
        for score in selection.scores.values():
            assert torch.equal(torch.isnan(score), ~selection.encoded)
        if selection.weights is not None:
            dense = selection.weights.dense() if isinstance(selection.weights, Merge) else selection.weights
            assert dense.shape == (len(selection), selection.total)
            assert not dense[:, ~selection.encoded].any() and bool(dense.any(dim=1).all())
    assert some >= 2
    assembled = reference.assemble(row, model, inputs, indices(pruner), weights=weights)
    assert torch.equal(new_tokens(result, inputs), reference.greedy(row, model, assembled, NEW)[0])


def test_merged_tokens_are_calibrated() -> None:
    """What merged tokens count for is the same as without crops where all are chosen, and more than nothing."""
    row = ROWS["internvl"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner("merged:adafv", keep=0.3)
    logits = {}
    for name, options in {
        "all": {"calibrate": True},
        "as many": {"calibrate": True, "crops": 9},
        "half": {"calibrate": True, "crops": 0.5},
        "half, not calibrated": {"crops": 0.5},
    }.items():
        with torch.no_grad(), pruner(model, **options):
            logits[name] = model(**inputs).logits[:, -1]
    torch.testing.assert_close(logits["as many"], logits["all"], atol=2e-4, rtol=1e-4)
    assert not torch.allclose(logits["half"], logits["half, not calibrated"], atol=1e-2)
    assert not torch.allclose(logits["half"], logits["all"], atol=1e-2)


@pytest.mark.parametrize("method", list(INSIDE_METHODS))
def test_methods_inside_the_llm_refuse(method: str) -> None:
    model = ROWS["llava_next-clip"].make("sdpa")
    pruner = foveate.get_pruner("fastv:layer=1" if method == "fastv" else method, keep=0.3)
    with pytest.raises(ValueError, match=r"prunes inside the LLM and has no crops='0.5:by=text'.*Leave the option out"):
        foveate.attach(model, pruner, crops="0.5:by=text")
    foveate.attach(model, pruner, crops=1.0).remove()


@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl", "gemma3"])
def test_families_without_crops_refuse(name: str) -> None:
    row = ROWS[name]
    with pytest.raises(ValueError, match="does not cut a picture into crops beside a base view, so crops=2 cannot"):
        foveate.attach(row.make("sdpa"), foveate.AdaFV(), crops=2)
    foveate.attach(row.make("sdpa"), foveate.AdaFV(), crops=1.0).remove()


def test_the_released_layout_refuses() -> None:
    with pytest.raises(ValueError, match="leave crops out"):
        foveate.attach(ROWS["llava_next-clip"].make("sdpa"), foveate.AdaFV(), layout="released", crops=0.5)


def test_released_code_takes_the_full_grids_of_the_chosen_crops() -> None:
    row = ROWS["internvl"]
    model = row.make("sdpa")
    pruner = foveate.AdaFV(keep=9, variant="released")
    with pruner(model, crops=0.5):
        model.generate(**prompts(row, model, "one"), **GREEDY)
    assert [len(one.encoded_views) for one in pruner.selections] == [2]


# What is said of a choice.


def whole_geometry() -> Geometry:
    view = torch.arange(3).repeat_interleave(2)
    place = torch.tensor([0, 1] * 3)
    return Geometry(view, torch.zeros_like(place), place, torch.rand(6, 4), (8, 8), ((1, 2),) * 3)


PLACES = torch.tensor([0, 1, 4, 5])


@pytest.mark.parametrize("kind", ["none", "tensor", "merge", "merge of a merge"])
def test_placed(kind: str) -> None:
    """A choice among four of six tokens, as one among the six: the same tokens, the same sums."""
    whole, matrix = whole_geometry(), torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75]])
    first = Merge(torch.tensor([0, 2]), torch.arange(4), torch.tensor([0.5, 0.5, 0.25, 0.75]), 4)
    second = Merge(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 2.0]), 2)
    weights: Any = {"none": None, "tensor": matrix, "merge": first, "merge of a merge": second @ first}[kind]
    here = Geometry(
        whole.view[PLACES] // 2, whole.row[PLACES], whole.column[PLACES], whole.boxes[PLACES], (8, 8), ((1, 2),) * 2
    )
    one = Selection(torch.tensor([1, 2]), here, {"score": torch.arange(4.0)}, {}, weights)
    placed = one.placed(PLACES, whole)
    assert placed.indices.tolist() == [1, 4] and placed.total == 6 and placed.ratio == 2 / 6
    assert placed.view.tolist() == [0, 2] and torch.equal(placed.boxes, one.boxes)
    assert placed.encoded is not None and placed.encoded.tolist() == [True, True, False, False, True, True]
    assert placed.encoded_views == (0, 2) and one.encoded_views == (0, 1)
    score = placed.scores["score"]
    assert torch.equal(torch.isnan(score), ~placed.encoded) and torch.equal(score[PLACES], torch.arange(4.0))
    features = torch.randn(6, 5)
    torch.testing.assert_close(placed.gather(features), one.gather(features[PLACES]))
    features[[2, 3]] = torch.nan  # not encoded: of no account
    if kind != "tensor":  # a matrix has zeros there, and zero times NaN is none
        torch.testing.assert_close(placed.gather(features), one.gather(features[PLACES]))
    assert placed.mask().tolist() == [False, True, False, False, True, False]


def test_figures_leave_out_what_was_not_encoded(tmp_path: Any) -> None:
    """One colour scale over what has scores."""
    row = ROWS["internvl"]
    model = row.make("sdpa")
    pruner = foveate.Saliency(keep=0.3)
    with pruner(model, crops=0.5):
        model.generate(**prompts(row, model, "one"), **GREEDY)
    (selection,) = pruner.selections
    figure = show.figure(Image.new("RGB", (112, 56)), selection)
    (bars,) = {
        tuple(bar.get_ylim()) for block in figure.subfigs for bar in block.axes if bar.get_label() == "<colorbar>"
    }
    score = selection.scores["saliency"][selection.encoded]
    assert bars == pytest.approx((float(score.min()), float(score.max())))


# Which text chooses.


@pytest.mark.parametrize("span", ["turn", "prompt"])
def test_the_methods_text_is_the_crops(span: str) -> None:
    """What follows the image, or all of its turn. Two pictures in one prompt have other texts behind them."""
    name = "llava_next-siglip"
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.AdaFV(keep=0.4, text_span=span)
    with pruner(model, crops="2:by=text"):
        model.generate(**inputs, **GREEDY)
    behind = None
    if span == "prompt":
        spots = [(line == IMAGE).nonzero()[:, 0].tolist() for line in inputs["input_ids"]]
        lengths = [len(stream) for stream in row.streams(model, inputs, "image")]
        behind = [spots[0][-1], spots[2][lengths[1] - 1], spots[2][-1]]
    geometries = [one.geometry for one in pruner.selections]
    wanted = crops_by_hand.chosen(name, inputs, geometries, [0, 2, 2], 2, "text", behind)
    assert [one.encoded_views for one in pruner.selections] == wanted


@pytest.mark.parametrize("method", ["divprune", "saliency", "random", "pool"])
def test_a_method_that_reads_no_text_has_crops_by_text(method: str) -> None:
    name = "llava_next-siglip"
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    other = {**inputs, "input_ids": torch.where(inputs["input_ids"] == 41, 55, inputs["input_ids"])}
    pruner = foveate.get_pruner(method, keep=0.3)
    found = []
    for given in (inputs, other):
        with pruner(model, crops="1:by=text"):
            model.generate(**given, **GREEDY)
        spots = [(line == IMAGE).nonzero()[:, 0].tolist() for line in given["input_ids"]]
        lengths = [len(stream) for stream in row.streams(model, given, "image")]
        behind = [spots[0][-1], spots[2][lengths[1] - 1], spots[2][-1]]
        geometries = [one.geometry for one in pruner.selections]
        found.append([one.encoded_views for one in pruner.selections])
        assert found[-1] == crops_by_hand.chosen(name, given, geometries, [0, 2, 2], 1, "text", behind)


@pytest.mark.parametrize("by", ["both", "text", "saliency"])
def test_without_text_saliency_decides(by: str) -> None:
    """Whatever was asked for, and also under a method that does not read it."""
    name = "llava_next-clip"
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    images = (inputs["input_ids"] == IMAGE)[0]
    bare = {
        **inputs,
        "input_ids": inputs["input_ids"][:, images],
        "attention_mask": inputs["attention_mask"][:, images],
    }
    for pruner in (foveate.DivPrune(keep=0.3), foveate.Saliency(keep=0.3)):
        with pruner(model, crops=f"1:by={by}"):
            model.generate(**bare, **GREEDY)
        geometries = [one.geometry for one in pruner.selections]
        wanted = crops_by_hand.chosen(name, inputs, geometries, [0], 1, "saliency")
        assert [one.encoded_views for one in pruner.selections] == wanted
    with foveate.AdaFV(keep=0.3)(model, crops=1), pytest.raises(ValueError, match="adafv reads the question.*no text"):
        model.generate(**bare, **GREEDY)


def test_neither_text_nor_saliency() -> None:
    view = torch.tensor([0, 1, 2])
    place = Geometry(view, view, view, torch.rand(3, 4), (8, 8), ((1, 1),) * 3)
    base = among(EncodedImage.of_patches(VisualTokens(torch.randn(3, 4), place)), (0,))
    with pytest.raises(ValueError, match="nothing says which crops to encode"):
        Crops(1).weighed(base, None, None)


def test_special_tokens_count_as_the_method_has_it() -> None:
    """Behind a wrapper too: a token that the method does not read does not choose crops either."""
    name = "llava_next-siglip"
    row = ROWS[name]
    model = row.make("sdpa")
    plain = prompts(row, model, "one")
    ends = torch.tensor([[1, 1]])  # special tokens after the question
    longer = {
        **plain,
        "input_ids": torch.cat([plain["input_ids"], ends], 1),
        "attention_mask": torch.ones(1, plain["input_ids"].shape[1] + 2).long(),
    }
    for method in ("cdpruner", "centered:cdpruner"):
        weights = []
        for inputs in (plain, longer):
            pruner = foveate.get_pruner(f"{method}:special_tokens=False:text_span=prompt", keep=0.3)
            with pruner(model, crops="1:by=random"):  # depends on every id
                model.generate(**inputs, **GREEDY)
            weights.append([one.encoded_views for one in pruner.selections])
        assert weights[0] == weights[1]


# The control.


def test_random_crops_depend_on_seed_and_question_alone() -> None:
    def weights(seed: int, ids: Sequence[int], picture: int, crops: int = 6) -> Tensor:
        generator = torch.Generator().manual_seed(picture)
        view = torch.arange(crops + 1)
        boxes = torch.rand(crops + 1, 4, generator=generator)
        place = Geometry(view, view, view, boxes, (8, 8), ((1, 1),) * (crops + 1))
        features = torch.randn(crops + 1, 4, generator=generator)
        base = among(EncodedImage.of_patches(VisualTokens(features, place, torch.rand(crops + 1))), (0,))
        words = torch.tensor(ids)
        text = TextTokens(torch.randn(len(ids), 4), torch.ones(len(ids)).bool(), torch.zeros(len(ids)).bool())
        torch.rand(picture)  # whatever else draws numbers
        found = Crops(1, by="random", seed=seed).weighed(base, text, words)
        assert found is not None
        return found

    known = weights(0, [5, 6], picture=1)
    assert torch.equal(known, weights(0, [5, 6], picture=2))
    orders = {tuple(weights(seed, [5, 6], 1).argsort().tolist()) for seed in range(20)}
    assert len(orders) > 15
    orders = {tuple(weights(0, [5, 6, more], 1).argsort().tolist()) for more in range(20)}
    assert len(orders) > 15
    # All crops have their turn.
    first = [int(weights(seed, [5, 6], 1).argmax()) for seed in range(300)]
    assert all(20 < first.count(crop) < 90 for crop in range(6))


@pytest.mark.parametrize("seed", [0, 3])
def test_random_crops_in_calls(seed: int) -> None:
    """The same alone and in a batch, with other draws in between, and under any method that reads the same text."""
    row = ROWS["llava_next-clip"]
    model = row.make("sdpa")
    found = []
    for method in ("adafv", "cdpruner", "adafv"):
        pruner = foveate.get_pruner(method, keep=0.4)
        torch.rand(7)
        with pruner(model, crops=f"2:by=random:seed={seed}"):
            model.generate(**prompts(row, model, "mixed"), **GREEDY)
            found.append([one.encoded_views for one in pruner.selections])
            model.generate(**prompts(row, model, "mixed", 2), **GREEDY)
            assert [one.encoded_views for one in pruner.selections] == found[-1][1:]
    assert found[0] == found[1] == found[2]


# Calls.


def test_gradients_reach_both_runs_of_the_tower() -> None:
    row = ROWS["llava_next-siglip"]
    model = copy.deepcopy(row.make("sdpa"))
    inputs = prompts(row, model, "one")
    pruner = foveate.AdaFV(keep=1.0)
    inputs["pixel_values"] = inputs["pixel_values"].requires_grad_()
    with pruner(model, crops=1):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradient = inputs["pixel_values"].grad
    assert gradient is not None
    (views,) = [one.encoded_views for one in pruner.selections]
    for view in range(gradient.shape[1]):
        assert bool((gradient[0, view] != 0).any()) == (view in views)


def test_the_answer_to_be_learned_does_not_choose_crops() -> None:
    row = ROWS["llava_next-siglip"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    pruner = foveate.Uniform(keep=0.4)
    found = set()
    for answer in range(42, 60):
        ids = torch.cat([inputs["input_ids"], torch.tensor([[answer, answer + 1]])], dim=1)
        labels = torch.full_like(ids, -100)
        labels[:, -2:] = ids[:, -2:]
        with torch.no_grad(), pruner(model, crops="1:by=text"):
            model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels=labels)
        found.add(tuple(one.encoded_views for one in pruner.selections))
    assert len(found) == 1


def test_outputs_of_a_forward_and_of_generate() -> None:
    row = ROWS["llava_next-clip"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.AdaFV(keep=0.4)
    with torch.no_grad(), pruner(model, crops=0.5):
        output = model(**inputs, output_hidden_states=True)
        result = model.generate(
            **inputs, **GREEDY, return_dict_in_generate=True, output_hidden_states=True, output_scores=True
        )
    assembled = reference.assemble(row, model, inputs, indices(pruner))
    short = assembled.mask.shape[1]
    assert all(state.shape[:2] == (3, short) for state in output.hidden_states)
    assert all(state.shape[:2] == (3, short) for state in result.hidden_states[0])
    assert output.logits.shape[1] == inputs["input_ids"].shape[1]
    assert len(result.scores) == NEW


def test_broken_weights_stop_the_call() -> None:
    row = ROWS["internvl"]
    model = copy.deepcopy(row.make("sdpa"))
    model.model.vision_tower.encoder.layer[0].attention.q_proj.weight.data.fill_(torch.nan)
    for by in ("both", "text", "saliency"):
        with foveate.Saliency(keep=0.3)(model, crops=f"1:by={by}"), pytest.raises(ValueError, match="NaN or infinity"):
            model.generate(**prompts(row, model, "one"), **GREEDY)


def test_stateless_calls_and_several_returns() -> None:
    row = ROWS["internvl"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    pruner = foveate.AdaFV(keep=0.4)
    with pruner(model, crops=1):
        attached = model.generate(**inputs, **GREEDY, num_beams=2, num_return_sequences=2)
    found = foveate.generate(model, pruner, **inputs, **GREEDY, num_beams=2, num_return_sequences=2, crops=1)
    assert torch.equal(found.output, attached)
    assert [one.encoded_views for one in found.selections] == [one.encoded_views for one in pruner.selections]


@test_onevision.needs_videos
def test_a_picture_beside_a_video() -> None:
    """All of a video's frames are encoded; the picture's crops are chosen."""
    model = test_onevision.model()
    pictures = prompts(ROWS["llava_onevision"], model, "one")
    videos = test_onevision.video_pixels([[0]])
    stream = len(encode(model, videos, "video")[0].stream)
    count = int((pictures["input_ids"] == IMAGE).sum())
    ids = torch.tensor([[BOS, 5, *[VIDEO] * stream, 6, *[IMAGE] * count, 7, 8]])
    inputs = {**pictures, **videos, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pruner = foveate.AdaFV(keep=0.4)
    with pruner(model, crops=1):
        model.generate(**inputs, **GREEDY)
    film, picture = pruner.selections
    assert film.encoded is None and len(film) == Keep(0.4).budget(stream - 1)
    assert len(picture.encoded_views) == 2 < len(picture.geometry.grids)


@pytest.mark.skipif(OLD, reason="this transformers looks for EOS tokens without asking whether there are any")
def test_prompt_lookup_is_greedy_decoding() -> None:
    row = ROWS["internvl"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    with foveate.AdaFV(keep=0.4)(model, crops=1):
        alone = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3), alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    row = ROWS["llava_onevision-crops"]
    model = copy.deepcopy(row.make("sdpa")).to(dtype)
    inputs = prompts(row, row.make("sdpa"), "mixed")
    pruner = foveate.AdaFV(keep=0.4)
    with pruner(model, crops=0.5):
        model.generate(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}, **GREEDY)
    assert [len(one.encoded_views) for one in pruner.selections] == [2, 3, 3]


def test_gradient_checkpointing() -> None:
    """What backward runs once more are the tower's layers, on the views that were encoded."""
    row = ROWS["llava_next-siglip"]
    inputs = prompts(row, row.make("sdpa"), "mixed")
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(row.make("sdpa")).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with foveate.AdaFV(keep=0.4)(model, crops=0.5):
            output = model(**inputs, labels=inputs["input_ids"], use_cache=False)
        output.loss.backward()
        gradients.append(row.read(model).q_proj.weight.grad)
    assert bool(gradients[0].any())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
