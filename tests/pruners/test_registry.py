"""Methods by name: options behind a name, methods that hold methods, and methods of other packages."""

import dataclasses
import sys
import types
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch

import foveate
from foveate.cli.evaluate import parse_methods
from foveate.pruners import (
    INSIDE_METHODS,
    METHODS,
    WRAPPERS,
    Choice,
    Pruner,
    Scorer,
    Wrapper,
    get_pruner,
    known_methods,
    parse_method,
    register,
    registry,
    takes,
)
from tests.pruners.test_pruners import picture


@dataclasses.dataclass
class Reversed(Wrapper):
    """Shows its method the tokens from the last to the first."""

    twice: bool = dataclasses.field(default=False, kw_only=True)

    name: ClassVar[str] = "reversed"

    def choose(self, visual, text, budget):
        backwards = torch.arange(len(visual) - 1, -1, -1)
        turned = dataclasses.replace(visual, features=visual.features[backwards], saliency=visual.saliency[backwards])
        choice = self.method.choose(turned, text, budget)
        return Choice((len(visual) - 1 - choice.indices).sort().values)


@dataclasses.dataclass
class Brightest(Scorer):
    """Tokens of the largest first value."""

    name: ClassVar[str] = "brightest"

    def score(self, visual, text):
        return {"brightness": visual.features[:, 0].float(), "other": visual.features[:, 1].float()}


@pytest.fixture
def fresh():
    """Registries that forget what a test puts into them."""
    saved = [(known, dict(known)) for known in (METHODS, INSIDE_METHODS, WRAPPERS)]
    registry.load_entry_points.cache_clear()
    yield
    for known, before in saved:
        known.clear()
        known.update(before)
    registry.load_entry_points.cache_clear()


def test_a_method_of_ones_own_is_accepted_where_names_are(fresh):
    assert register(Brightest) is Brightest
    visual = picture()
    chosen = get_pruner("brightest", keep=5).select(visual)
    assert torch.equal(chosen.indices, visual.features[:, 0].float().topk(5).indices.sort().values)
    assert list(chosen.scores) == ["brightness", "other"]
    assert "brightest" in parse_methods("all") and foveate.serving.Policy("brightest").names == ("brightest",)
    assert known_methods()["brightest"] is Brightest
    register(Brightest)  # a module that is loaded twice
    with pytest.raises(ValueError, match="is taken by"):
        register(dataclasses.make_dataclass("Other", [], bases=(Brightest,), namespace={"name": "brightest"}))


@pytest.mark.parametrize(
    "wrong, error, match",
    [
        (object, TypeError, "dataclass derived from"),
        (Brightest(), TypeError, "dataclass derived from"),
        (type("Plain", (Brightest,), {"name": "plain"}), TypeError, "dataclass derived from"),
        (dataclasses.make_dataclass("Bare", [], bases=(Pruner,), namespace={"name": "bare"}), TypeError, "no choose"),
        (dataclasses.make_dataclass("Up", [], bases=(Brightest,), namespace={"name": "Up per"}), ValueError, "lower"),
        (dataclasses.make_dataclass("Trim", [], bases=(Brightest,), namespace={"name": "trim"}), ValueError, "taken"),
        (dataclasses.make_dataclass("Ada", [], bases=(Brightest,), namespace={"name": "adafv"}), ValueError, "taken"),
    ],
)
def test_what_is_no_method_is_not_registered(fresh, wrong, error, match):
    with pytest.raises(error, match=match):
        register(wrong)


