"""How many tokens: compared with loops in float64 that are written down as the definitions stand."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.functional import effective_tokens, least_reaching


def literal_effective(score: list[float]) -> float:
    total = math.fsum(score)
    if total == 0:
        return float(len(score))
    return math.exp(-math.fsum(one / total * math.log(one / total) for one in score if one > 0))


@pytest.mark.parametrize("tokens", [1, 2, 7, 200])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_random_scores(tokens: int, seed: int, dtype: torch.dtype) -> None:
    score = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)).pow(4).to(dtype)
    assert float(effective_tokens(score)) == pytest.approx(literal_effective(score.double().tolist()), rel=1e-9)


def test_degenerate_scores() -> None:
    for count in (1, 4, 9):
        assert float(effective_tokens(torch.ones(count))) == pytest.approx(count)
        assert float(effective_tokens(torch.zeros(count))) == pytest.approx(count)
    assert float(effective_tokens(torch.tensor([0.0, 3.0, 0.0]))) == 1


def test_reaching() -> None:
    covered = torch.tensor([0.2, 0.5, 0.5, 0.9])
    expected = {0.1: 1, 0.2: 1, 0.21: 2, 0.5: 2, 0.51: 4, 0.9: 4, 0.95: 4, 1.0: 4}
    for share, count in expected.items():
        found = least_reaching(covered.double().round(decimals=6), share)
        assert int(found) == count and found.dtype == torch.int64 and found.shape == ()


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), float("inf")])
def test_impossible_shares(share) -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        least_reaching(torch.ones(3), share)
    with pytest.raises(TypeError, match="share must be a number"):
        least_reaching(torch.ones(3), True)


def test_bad_scores() -> None:
    for wrong in (torch.ones(2, 2), torch.ones(0), torch.tensor([1.0, -1.0]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match=r"\(N,\)|N >= 1|negative|NaN"):
            effective_tokens(wrong)
    with pytest.raises(TypeError, match="floating"):
        effective_tokens(torch.ones(3, dtype=torch.int64))


def test_bad_coverage() -> None:
    with pytest.raises(ValueError, match=r"must be \(K,\)"):
        least_reaching(torch.ones(2, 2), 0.9)
    with pytest.raises(ValueError, match="NaN"):
        least_reaching(torch.tensor([float("nan")]), 0.9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_an_accelerator() -> None:
    score = torch.rand(500, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = effective_tokens(score), least_reaching(score.sort().values, 0.9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    host = score.cpu()
    expected = effective_tokens(host), least_reaching(host.sort().values, 0.9)
    assert [float(one) for one in found] == pytest.approx([float(one) for one in expected])
