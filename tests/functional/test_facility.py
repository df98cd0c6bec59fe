"""Facility location against the formula written out in float64."""

import subprocess
import sys

import pytest
import torch

from foveate.functional import cosine_cover, facility, facility_location, lazy, shifted_cosine_cover


def literal(likeness, weight, budget):
    """The greedy written out: every candidate's gain from the definition, ties to the earlier; and F after each."""
    likeness, weight = likeness.double(), weight.double()
    chosen, values = [], []

    def value(tokens):
        total = 0.0
        for i in range(len(likeness)):
            total += float(weight[i]) * max((float(likeness[i, j]) for j in tokens), default=0.0)
        return total

    for _ in range(min(budget, likeness.shape[1])):
        best = None
        for j in range(likeness.shape[1]):
            if j in chosen:
                continue
            found = value([*chosen, j])
            if best is None or found > best[0] + 1e-12:
                best = (found, j)
        chosen.append(best[1])
        values.append(best[0])
    whole = value(range(likeness.shape[1]))
    return chosen, [one / whole for one in values]


def powered(visual, power):
    unit = torch.nn.functional.normalize(visual.double(), dim=1)
    return (unit @ unit.T).clamp(min=0) ** power


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows, columns, budget", [(12, 17, 5), (30, 9, 8), (1, 6, 6)])
def test_the_greedy_is_the_formula(seed, rows, columns, budget):
    generator = torch.Generator().manual_seed(seed)
    likeness = torch.rand(rows, columns, generator=generator)
    weight = torch.rand(rows, generator=generator)
    order, covered = facility_location(likeness, weight, budget)
    chosen, values = literal(likeness, weight, budget)
    gains = [after > before + 1e-6 for before, after in zip([0, *values], values, strict=False)]
    told = sum(gains)  # where nothing is gained any more the formula has no preference
    assert order.tolist()[:told] == chosen[:told] and len(set(order.tolist())) == budget
    torch.testing.assert_close(covered.double(), torch.tensor(values, dtype=torch.float64), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("power", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [1024, 7])
def test_tokens_cover_tokens(power, dtype, side, monkeypatch):
    monkeypatch.setattr(facility, "_SIDE", side)
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(33, 10, generator=generator).to(dtype)
    weight = torch.rand(33, generator=generator)
    order, covered = cosine_cover(visual, weight, 12, power)
    chosen, values = literal(powered(visual, power), weight, 12)
    assert order.tolist() == chosen
    torch.testing.assert_close(covered.double(), torch.tensor(values, dtype=torch.float64), atol=1e-6, rtol=1e-5)


def test_a_table_in_two_bytes_a_cell_chooses_alike(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    visual, weight = torch.randn(60, 8, generator=generator), torch.rand(60, generator=generator)
    chosen, values = literal(powered(visual, 8.0), weight, 15)
    monkeypatch.setattr(facility, "_WHOLE", 1)
    order, covered = cosine_cover(visual, weight, 15)
    assert order.tolist() == chosen
    torch.testing.assert_close(covered.double(), torch.tensor(values, dtype=torch.float64), atol=2e-4, rtol=1e-3)


@pytest.fixture
def without_a_table(monkeypatch):
    """As above 23 170 tokens; of the columns only as many are kept as must be."""
    monkeypatch.setattr(facility, "_TABLE", 1)
    monkeypatch.setattr(lazy, "_HELD", 1)


def film(seed, frames=8):
    """Tokens most of which stay from frame to frame, some the very same."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(30, 12, generator=generator)
    moves = [(torch.rand(30, 1, generator=generator) < 0.4) * torch.randn(30, 12, generator=generator)]
    return torch.cat([base + number * 0.2 * moves[0] for number in range(frames)])


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("power", [1.0, 3.0, 8.0])
def test_without_a_table_the_choice_is_the_formula_s(without_a_table, monkeypatch, power, held):
    if not held:  # directions are made anew for every column, three tokens at a time
        monkeypatch.setattr(lazy, "_UNIT", 1)
        monkeypatch.setattr(lazy, "_BLOCK", 30)
    monkeypatch.setattr(lazy, "_SIDE", 7)
    generator = torch.Generator().manual_seed(1)
    visual, weight = torch.randn(33, 10, generator=generator), torch.rand(33, generator=generator)
    order, covered = cosine_cover(visual, weight, 12, power)
    chosen, values = literal(powered(visual, power), weight, 12)
    assert order.tolist() == chosen
    torch.testing.assert_close(covered.double(), torch.tensor(values, dtype=torch.float64), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("function, budget", [(cosine_cover, 240), (cosine_cover, 60), (shifted_cosine_cover, 60)])
def test_without_a_table_the_choice_is_the_same(monkeypatch, seed, function, budget):
    visual, weight = film(seed), torch.rand(240, generator=torch.Generator().manual_seed(seed))
    weight[::7] = 0.0
    monkeypatch.setattr(facility, "_WHOLE", 1)
    tabled = function(visual, weight, budget)
    monkeypatch.setattr(facility, "_TABLE", 1)
    monkeypatch.setattr(lazy, "_HELD", 240 * 70)  # fewer columns than are made
    made = function(visual, weight, budget)
    told = int((tabled[1].diff() > 1e-6).sum()) + 1  # where nothing is gained there is no preference but rounding's
    assert torch.equal(made[0][:told], tabled[0][:told]) and sorted(made[0].tolist()) == sorted(set(made[0].tolist()))
    assert len(made[0]) == budget and told >= 40
    torch.testing.assert_close(made[1], tabled[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("enough, least", [(0.3, 1), (0.8, 20), (0.999, 1)])
def test_without_a_table_it_ends_when_enough_is_covered(monkeypatch, enough, least):
    visual, weight = film(4), torch.rand(240, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(facility, "_WHOLE", 1)
    tabled = cosine_cover(visual, weight, 200, enough=enough, least=least)
    monkeypatch.setattr(facility, "_TABLE", 1)
    made = cosine_cover(visual, weight, 200, enough=enough, least=least)
    assert torch.equal(made[0], tabled[0]) and len(made[0]) < 200


@pytest.mark.parametrize("budget", [1, 5, 6, 9])
@pytest.mark.parametrize("case", ["equal tokens", "no weight", "zero tokens"])
def test_without_a_table_degenerate_videos_have_an_exact_budget(without_a_table, budget, case):
    test_degenerate_images_still_have_an_exact_budget(budget, case)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_without_a_table_memory_grows_with_the_tokens():
    """Peak memory of a fresh process, less that before the call, with few columns kept."""
    program = (
        "import sys, torch; from foveate.functional import cosine_cover\n"
        "facility, lazy = (sys.modules['foveate.functional.' + name] for name in ('facility', 'lazy'))\n"
        "facility._TABLE, lazy._HELD, tokens = 1, 1, int(sys.argv[1])\n"
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "visual = torch.randn(tokens, 16, dtype=torch.bfloat16)\n"
        "cosine_cover(visual[:64], torch.rand(64), 2)\n"
        "before = peak(); cosine_cover(visual, torch.rand(tokens), 3); print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, "12000"], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 48 << 10  # KiB; a table in two bytes a cell is 275 MiB


def test_an_accelerator_s_walk_chooses_as_the_cpu_s(monkeypatch):
    """The full pass of every step, which accelerators make, and the delta walk of the CPU."""
    generator = torch.Generator().manual_seed(3)
    visual, weight = torch.randn(80, 6, generator=generator), torch.rand(80, generator=generator)
    walked = cosine_cover(visual, weight, 40)
    passes = []

    def full(table, before, covered, weight, gain):
        passes.append(1)
        return facility._gain(table, covered, weight)[0]

    monkeypatch.setattr(facility, "_less", full)
    passed = cosine_cover(visual, weight, 40)
    assert len(passes) == 39
    assert torch.equal(walked[0], passed[0])
    torch.testing.assert_close(walked[1], passed[1])


@pytest.mark.parametrize("enough", [0.3, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("least", [1, 20])
def test_it_may_end_when_enough_is_covered(enough, least):
    generator = torch.Generator().manual_seed(4)
    visual, weight = torch.randn(60, 5, generator=generator), torch.rand(60, generator=generator)
    order, covered = cosine_cover(visual, weight, 50)
    first = max(least, 1 + int((covered < enough).sum()))
    ended, told = cosine_cover(visual, weight, 50, enough=enough, least=least)
    assert torch.equal(ended, order[: min(first, 50)]) and torch.equal(told, covered[: len(ended)])


def test_ties_go_to_the_earlier_token():
    visual = torch.eye(4).repeat(2, 1)  # every token twice
    order, covered = cosine_cover(visual, torch.ones(8), 6)
    assert order.tolist() == [0, 1, 2, 3, 4, 5] and covered[3] == 1


@pytest.mark.parametrize("budget", [1, 5, 6, 9])
@pytest.mark.parametrize("case", ["equal tokens", "no weight", "zero tokens"])
def test_degenerate_images_still_have_an_exact_budget(budget, case):
    visual = {"equal tokens": torch.ones(6, 3), "zero tokens": torch.zeros(6, 3)}.get(case, torch.randn(6, 3))
    weight = torch.zeros(6) if case == "no weight" else torch.ones(6)
    order, covered = cosine_cover(visual, weight, budget)
    assert sorted(set(order.tolist())) == sorted(order.tolist()) and len(order) == min(6, budget)
    assert bool(torch.isfinite(covered).all()) and covered[-1] == 1
    if case == "equal tokens":
        assert order[0] == 0


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: facility_location(torch.rand(3, 4), torch.rand(3), 0), ValueError, "keeps no token"),
        (lambda: facility_location(torch.rand(3, 4), torch.rand(3), 1.5), TypeError, "must be an int"),
        (lambda: facility_location(torch.rand(3, 4), torch.rand(4), 1), ValueError, "one value for each of the 3"),
        (lambda: facility_location(torch.rand(3), torch.rand(3), 1), ValueError, r"\(R, N\)"),
        (lambda: facility_location(-torch.rand(3, 4), torch.rand(3), 1), ValueError, "must not be negative"),
        (lambda: facility_location(torch.rand(3, 4).long(), torch.rand(3), 1), TypeError, "floating"),
        (lambda: facility_location(torch.full((3, 4), float("nan")), torch.rand(3), 1), ValueError, "NaN"),
        (lambda: cosine_cover(torch.rand(3, 4), -torch.rand(3), 1), ValueError, "weight must not be negative"),
        (lambda: cosine_cover(torch.rand(3, 4), torch.rand(3), 1, power=0), ValueError, "power"),
        (lambda: cosine_cover(torch.rand(3, 4), torch.rand(3), 1, power=float("inf")), ValueError, "power"),
        (lambda: cosine_cover(torch.full((3, 4), float("inf")), torch.rand(3), 1), ValueError, "NaN or infinity"),
        (lambda: cosine_cover(torch.rand(3, 4), torch.full((3,), float("nan")), 1), ValueError, "NaN or infinity"),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_large_table_takes_two_bytes_a_cell():
    """Peak memory of a fresh process, less that of the same process before the call: bytes, not time. With the limit as
    it is, 20 000 tokens stay under a gibibyte; here it is lower, since they take a minute."""
    program = (
        "import sys, torch; from foveate.functional import cosine_cover\n"
        "facility = sys.modules['foveate.functional.facility']\n"
        "facility._WHOLE >>= int(sys.argv[1]); facility._BLOCK >>= 2\n"
        "torch.set_num_threads(2)\n"
        # Not getrusage's figure, which begins with that of the process that started this one.
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "visual = torch.randn(6000, 64, dtype=torch.bfloat16)\n"
        "cosine_cover(visual[:64], torch.rand(64), 2)\n"
        "before = peak(); cosine_cover(visual, torch.rand(6000), 3); print(peak() - before)"
    )
    whole, halved = (
        int(subprocess.run([sys.executable, "-c", program, shift], capture_output=True, text=True, check=True).stdout)
        for shift in ("0", "4")
    )
    assert whole > 130 << 10 and halved < 110 << 10  # KiB: 137 MiB of floats, 69 of two bytes, and what is beside them


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerator_is_not_waited_for():
    visual, weight = torch.randn(300, 16, device="cuda"), torch.rand(300, device="cuda")
    cosine_cover(visual, weight, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        order, _ = cosine_cover(visual, weight, 30)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert order.tolist() == cosine_cover(visual.cpu(), weight.cpu(), 30)[0].tolist()
