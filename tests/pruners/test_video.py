"""Methods that know of frames: what they choose of a film written out, and of a picture, which has none."""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch

import foveate
from foveate.functional import kept_once, unique_in_frames
from foveate.pruners import Pruner, Scorer, get_pruner
from foveate.tokens import TextTokens, VisualTokens
from tests.pruners.test_pruners import geometry, picture, question

FRAMES, SIDE = 6, 3
EACH = SIDE * SIDE


def film(seed=0, frames=FRAMES, seconds=None, still=0.6):
    """Frames of 3 x 3 tokens, of which most stay as they are but for a little noise."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(EACH, 16, generator=generator)]
    for _ in range(frames - 1):
        new = torch.randn(EACH, 16, generator=generator)
        parts.append(torch.where(torch.rand(EACH, 1, generator=generator) < still, parts[-1] + 0.02 * new, new))
    where = geometry(*[(SIDE, SIDE)] * frames).as_frames(seconds)
    count = frames * EACH
    saliency, keys = torch.rand(count, generator=generator), torch.randn(count, 8, generator=generator)
    return VisualTokens(torch.cat(parts), where, saliency, True, keys, torch.randn(count, 12, generator=generator))


def cosine(one, other):
    return float(one.double() @ other.double() / (one.double().norm() * other.double().norm()))


@dataclasses.dataclass
class Seen(Scorer):
    """The brightest; remembers what it was shown."""

    name: ClassVar[str] = "seen"
    shown: ClassVar[list[VisualTokens]] = []

    def score(self, visual, text):
        self.shown.append(visual)
        return {"brightness": visual.features[:, 0].float()}


@pytest.fixture
def shown():
    Seen.shown.clear()
    return Seen.shown


# --- EVS and VidCom2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [EACH, EACH + 1, 20, 53])
def test_evs_keeps_the_first_frame_and_what_changed_most(seed, keep):
    visual = film(seed)
    change = [1 - cosine(visual.features[n], visual.features[n - EACH]) for n in range(EACH, len(visual))]
    ranked = sorted(range(EACH, len(visual)), key=lambda n: -change[n - EACH])
    wanted = sorted([*range(EACH), *ranked[: keep - EACH]])
    assert foveate.EVS(keep=keep).select(visual).indices.tolist() == wanted


def test_evs_thins_the_first_frame_where_the_budget_is_less():
    chosen = foveate.EVS(keep=4).select(film())
    alone = film(frames=1)
    assert torch.equal(chosen.indices, foveate.Uniform(keep=4).select(alone).indices)
    assert chosen.view.tolist() == [0] * 4
    assert torch.equal(foveate.EVS(keep=4).select(alone).indices, chosen.indices)


def test_a_picture_is_one_frame():
    """Its views are no frames: a crop is not compared with the crop before."""
    visual = picture()
    assert torch.equal(foveate.EVS(keep=20).select(visual).indices, foveate.Uniform(keep=20).select(visual).indices)
    one = unique_in_frames(visual.features, torch.zeros(108, dtype=torch.int64), 1, 20)[0]
    assert torch.equal(foveate.VidCom2(keep=20).select(visual).indices, one)
    as_film = dataclasses.replace(visual, geometry=visual.geometry.as_frames())
    for method in ("evs", "vidcom2"):
        chosen = [get_pruner(method, keep=40).select(one).indices for one in (visual, as_film)]
        assert not torch.equal(*chosen), method


@pytest.mark.parametrize("options", [{}, {"channels": 1.0}, {"temperature": 1.0}])
def test_vidcom2_is_its_function(options):
    visual = film()
    given = {"channels": 0.5, "temperature": 0.01, **options}
    kept, score = unique_in_frames(visual.features, visual.geometry.view, FRAMES, 20, **given)
    chosen = foveate.VidCom2(keep=20, **options).select(visual)
    assert torch.equal(chosen.indices, kept) and torch.equal(chosen.scores["uniqueness"], score)
    if options:
        assert not torch.equal(chosen.indices, foveate.VidCom2(keep=20).select(visual).indices)


@pytest.mark.parametrize("options", [{"channels": 0.0}, {"channels": math.nan}, {"temperature": 0.0}])
def test_vidcom2_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        foveate.VidCom2(**options)


# --- Changing ------------------------------------------------------------------------------------------------------


def anchors(visual, threshold):
    """By hand: which tokens stand for themselves, and who stands for each."""
    last, stands = {}, []
    for n, vector in enumerate(visual.features):
        place = n % EACH
        if place not in last or cosine(vector, visual.features[last[place]]) < threshold:
            last[place] = n
        stands.append(last[place])
    return sorted(set(stands)), stands


@pytest.mark.parametrize("seed", range(3))
def test_changing_shows_what_changes(shown, seed):
    visual = film(seed)
    new, stands = anchors(visual, 0.9)
    assert EACH < len(new) < len(visual)
    chosen = foveate.Changing(Seen(keep=8)).select(visual)
    (given,) = shown
    assert torch.equal(given.features, visual.features[new]) and torch.equal(given.saliency, visual.saliency[new])
    assert torch.equal(given.keys, visual.keys[new]) and torch.equal(given.encoded, visual.encoded[new])
    assert given.total == len(visual) and len(given.geometry) == len(new)
    brightest = sorted(new, key=lambda n: -float(visual.features[n, 0]))[:8]
    assert chosen.indices.tolist() == sorted(brightest)
    assert torch.equal(chosen.scores["brightness"], visual.features[stands, 0])
    assert torch.equal(chosen.scores["change"], kept_once(visual.features, *places(visual), 0.9)[1])


def places(visual):
    return visual.geometry.view, visual.geometry.row, visual.geometry.column


def test_changing_fills_up_with_what_changed_most(shown):
    visual = film()
    new, _ = anchors(visual, 0.9)
    keep = len(new) + 5
    change = foveate.Changing(Seen(keep=keep)).select(visual).scores["change"]
    others = sorted(set(range(len(visual))) - set(new), key=lambda n: -float(change[n]))
    chosen = foveate.Changing(Seen(keep=keep)).select(visual)
    assert chosen.indices.tolist() == sorted([*new, *others[:5]]) and not shown
    few = foveate.Changing(Seen(keep=keep), fill=False)
    assert few.adaptive and few.select(visual).indices.tolist() == new
    assert not foveate.Changing("cover").adaptive


def test_changing_around_one_that_decides_how_many():
    visual, text = film(), question()
    new, _ = anchors(visual, 0.9)
    chosen = foveate.Changing("auto:floor=2:cover", keep=1.0).select(visual, text)
    alone = get_pruner("auto:floor=2:cover", keep=1.0).select(visual.some(torch.tensor(new)), text)
    assert chosen.indices.tolist() == [new[n] for n in alone.indices.tolist()]


def test_changing_around_one_that_merges():
    visual = film()
    new, _ = anchors(visual, 0.9)
    chosen = foveate.Changing("pool", keep=5).select(visual)
    alone = foveate.Pool(keep=5).select(visual.some(torch.tensor(new)))
    torch.testing.assert_close(chosen.gather(visual.features), alone.gather(visual.features[new]))


def test_of_a_picture_all_is_new():
    visual, text = picture(), question()
    for method in ("cover", "divprune", "auto:cover"):
        plain = get_pruner(method, keep=9).select(visual, text)
        for around in ("changing", "spread"):
            if around == "spread" and plain.indices.numel() != 9:
                continue
            if (around, method) != ("spread", "auto:cover"):
                found = get_pruner(f"{around}:{method}", keep=9).select(visual, text)
                assert torch.equal(found.indices, plain.indices), (around, method)
    assert len(get_pruner("changing:fill=False:divprune", keep=1.0).select(visual)) == 108


def test_changing_is_told_a_threshold():
    with pytest.raises(ValueError, match="threshold"):
        foveate.Changing("cover", threshold=2.0)
    assert get_pruner("changing:threshold=0.5:fill=False:cover").threshold == 0.5


# --- Spread --------------------------------------------------------------------------------------------------------


def attention(visual, text, words=5, scale=100.0):
    """(N,) by hand: the largest softmax over all tokens of the video."""
    found = torch.zeros(len(visual), dtype=torch.float64)
    for word in text.embeddings[:words]:
        likeness = torch.tensor([scale * cosine(word, one) for one in visual.features], dtype=torch.float64)
        found = torch.maximum(found, likeness.softmax(dim=0))
    return found


def webster(mass, budget, firsts=()):
    had = [0] * len(mass)
    for frame in firsts:
        had[frame] += 1
    while sum(had) < budget:
        open_ = [t for t in range(len(mass)) if had[t] < EACH]
        had[max(open_, key=lambda t: (float(mass[t]) / (2 * had[t] + 1), -t))] += 1
    return had


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [3, 14, 40])
def test_spread_follows_the_question(shown, seed, keep):
    visual, text = film(seed, still=0.0), question()
    mass = attention(visual, text).view(FRAMES, EACH).sum(dim=1)
    had = webster(mass, keep)
    chosen = foveate.Spread(Seen(keep=keep), floor=0).select(visual, text)
    assert [int((chosen.view == t).sum()) for t in range(FRAMES)] == had
    assert 0 in had or keep == 40
    for t in range(FRAMES):
        ours = sorted(range(t * EACH, (t + 1) * EACH), key=lambda n: -float(visual.features[n, 0]))[: had[t]]
        assert chosen.indices[chosen.view == t].tolist() == sorted(ours)
    torch.testing.assert_close(
        chosen.scores["share"].double(), (mass / mass.sum()).repeat_interleave(EACH), atol=1e-5, rtol=1e-4
    )
    for one in shown:  # a frame by itself, as a view numbered 0
        assert len(one) == EACH and one.geometry.grids == ((SIDE, SIDE),) and not bool(one.geometry.view.any())


@pytest.mark.parametrize(
    "options, seconds, stretches",
    [
        ({"frames": 2}, None, [(0, 1), (2, 3), (4, 5)]),
        ({"seconds": 2}, 1.0, [(0, 1), (2, 3), (4, 5)]),
        ({"seconds": 1}, 0.4, [(0, 1, 2), (3, 4), (5,)]),
        ({"seconds": 2}, None, [(0, 1, 2, 3), (4, 5)]),  # not known: four frames
    ],
)
def test_every_stretch_of_time_keeps_something(options, seconds, stretches):
    visual, text = film(seconds=seconds, still=0.0), question()
    mass = attention(visual, text).view(FRAMES, EACH).sum(dim=1)
    firsts = [max(some, key=lambda t: float(mass[t])) for some in stretches]
    chosen = foveate.Spread(Seen(keep=10), **options).select(visual, text)
    assert [int((chosen.view == t).sum()) for t in range(FRAMES)] == webster(mass, 10, firsts)


def test_spread_evenly_and_by_uniqueness():
    visual = film(still=0.0)
    even = foveate.Spread("divprune", by="even", keep=14)
    assert not even.reads_text
    assert [int((even.select(visual).view == t).sum()) for t in range(FRAMES)] == [3, 3, 2, 2, 2, 2]
    own = foveate.Spread("divprune", by="uniqueness", floor=0, keep=30).select(visual)
    counts = [int((own.view == t).sum()) for t in range(FRAMES)]
    unusual = own.scores["uniqueness"].view(FRAMES, EACH).mean(dim=1)
    assert counts[int(unusual.argmax())] == max(counts) and sum(counts) == 30


def test_spread_asks_for_the_question():
    nothing = TextTokens(torch.empty(0, 16), torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.bool))
    with pytest.raises(ValueError, match="spread reads the question"):
        foveate.Spread("divprune", keep=5).select(film(), nothing)
    assert (
        foveate.Spread("divprune").text_span == "turn" and foveate.Spread("divprune", by="even").text_span == "prompt"
    )
    assert get_pruner("spread:adafv", text_span="prompt").text_span == "prompt"


@dataclasses.dataclass
class Loose(Pruner):
    """Keeps what it likes."""

    name: ClassVar[str] = "loose"
    exact: ClassVar[bool] = False

    def choose(self, visual, text, budget):
        raise AssertionError


@pytest.mark.parametrize(
    "method, match",
    [
        ("evs", "looks across frames"),
        ("vidcom2", "looks across frames"),
        ("changing:cover", "put it outside instead, as in changing:spread:cover"),
        ("spread:cover", "looks across frames"),
        ("auto:cover", "chooses its own number"),
        ("pool", "merged:spread:cover"),
        (Loose(), "exactly"),
    ],
)
def test_what_spread_cannot_hold(method, match):
    with pytest.raises(ValueError, match=match):
        foveate.Spread(method)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"by": "chance"}, ValueError),
        ({"floor": -1}, ValueError),
        ({"floor": 0.5}, TypeError),
        ({"frames": 0}, ValueError),
        ({"seconds": 0}, ValueError),
        ({"temperature": math.inf}, ValueError),
    ],
)
def test_spread_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        foveate.Spread("cover", **options)


def test_wrappers_go_around_each_other():
    visual, text = film(), question()
    for method in ("changing:spread:cover", "merged:changing:spread:adafv", "spread:centered:divprune"):
        chosen = get_pruner(method, keep=11).select(visual, text)
        assert len(chosen) == 11, method


@pytest.mark.parametrize("method", [*foveate.METHODS, "changing:cover", "spread:cover"])
def test_a_still_film_has_an_exact_budget(method):
    """Every frame the same, for every method."""
    one = film(frames=1)
    times = 8
    where = geometry(*[(SIDE, SIDE)] * times).as_frames()
    whole = [part.repeat(times, *[1] * (part.ndim - 1)) for part in (one.features, one.saliency, one.keys, one.encoded)]
    visual = VisualTokens(whole[0], where, whole[1], True, whole[2], whole[3])
    chosen = get_pruner(method, keep=12).select(visual, question())
    assert len(chosen) == 12
    if method in ("evs", "changing:cover"):
        assert set(range(EACH)) <= set(chosen.indices.tolist())


# --- what travels ----------------------------------------------------------------------------------------------------


def test_some_tokens_have_views_of_their_own():
    visual = film(seconds=0.5)
    there = torch.tensor([0, 4, 20, 21, 50])
    some = visual.some(there)
    assert some.geometry.view.tolist() == [0, 0, 1, 1, 2] and some.geometry.frames == (0.0, 1.0, 2.5)
    assert some.geometry.grids == ((SIDE, SIDE),) * 3 and some.geometry.in_seconds and not some.full_grid
    assert torch.equal(some.geometry.row, visual.geometry.row[there])
    assert torch.equal(some.geometry.column, visual.geometry.column[there])
    assert torch.equal(some.geometry.boxes, visual.geometry.boxes[there])
    assert some.total == len(visual) and some.some(torch.tensor([1, 3])).total == len(visual)
    assert not picture().some(torch.tensor([3])).geometry.frames
