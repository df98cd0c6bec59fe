"""Steps that are repeated: what a CUDA graph replays is what a loop does, tested without one on the CPU."""

import warnings

import pytest
import torch

from foveate.functional import (
    apart,
    conditional_dpp,
    cosine_cover,
    coverage,
    different_in_groups,
    diversity,
    facility,
    facility_location,
    focus,
    focus_scan_refine,
    max_min_diversity,
    multimodal_cover,
    optimal_preservation,
    principal,
    saliency_coverage,
    salient_and_apart,
    shifted_cosine_cover,
    steps,
)


class Replayed:
    """Stands in for a CUDA graph: does again, on the same tensors, what was recorded."""

    def __init__(self, again):
        self.again, self.times = again, 0

    def replay(self):
        self.times += 1
        self.again()


@pytest.fixture
def recordings(monkeypatch):
    """As on a CUDA device, from the choice of the way to the replays."""
    made = []

    def recorded(first, again, device):
        first()
        made.append(Replayed(again))
        return made[-1]

    for module in (apart, coverage, diversity, facility, focus, principal, steps):
        monkeypatch.setattr(module, "may_look", lambda _: False)
    monkeypatch.setattr(steps, "_records", lambda device, times: times >= steps._FEWEST)
    monkeypatch.setattr(steps, "_recorded", recorded)
    return made


def counted(times):
    """How ``times`` steps of a count with a record of two rows turn out."""
    count, found, squares = torch.zeros(1), torch.full((times,), -1.0), torch.full((times, 2), -1.0)

    def step(one, square):
        one.copy_(count)
        square.copy_(torch.stack([count.square(), -count], dim=1))
        count.add_(1)

    done = steps.repeat(step, times, found, squares)
    return done, count, found, squares


