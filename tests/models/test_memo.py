"""What is kept per model is what would be worked out, is bounded, and keeps no model alive."""

from __future__ import annotations

import copy
import gc
import weakref

import torch
from torch import nn

import foveate
from foveate.models import family_for, memo
from foveate.models.encoded import grid_geometry
from tests.tiny import ROWS, llava_next, prompts


def test_made_once_per_model_and_key() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    one, other = nn.Identity(), nn.Identity()
    assert [memo.once(one, 1, lambda: make("a")), memo.once(one, 1, lambda: make("b"))] == ["a", "a"]
    assert memo.once(one, 2, lambda: make("c")) == "c" and memo.once(other, 1, lambda: make("d")) == "d"
    assert made == ["a", "c", "d"]
    for key in range(3 * memo.MOST):
        memo.once(one, key, lambda: make("e"))
    assert len(memo._known[one]) == memo.MOST
    assert memo.once(one, 3 * memo.MOST - 1, lambda: "new") == "e" and memo.once(one, 5, lambda: "new") == "new"


def test_a_pruned_model_is_not_kept_alive() -> None:
    model = copy.deepcopy(llava_next("clip", "sdpa"))
    inputs = prompts(ROWS["llava_next-clip"], model, "mixed")
    with foveate.AdaFV(keep=0.3)(model):
        model.generate(**inputs, max_new_tokens=1)
    assert len(memo._known[model.model]) == len(inputs["image_sizes"])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_was_worked_out_in_inference_mode_can_be_trained_with() -> None:
    model = copy.deepcopy(llava_next("clip", "sdpa"))
    inputs = prompts(ROWS["llava_next-clip"], model, "one")
    pruner = foveate.AdaFV(keep=0.3)
    with torch.inference_mode(), pruner(model):
        model.generate(**inputs, max_new_tokens=1)
    with pruner(model):
        model(**inputs).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def test_another_size_of_tile_is_worked_out_anew() -> None:
    """The key holds all that places depend on."""
    model = copy.deepcopy(llava_next("clip", "sdpa"))
    family = family_for(model)
    canvas, cpu = family._canvas((100, 100)), torch.device("cpu")
    known = family._places(canvas, cpu)
    assert family._places(canvas, cpu) is known
    assert family._places(family._canvas((56, 112)), cpu) is not known
    model.config.vision_config.patch_size = 7
    other = family_for(model)._places(canvas, cpu)
    assert len(other.order) == 4 * len(known.order)


def test_a_grids_geometry_is_the_same_object_for_the_same_grid() -> None:
    cpu, box = torch.device("cpu"), torch.tensor([[0, 0, 4, 6]])
    first, again = (grid_geometry([[3, 2]], box, [6, 4], cpu) for _ in range(2))  # type: ignore[list-item, arg-type]
    assert first is again and first.grids == ((3, 2),) and first.image_size == (6, 4)
    assert grid_geometry([(3, 2)], box * 2, (6, 4), cpu) is not first
    assert grid_geometry([(3, 2)], box, (6, 4), cpu, cropped=True) is not first