def test_methods_of_installed_packages_come_by_entry_points(fresh, monkeypatch):
    module = types.ModuleType("brighter")
    module.Brightest = Brightest
    module.Nothing = 3
    monkeypatch.setitem(sys.modules, "brighter", module)
    points = [
        EntryPoint("brightest", "brighter:Brightest", registry.ENTRY_POINTS),
        EntryPoint("nothing", "brighter:Nothing", registry.ENTRY_POINTS),
        EntryPoint("lost", "not_installed_anywhere:Method", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: [one for one in points if one.group == group])
    with pytest.warns(UserWarning, match="left out") as warned:
        assert isinstance(get_pruner("brightest"), Brightest)
    assert len(warned) == 2  # and every other method goes on
    assert get_pruner("adafv").name == "adafv"


def test_options_before_a_name_are_the_wrapper_s_and_behind_it_the_method_s(fresh):
    register(Reversed)
    pruner = get_pruner("reversed:twice=True:prumerge:neighbours=3", keep=7)
    assert pruner == Reversed(foveate.PruMerge(neighbours=3, keep=7), twice=True)
    assert pruner.keep == 7 and pruner.method.keep == 7 and pruner.merges and pruner.reads_keys
    assert not get_pruner("reversed:divprune").reads_keys
    nested = get_pruner("reversed:reversed:random:seed=4", keep=0.5)
    assert nested.innermost == foveate.Random(seed=4, keep=0.5)
    kind, options = parse_method("reversed:saliency")
    assert kind is Reversed and options == {"method": foveate.Saliency()}
    assert not takes("random:seed=4", "seed") and takes("reversed:random", "seed")
    assert not takes("reversed:random:seed=4", "seed") and not takes("adafv", "seed")


def test_a_wrapper_has_its_method_s_budget_or_its_own(fresh):
    assert Reversed(foveate.Saliency(keep=0.3)).keep == 0.3
    outer = Reversed("saliency", keep=0.2)
    assert outer.method == foveate.Saliency(keep=0.2)
    assert dataclasses.replace(outer, keep=5).method.keep == 5
    assert Reversed("saliency") == Reversed(foveate.Saliency()) != Reversed("saliency", keep=3)
    visual = picture()
    assert torch.equal(
        Reversed("saliency", keep=9).select(visual).indices, foveate.Saliency(keep=9).select(visual).indices
    )


@pytest.mark.parametrize(
    "name, match",
    [
        ("reversed", "holds another method"),
        ("reversed:twice=True", "holds another method"),
        ("reversed:fastv", "prunes inside the LLM"),
        ("reversed:nobody", "unknown method"),
        ("reversed:keep=3:saliency", "no option"),
        ("reversed:method=3:saliency", "no option"),
        ("reversed:saliency:twice=True", "no option"),
        ("reversed:saliency:keep=3", "no option"),
        ("saliency:uniform", "no option"),
    ],
)
def test_names_that_do_not_compose_are_refused(fresh, name, match):
    register(Reversed)
    with pytest.raises(ValueError, match=match):
        parse_method(name)


def test_a_server_runs_them_and_hands_options_down(fresh):
    register(Reversed)
    policy = foveate.serving.Policy(
        "reversed:text", methods=["reversed:text:text_span=turn", "reversed:random", "text"],
        options={"text_span": "prompt", "twice": True},
    )  # fmt: skip
    assert policy.pruner("reversed:text", 0.2) == Reversed(foveate.TextSimilarity(0.2, text_span="prompt"), twice=True)
    assert policy.pruner("reversed:text:text_span=turn", 7).text_span == "turn"
    assert policy.pruner("text", 7).text_span == "prompt"
    assert policy.wish({"method": "reversed:random", "keep": 0.5}).method == "reversed:random"
    with pytest.raises(TypeError, match="options of reversed:text are twice, text_span"):
        foveate.serving.Policy("reversed:text", options={"min_share": 0.2})


@pytest.mark.parametrize("held", [3, None, foveate.FastV()])
def test_a_wrapper_holds_a_method_and_nothing_else(held):
    with pytest.raises(TypeError, match="holds a method that prunes before the LLM"):
        Reversed(held)


def test_a_wrapper_refuses_what_its_method_would():
    visual = dataclasses.replace(picture(), saliency=None)
    with pytest.raises(ValueError, match="reads visual saliency"):
        Reversed("saliency").select(visual)
    with pytest.raises(ValueError, match="reads the question"):
        Reversed("text").select(picture())
