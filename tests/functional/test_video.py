"""What changes from frame to frame, against slow loops written from the formulas."""

import math

import pytest
import torch

from foveate.functional import (
    change_in_place,
    frame_ratios,
    kept_once,
    shared_by_frames,
    unique_in_frames,
    uniqueness,
)
from foveate.functional.video import NEW

FRAMES, ROWS, COLUMNS, WIDTH = 5, 2, 3, 12


def film(seed=0, dtype=torch.float32, still=0.5):
    """(N, D) tokens of which some stay from frame to frame, all but a little noise; and where they lie."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(ROWS * COLUMNS, WIDTH, generator=generator)]
    for _ in range(FRAMES - 1):
        new = torch.randn(ROWS * COLUMNS, WIDTH, generator=generator)
        stays = torch.rand(ROWS * COLUMNS, 1, generator=generator) < still
        frames.append(torch.where(stays, frames[-1] + 0.1 * new, new))
    cells = [(frame, row, column) for frame in range(FRAMES) for row in range(ROWS) for column in range(COLUMNS)]
    return torch.cat(frames).to(dtype), *(torch.tensor(one) for one in zip(*cells, strict=True))


def cosine(one, other):
    one, other = one.double(), other.double()
    return float(one @ other / (one.norm() * other.norm()))


def left_out(places, *given):
    """Some tokens less, and in another order."""
    generator = torch.Generator().manual_seed(3)
    some = torch.randperm(places, generator=generator)[: places - 7]
    return some, [one[some] for one in given]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gaps", [False, True])
def test_change_is_the_formula(seed, gaps):
    visual, frame, row, column = film(seed)
    if gaps:
        _, (visual, frame, row, column) = left_out(len(visual), visual, frame, row, column)
    found = change_in_place(visual, frame, row, column)
    for n in range(len(visual)):
        before = [m for m in range(len(visual)) if frame[m] < frame[n] and row[m] == row[n] and column[m] == column[n]]
        last = max(before, key=lambda m: int(frame[m]), default=None)
        wanted = NEW if last is None else 1 - cosine(visual[n], visual[last])
        assert float(found[n]) == pytest.approx(wanted, abs=2e-6)


def test_what_is_the_same_has_not_changed():
    """Not even by rounding, which would rank what stands still."""
    _, frame, row, column = film()
    visual = torch.randn(ROWS * COLUMNS, WIDTH).repeat(FRAMES, 1)
    assert change_in_place(visual, frame, row, column).tolist() == [NEW] * 6 + [0.0] * 24
    stands, change = kept_once(visual, frame, row, column, 1.0)
    assert stands.tolist() == list(range(6)) * FRAMES and change.tolist() == [NEW] * 6 + [0.0] * 24


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.9, 1.0])
@pytest.mark.parametrize("gaps", [False, True])
def test_what_stands_still_is_kept_once(seed, threshold, gaps):
    visual, frame, row, column = film(seed)
    if gaps:
        _, (visual, frame, row, column) = left_out(len(visual), visual, frame, row, column)
    stands, change = kept_once(visual, frame, row, column, threshold)
    last = {}
    for n in sorted(range(len(visual)), key=lambda n: int(frame[n])):
        place = int(row[n]), int(column[n])
        like = None if place not in last else cosine(visual[n], visual[last[place]])
        if like is None or like < threshold:
            last[place] = n
        assert int(stands[n]) == last[place]
        assert float(change[n]) == pytest.approx(NEW if like is None else 1 - like, abs=2e-6)


def test_what_drifts_is_taken_up_again():
    """Each is like the one before, and the fifth is not like the first."""
    angle = torch.arange(FRAMES) * 0.3
    visual = torch.stack([angle.cos(), angle.sin()], dim=1)
    zero = torch.zeros(FRAMES, dtype=torch.int64)
    stands, _ = kept_once(visual, torch.arange(FRAMES), zero, zero, 0.9)  # cos 0.45
    assert stands.tolist() == [0, 0, 2, 2, 4]


def literal(visual, frame, budget, channels, temperature):
    """VidCom2 written out: the kept tokens, and what they were ranked by."""
    values = visual.double()
    few = max(1, math.floor(values.shape[1] * channels))
    spreads = [float(((one - one.mean()) ** 2).mean()) for one in values.T]
    steady = sorted(range(len(spreads)), key=lambda c: spreads[c])[:few]
    unit = [values[n, steady] / values[n, steady].norm() for n in range(len(values))]
    mean = sum(unit) / len(unit)
    frames = {int(one): [n for n in range(len(values)) if frame[n] == one] for one in frame}
    means = {t: sum(unit[n] for n in ours) / len(ours) for t, ours in frames.items()}

    def like(x, centre):
        return sum(math.exp(-float(((x - centre) ** 2).sum()) / (2 * 2.0**k)) for k in (-3, -2, -1, 0, 1))

    in_video = [like(x, mean) for x in unit]
    score = [in_video[n] + like(unit[n], means[int(frame[n])]) for n in range(len(unit))]
    unusual = {t: -sum(in_video[n] for n in ours) / len(ours) for t, ours in frames.items()}
    top = max(unusual.values())
    powers = {t: math.exp((u - top) / temperature) for t, u in unusual.items()}
    whole = sum(powers.values())
    kept, ratios = [], {}
    for t, ours in frames.items():
        ratios[t] = min(1.0, budget / len(values) * (1 + powers[t] / whole - 1 / len(frames)))
        kept += sorted(ours, key=lambda n: (score[n], n))[: max(1, round(ratios[t] * len(ours)))]
    kept.sort(key=lambda n: (score[n], n))
    others = sorted(set(range(len(values))) - set(kept), key=lambda n: (score[n], n))
    return sorted((kept + others)[:budget]), [-one for one in score], ratios


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("budget", [1, 11, 20, 29])
@pytest.mark.parametrize("channels, temperature", [(0.5, 0.01), (1.0, 0.3), (0.01, 0.01)])
def test_vidcom2_is_the_formula(seed, budget, channels, temperature):
    visual, frame, _, _ = film(seed)
    if seed == 3:  # frames of unequal size
        _, (visual, frame) = left_out(len(visual), visual, frame)
        budget = min(budget, 20)
    kept, score = unique_in_frames(visual, frame, FRAMES, budget, channels, temperature)
    wanted, ranked, ratios = literal(visual, frame, budget, channels, temperature)
    assert kept.tolist() == wanted
    torch.testing.assert_close(score.double(), torch.tensor(ranked, dtype=torch.float64), atol=2e-6, rtol=1e-5)
    in_video, _ = uniqueness(visual, frame, FRAMES, channels)
    found = frame_ratios(in_video, frame, FRAMES, budget / len(visual), temperature)
    torch.testing.assert_close(found, torch.tensor([ratios[t] for t in range(FRAMES)]).double(), atol=1e-4, rtol=1e-4)


def test_a_frame_without_tokens_has_no_share():
    visual, frame, _, _ = film()
    there = frame != 2
    kept, _ = unique_in_frames(visual[there], frame[there], FRAMES, 9)
    renumbered = frame[there] - (frame[there] > 2).long()
    assert torch.equal(kept, unique_in_frames(visual[there], renumbered, FRAMES - 1, 9)[0])
    in_video, _ = uniqueness(visual[there], frame[there], FRAMES)
    assert frame_ratios(in_video, frame[there], FRAMES, 0.5)[2] == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [1, 3, 7, 20, 40])
@pytest.mark.parametrize("floor", [0, 1, 3])
def test_frames_share_a_budget_by_webster(seed, budget, floor):
    """One token after another, to the frame of the largest mass / (2 had + 1); floors first."""
    generator = torch.Generator().manual_seed(seed)
    mass = torch.rand(8, generator=generator) ** 6
    count = torch.randint(0, 8, (8,), generator=generator)
    window = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    had = [0] * 8

    def give(frames):
        open_ = [t for t in frames if had[t] < count[t]]
        if open_:
            best = max(open_, key=lambda t: (float(mass[t]) / (2 * had[t] + 1), -t))
            had[best] += 1
        return bool(open_)

    # A budget that does not go round gives floors to the largest quotients.
    firsts = []
    for stretch in range(4):
        ours = [t for t in range(8) if window[t] == stretch]
        for _ in range(floor):
            before = list(had)
            if give(ours):
                (token,) = [t for t in ours if had[t] > before[t]]
                firsts.append((float(mass[token]) / (2 * before[token] + 1), -token, token))
    if len(firsts) > budget:
        had = [0] * 8
        for _, _, token in sorted(firsts, reverse=True)[:budget]:
            had[token] += 1
    while sum(had) < min(budget, int(count.sum())):
        give(range(8))
    found = shared_by_frames(mass, count, 7, budget, window, floor)
    assert found.tolist() == had


def test_no_mass_is_shared_alike():
    found = shared_by_frames(torch.zeros(4), torch.tensor([3, 3, 1, 3]), 3, 8)
    assert found.tolist() == [3, 2, 1, 2]


FILM = film()


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda v, f, r, c: change_in_place(v.long(), f, r, c), TypeError, "floating"),
        (lambda v, f, r, c: change_in_place(v, f.float(), r, c), TypeError, "int64"),
        (lambda v, f, r, c: change_in_place(v[:3], f, r, c), ValueError, "one value for each of the 3"),
        (lambda v, f, r, c: change_in_place(v * math.nan, f, r, c), ValueError, "NaN"),
        (lambda v, f, r, c: kept_once(v, f, r, c, 1.5), ValueError, "threshold"),
        (lambda v, f, r, c: kept_once(v, f, r, c, math.nan), ValueError, "threshold"),
        (lambda v, f, r, c: uniqueness(v, f, FRAMES, 0.0), ValueError, "channels"),
        (lambda v, f, r, c: unique_in_frames(v, f, FRAMES, 0), ValueError, "keeps no token"),
        (lambda v, f, r, c: unique_in_frames(v, f, FRAMES, 3, 0.5, 0.0), ValueError, "temperature"),
        (lambda v, f, r, c: shared_by_frames(-torch.ones(3), torch.ones(3).long(), 1, 2), ValueError, "negative"),
        (lambda v, f, r, c: shared_by_frames(torch.ones(2), torch.ones(3).long(), 1, 2), ValueError, "each of the 3"),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call(*FILM)
