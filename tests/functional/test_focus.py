"""Focus, Scan and Refine, against the paper's equations written out with loops, in float64."""

import math

import pytest
import torch

from foveate.functional import focus_scan_refine
from tests.functional.test_diversity import cosines, flat, gaussian, ranking, seeded, signs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def scaled(values):
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]


def fsr(features, relevance, saliency, budget, alpha, beta, mass, refine):
    """kept, rows of weights, priorities, the size of Focus."""
    sim, tokens = cosines(features), range(len(features))
    phi = [r**alpha * s**beta for r, s in zip(scaled(relevance), scaled(saliency), strict=True)]
    order, total, focus = ranking(phi, tokens), 0.0, []
    for i in order:
        total += phi[i]
    held = 0.0
    for i in order:
        focus.append(i)
        held += phi[i]
        if held >= mass * total or len(focus) == budget:
            break
    scan = []
    while len(focus) + len(scan) < budget:
        best, far = None, -math.inf
        for i in tokens:
            if i in focus or i in scan:
                continue
            distance = min(1 - sim[i][j] for j in focus + scan)
            if distance > far:
                best, far = i, distance
        scan.append(best)
    members = {i: [i] for i in focus + scan}
    nearest = {}
    for i in tokens:
        if i not in members and scan:
            nearest[i] = max(sorted(scan), key=lambda j: (sim[i][j], -j))
    for i in ranking({i: sim[i][j] for i, j in nearest.items()}, nearest)[: math.floor(refine * len(scan) + 1e-9)]:
        members[nearest[i]].append(i)
    rows = []
    for k in sorted(members):
        weight = sum(phi[i] for i in members[k])
        alone = [1.0 if i == k else 0.0 for i in tokens]
        rows.append([phi[i] / weight if i in members[k] else 0.0 for i in tokens] if weight > 0 else alone)
    return sorted(members), rows, phi, len(focus)


def asked(inputs, seed, dtype):
    """Relevances: without ties, or eighths."""
    features, saliency = inputs(30, seed, dtype)
    if inputs is gaussian:
        return features, torch.rand(30, generator=seeded(seed + 7)), saliency
    return features, torch.randint(0, 5, (30,), generator=seeded(seed + 7)) / 4, saliency


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
@pytest.mark.parametrize("budget", [1, 2, 7, 16, 29])
@pytest.mark.parametrize(
    "alpha, beta, mass, refine",
    [
        (3, 1, 0.9, 1),
        (3, 1, 0.3, 1),
        (1, 2, 0.25, 0.5),
        (0, 1, 0.5, 2),
        (1, 0, 0.125, 100),
        (3, 1, 1.0, 1),
        (9, 9, 0.5, 0),
    ],
)
def test_focus_scan_refine(inputs, dtype, budget, alpha, beta, mass, refine):
    for seed in range(3):
        features, relevance, saliency = asked(inputs, seed, dtype)
        found = focus_scan_refine(features, relevance, saliency, budget, alpha, beta, mass, refine)
        given = relevance.double().tolist(), saliency.double().tolist()
        kept, rows, phi, size = fsr(features, *given, budget, alpha, beta, mass, refine)
        assert found[0].dtype == torch.int64 and found[0].tolist() == kept and len(set(kept)) == budget
        torch.testing.assert_close(found[1].dense(), torch.tensor(rows), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found[2], torch.tensor(phi, dtype=torch.float32), atol=1e-6, rtol=1e-5)
        assert int(found[3]) == size


@pytest.mark.parametrize("inputs", [gaussian, signs, flat])
def test_step_by_step_as_at_once(inputs, monkeypatch):
    """On an accelerator the size of Focus is not looked at."""
    features, relevance, saliency = asked(inputs, 0, torch.float32)
    for budget in (1, 7, 29):
        for mass in (0.2, 0.9):
            at_once = focus_scan_refine(features, relevance, saliency, budget, mass=mass)
            monkeypatch.setattr("foveate.functional.focus.may_look", lambda _: False)
            step_by_step = focus_scan_refine(features, relevance, saliency, budget, mass=mass)
            monkeypatch.undo()
            assert torch.equal(at_once[0], step_by_step[0]) and torch.equal(at_once[3], step_by_step[3])
            torch.testing.assert_close(at_once[1].dense(), step_by_step[1].dense())


