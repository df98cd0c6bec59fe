"""Methods by name: options behind a name, methods that hold methods, and methods of other packages."""

import dataclasses
import sys
import types
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch

import foveate
from foveate.asking_again import Spelled
from foveate.cli import lists
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
        (
            dataclasses.make_dataclass("All", [], bases=(Brightest,), namespace={"name": "all"}),
            ValueError,
            "stands for",
        ),
        (
            dataclasses.make_dataclass(
                "Needy",
                [("need", int, dataclasses.field(kw_only=True))],
                bases=(Brightest,),
                namespace={"name": "needy"},
            ),
            TypeError,
            "Needy.need has no default",
        ),
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


def test_a_package_that_exits_when_imported_is_left_out(fresh, monkeypatch, tmp_path):
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("gone", "leaves_at_once:Method", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.warns(UserWarning, match="'gone' .* is left out: SystemExit"):
        assert "adafv" in known_methods()


def test_brackets_in_another_package_s_words_are_printed(fresh, capsys):
    kind = dataclasses.make_dataclass("Bracketed", [], bases=(Brightest,), namespace={"name": "bracketed"})
    kind.__doc__ = "What [/red] leaves."
    register(kind)
    lists.list_methods(as_json=False)
    assert "[/red]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, error, match",
    [
        ("cover:special_tokens=false", TypeError, "special_tokens must be True or False, got 'false'"),
        ("cover:special_tokens=0", TypeError, "special_tokens must be True or False"),
        ("cover:power=abc", TypeError, "power must be a number, got 'abc'"),
        ("cover:power=nan", TypeError, "power must be a number"),
        ("merged:threshold=None:cover", TypeError, "threshold must be a number, got None"),
        ("merged:cover:power=True", ValueError, "power must be a number, got True"),
        ("auto:floor=x:cover", ValueError, "floor 'x' is no budget"),
        ("auto:floor=1:cover", ValueError, "floor 1 may mean all tokens or a single one"),
        ("cover:power=3:power=4", ValueError, "power twice"),
        ("ask-again:first=0.1:first=0.2:cover", ValueError, "first twice"),
        ("merged:", ValueError, "merged:cdpruner"),
        ("merged::cover", ValueError, "merged:cdpruner"),
        (foveate.Cover(), TypeError, "is a text such as 'cover', got Cover"),
        (foveate.Cover, TypeError, "got Cover"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_values_that_would_mean_something_else_are_refused(name, error, match):
    make = Spelled.read if isinstance(name, str) and name.startswith("ask-again") else get_pruner
    with pytest.raises(error, match=match):
        make(name)


def test_options_beside_a_wrapper_s_name_are_its_own_or_the_held_method_s():
    assert get_pruner("merged:cover", power=3.0, threshold=0.5, keep=7) == foveate.Merged(
        foveate.Cover(power=3.0, keep=7), threshold=0.5
    )
    assert get_pruner("merged:centered:cdpruner", words="max").innermost.words == "max"
    assert get_pruner("merged:random", seed=3).method.seed == 3
    with pytest.raises(TypeError, match="nothing_like_it"):
        get_pruner("merged:cover", nothing_like_it=1)


CHOICES = {
    "unsorted": torch.tensor([5, 1, 3]),
    "twice": torch.tensor([1, 1, 3]),
    "too many": torch.arange(10),
    "too few": torch.arange(2),
    "none": torch.arange(0),
    "outside": torch.tensor([0, 1, 10**6]),
    "negative": torch.tensor([-1, 0, 1]),
    "two-dimensional": torch.arange(3)[None],
    "a mask": torch.arange(108) < 3,
    "int32": torch.arange(3, dtype=torch.int32),
    "a list": [0, 1, 2],
}


@dataclasses.dataclass
class Fixed(Pruner):
    """Chooses what it is told, whatever there is."""

    chosen: object = None

    name: ClassVar[str] = "fixed"

    def choose(self, visual, text, budget):
        return self.chosen


@pytest.mark.parametrize("case", CHOICES)
def test_a_choice_that_is_none_is_refused(case):
    with pytest.raises((ValueError, TypeError), match="fixed must choose"):
        Fixed(keep=3, chosen=Choice(CHOICES[case])).select(picture())


def test_a_choice_is_checked_for_the_rest_too():
    visual, three = picture(), torch.arange(3)
    assert torch.equal(Fixed(keep=3, chosen=Choice(three)).select(visual).indices, three)
    for wrong in (None, three):
        with pytest.raises(TypeError, match="fixed must choose a foveate.pruners.Choice"):
            Fixed(keep=3, chosen=wrong).select(visual)
    with pytest.raises(ValueError, match="score all 108 tokens, and 'few' is"):
        Fixed(keep=3, chosen=Choice(three, {"few": torch.zeros(3)})).select(visual)
    few = Fixed(keep=3, chosen=Choice(torch.arange(2)))
    few.adaptive = True
    assert len(few.select(visual)) == 2
    few.chosen = Choice(torch.arange(4))
    with pytest.raises(ValueError, match="1 to 3 of 108"):
        few.select(visual)


@pytest.mark.parametrize(
    "given, error", [({}, TypeError), (torch.rand(108), TypeError), ({"score": torch.rand(3)}, ValueError)]
)
@pytest.mark.parametrize("wrap", [lambda method: method, foveate.Auto])
def test_scores_that_rank_nothing_are_refused(given, error, wrap):
    kind = dataclasses.make_dataclass(
        "Given", [], bases=(Scorer,), namespace={"name": "given", "score": lambda self, visual, text: given}
    )
    with pytest.raises(error, match="given must"):
        wrap(kind(keep=0.1)).select(picture())


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


def test_a_wrapper_counts_the_words_that_its_method_counts() -> None:
    """Who hands a method its text, in a call or in a server, asks what is outermost."""
    assert get_pruner("merged:cover").special_tokens and not get_pruner("merged:mmtok").special_tokens
    assert not get_pruner("merged:centered:cdpruner:special_tokens=False").special_tokens
    assert get_pruner("saliency").special_tokens