@pytest.mark.parametrize("times", [0, 1, 23, 24, 25, 26, 33, 34, 35, 288])
def test_every_step_is_done_once_and_in_order(times, recordings):
    done, count, found, squares = counted(times)
    here = torch.arange(times).float()
    assert done == times and count == times
    assert torch.equal(found, here) and torch.equal(squares, torch.stack([here.square(), -here], dim=1))
    assert len(recordings) == (times >= 24)
    assert sum(one.times for one in recordings) == (0 if times < 24 else (times - 2) // 8)


def test_it_may_end_early_where_values_may_be_looked_at():
    found = torch.full((30,), -1)

    def step(one):
        if found[16] == 1:
            return True
        one.fill_(1)
        return False

    assert steps.repeat(step, 30, found) == 17
    assert found.tolist() == [1] * 17 + [-1] * 13


def test_without_a_recording_the_rest_is_done_as_anywhere(recordings, monkeypatch):
    monkeypatch.setattr(steps, "_recorded", lambda first, again, device: first() and None)
    done, count, found, _ = counted(40)
    assert done == count == 40 and torch.equal(found, torch.arange(40).float())


def test_gradients_are_not_recorded():
    start = torch.zeros(3, requires_grad=True)
    total, found = start * 1, torch.zeros(5, 3)

    def step(one):
        torch.add(total, start + 1, out=total)
        one.copy_(total)

    steps.repeat(step, 5, found)
    assert not found.requires_grad and found[:, 0].tolist() == [1, 2, 3, 4, 5]


CHOICES = {
    "divprune": lambda v, s, r, g, k: max_min_diversity(v, k),
    "weighted": lambda v, s, r, g, k: max_min_diversity(v, k, r),
    "cdpruner": lambda v, s, r, g, k: conditional_dpp(v, r, k),
    "scope": lambda v, s, r, g, k: saliency_coverage(v, s, k),
    "tops": lambda v, s, r, g, k: optimal_preservation(v, s, k, 0.3, 0.7),
    "tops by mean": lambda v, s, r, g, k: optimal_preservation(v, s, k, 0.3, 0.7, "mean"),
    "fsr": lambda v, s, r, g, k: focus_scan_refine(v, r, s, k),
    "fsr of a small focus": lambda v, s, r, g, k: focus_scan_refine(v, r, s, k, mass=0.3),
    "agilepruner": lambda v, s, r, g, k: salient_and_apart(v, s, k),
    "prunesid": lambda v, s, r, g, k: different_in_groups(v, s, g, 5, k),
    "cover": lambda v, s, r, g, k: cosine_cover(v, r, k),
    "mmtok": lambda v, s, r, g, k: multimodal_cover(v[:5], v, v, k),
}


def dense(found):
    if isinstance(found, tuple):
        return [one for part in found for one in dense(part)]
    return [found if isinstance(found, torch.Tensor) else found.dense()]


def tied(tokens, seed):
    """Corners of a cube: their cosines are exact in whatever order they are summed, and many are the same."""
    return torch.randint(0, 2, (tokens, 16), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1


def clustered(tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, 24, generator=generator)
    return centres[torch.randint(12, (tokens,), generator=generator)] + torch.randn(tokens, 24, generator=generator) / 2


@pytest.mark.parametrize("make", [tied, clustered])
@pytest.mark.parametrize("name", CHOICES)
def test_an_accelerator_chooses_as_the_cpu(name, make, request):
    """The whole table at once, nothing looked at, steps replayed; against the walks of the CPU."""
    generator = torch.Generator().manual_seed(7)
    visual, group = make(90, 0), torch.randint(0, 5, (90,), generator=generator)
    saliency, relevance = torch.randint(1, 6, (2, 90), generator=generator) / 4.0
    budgets = (5, 26, 45)
    wanted = [dense(CHOICES[name](visual, saliency, relevance, group, budget)) for budget in budgets]
    recordings = request.getfixturevalue("recordings")
    for budget, expected in zip(budgets, wanted, strict=True):
        found = dense(CHOICES[name](visual, saliency, relevance, group, budget))
        assert torch.equal(found[0], expected[0]), budget
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert len(recordings) >= 2 and all(one.times for one in recordings)


@pytest.mark.parametrize("cover", [facility_location, shifted_cosine_cover])
def test_an_accelerator_s_cover_is_greedy(cover, recordings):
    """Every token taken adds as much as any, by the formula in float64 and to float32's rounding."""
    visual, weight = clustered(120, 1), torch.rand(120, generator=torch.Generator().manual_seed(2))
    unit = torch.nn.functional.normalize(visual.double(), dim=1)
    likeness = (1 + unit @ unit.T) / 2
    order, share = cover(likeness.float() if cover is facility_location else visual, weight, 60)
    covered, before = torch.zeros(120, dtype=torch.float64), 0.0
    most = likeness.amax(dim=1) @ weight.double()
    for token, reached in zip(order.tolist(), share.tolist(), strict=True):
        added = weight.double() @ (likeness - covered[:, None]).clamp(min=0)
        assert added[token] >= added.max() - 1e-7 * most
        covered = torch.maximum(covered, likeness[:, token])
        assert reached == pytest.approx(float(covered @ weight.double() / most), abs=1e-6) and reached >= before
        before = reached
    assert len(recordings) == 1


def test_a_table_too_large_to_hold_changes_nothing(recordings, monkeypatch):
    visual, weight = tied(60, 3), torch.ones(60)
    wanted = (
        max_min_diversity(visual, 30, weight)[0],
        conditional_dpp(visual, weight, 30),
        salient_and_apart(visual, weight, 30)[0],
    )
    monkeypatch.setattr(steps, "_AHEAD", 1)
    found = (
        max_min_diversity(visual, 30, weight)[0],
        conditional_dpp(visual, weight, 30),
        salient_and_apart(visual, weight, 30)[0],
    )
    assert all(map(torch.equal, found, wanted))


# --- on a GPU -----------------------------------------------------------------------------------------------

there = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def replays(monkeypatch):
    """How many CUDA graphs have been replayed how often."""
    found, replay = [], torch.cuda.CUDAGraph.replay

    def counting(self):
        found.append(self)
        replay(self)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counting)
    monkeypatch.setattr(steps, "_failed", False)
    return found


class TestOnADevice:
    pytestmark = there

    @pytest.mark.parametrize("name", CHOICES)
    def test_replays_choose_as_the_cpu(self, name, replays, monkeypatch):
        """No warning, and no wait. With exact cosines ties are ties there too, where nothing else is rounded; where
        something is (CDPruner's updates), the device's own steps, launched one by one, say what is to be chosen."""
        generator = torch.Generator().manual_seed(7)
        make = clustered if name in ("cdpruner", "mmtok") else tied
        visual, group = make(300, 0), torch.randint(0, 5, (300,), generator=generator)
        saliency, relevance = torch.randint(1, 6, (2, 300), generator=generator) / 4.0
        wanted = dense(CHOICES[name](visual, saliency, relevance, group, 60))[0]
        inputs = [one.cuda() for one in (visual, saliency, relevance, group)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="Synchronization debug mode")
            CHOICES[name](*inputs, 60)  # libraries start up once
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = CHOICES[name](*inputs, 60)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert len(replays) >= 2 * 7
        if name == "cdpruner":
            monkeypatch.setattr(steps, "_failed", True)
            wanted = dense(CHOICES[name](*inputs, 60))[0].cpu()
        assert torch.equal(dense(found)[0].cpu(), wanted)

    def test_memory_does_not_grow(self, replays):
        visual = clustered(600, 0).cuda()
        weight = torch.ones(600, device="cuda")
        for _ in range(3):
            cosine_cover(visual, weight, 40)
        before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
        for _ in range(20):
            cosine_cover(visual, weight, 40)
        assert (torch.cuda.memory_reserved(), torch.cuda.memory_allocated()) == before and replays

    def test_on_streams_of_their_own(self, replays):
        visual = clustered(600, 0).cuda()
        wanted = max_min_diversity(visual, 60)[0]
        torch.cuda.synchronize()
        found = []
        for _ in range(4):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                found.append(max_min_diversity(visual, 60)[0])
        torch.cuda.synchronize()
        assert all(torch.equal(one, wanted) for one in found)

    @pytest.mark.parametrize("when", ["capture_begin", "capture_end"])
    def test_where_recording_fails_the_choice_is_the_same(self, when, replays, monkeypatch):
        visual = clustered(300, 0).cuda()
        wanted = max_min_diversity(visual, 60)[0]
        count = len(replays)
        real = getattr(torch.cuda.CUDAGraph, when)

        def failing(self, *arguments, **options):
            if when == "capture_end":
                real(self)
            raise RuntimeError("not today")

        monkeypatch.setattr(torch.cuda.CUDAGraph, when, failing)
        with pytest.warns(RuntimeWarning, match="not today"):
            found = max_min_diversity(visual, 60)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = max_min_diversity(visual, 60)[0]
        assert torch.equal(found, wanted) and torch.equal(again, wanted) and len(replays) == count

    def test_a_step_that_cannot_be_recorded_is_done_as_anywhere(self, replays):
        count, found = torch.zeros(1, device="cuda"), torch.zeros(40, device="cuda")

        def step(one):
            one.fill_(float(count))
            count.add_(1)

        with pytest.warns(RuntimeWarning, match="cannot be recorded"):
            assert steps.repeat(step, 40, found) == 40
        assert found.tolist() == list(range(40)) and not replays

    def test_within_another_recording_there_is_none(self, replays):
        visual = clustered(300, 0).cuda()
        wanted = max_min_diversity(visual, 60)[0]
        count, graph = len(replays), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = max_min_diversity(visual, 60)[0]
        graph.replay()
        assert torch.equal(found, wanted) and len(replays) == count + 1