def test_by_hand():
    """Priorities 1, 1/8, 0, 0, 0 and 1/64: two tokens hold 9/10. Then the farthest, at 180 degrees, and one merged."""
    angle = torch.tensor([0.0, 10.0, 180.0, 170.0, 90.0, 175.0], dtype=torch.float64).deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1).float()
    relevance = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.25])
    saliency = torch.ones(6)  # all alike: they count 1
    kept, weights, priority, focus = focus_scan_refine(features, relevance, saliency, 3)
    torch.testing.assert_close(priority, torch.tensor([1.0, 0.125, 0.0, 0.0, 0.0, 1 / 64]))
    assert kept.tolist() == [0, 1, 2] and int(focus) == 2
    # Token 5 is nearest to token 2, and the only one with a priority.
    assert weights.dense().tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    # Two are merged: 5 and 3, of which 3 has no priority. None is merged: token 2 as it is.
    assert focus_scan_refine(features, relevance, saliency, 3, refine=2)[1].dense()[2].tolist() == [0, 0, 0, 0, 0, 1]
    assert focus_scan_refine(features, relevance, saliency, 3, refine=0)[1].dense()[2].tolist() == [0, 0, 1, 0, 0, 0]
    # Where the budget ends Focus, nothing is scanned and nothing merged.
    kept, weights, _, focus = focus_scan_refine(features, relevance, saliency, 1)
    assert kept.tolist() == [0] and int(focus) == 1 and weights.dense().tolist() == [[1, 0, 0, 0, 0, 0]]


def test_everything_is_kept():
    features, relevance, saliency = asked(gaussian, 0, torch.float32)
    kept, weights, _, _ = focus_scan_refine(features, relevance, saliency, 30)
    assert kept.tolist() == list(range(30)) and torch.equal(weights.dense(), torch.eye(30))


def test_blocks_change_nothing(monkeypatch):
    given = asked(gaussian, 0, torch.float32)
    whole = focus_scan_refine(*given, 12)
    monkeypatch.setattr("foveate.functional.focus._BLOCK", 20)
    pieces = focus_scan_refine(*given, 12)
    assert torch.equal(whole[0], pieces[0])
    torch.testing.assert_close(whole[1].dense(), pieces[1].dense())


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"budget": 0}, ValueError, "budget=0"),
        ({"budget": 1.0}, TypeError, "budget must be an int"),
        ({"alpha": -1.0}, ValueError, "alpha must be finite"),
        ({"beta": math.nan}, ValueError, "beta must be finite"),
        ({"refine": math.inf}, ValueError, "refine must be finite"),
        ({"mass": 0.0}, ValueError, "mass must be in"),
        ({"mass": math.nan}, ValueError, "mass must be in"),
        ({"saliency": torch.tensor([0.5, math.nan])}, ValueError, "NaN or infinity in saliency"),
        ({"relevance": torch.tensor([0.5, math.nan])}, ValueError, "NaN or infinity in relevance"),
        ({"relevance": torch.ones(3)}, ValueError, "must have one shape"),
        ({"visual": torch.tensor([[math.inf, 0], [1, 1]])}, ValueError, "NaN or infinity in visual"),
        ({"visual": torch.ones(2, 2).int()}, TypeError, "floating dtype"),
    ],
)
def test_bad_inputs(change, error, message):
    given = {"visual": torch.ones(2, 2), "relevance": torch.ones(2), "saliency": torch.ones(2), "budget": 1} | change
    with pytest.raises(error, match=message):
        focus_scan_refine(**given)
