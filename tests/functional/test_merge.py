"""Sparse weights: against the dense matrix, built entry by entry in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.benchmarks.measure import peak_memory
from foveate.functional import Merge, keep_and_recycle, merged
from foveate.pruners import get_pruner
from foveate.tokens import Geometry, Selection, VisualTokens

MIB = 2**20


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def entries(seed: int, kept: int, total: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entries in any order, some in the same place, some rows without any."""
    rows = torch.randint(0, kept, (count,), generator=seeded(seed))
    tokens = torch.randint(0, total, (count,), generator=seeded(seed + 1))
    return rows, tokens, torch.rand(count, generator=seeded(seed + 2))


def matrix(rows: Tensor, tokens: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    made = torch.zeros(shape, dtype=torch.float64)
    for row, token, weight in zip(rows.tolist(), tokens.tolist(), weights.tolist(), strict=True):
        made[row, token] += weight
    return made


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12), st.integers(0, 40))
def test_product_with_features(seed: int, kept: int, total: int, count: int) -> None:
    given_ = entries(seed, kept, total, count)
    merge, expected = Merge.of_entries(*given_, (kept, total)), matrix(*given_, (kept, total))
    assert merge.shape == (kept, total) and len(merge) == kept and merge.dtype == torch.float32
    near(merge.dense(), expected)
    features = torch.randn(total, 5, generator=seeded(seed + 3))
    near(merge @ features, expected @ features.double())
    assert (merge @ features.double()).dtype == torch.float64
    maps = torch.randn(total, 2, 3, generator=seeded(seed + 4))
    near(merge @ maps, torch.einsum("kn,nab->kab", expected, maps.double()))
    near(merge @ features[:, 0], expected @ features[:, 0].double())


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7), st.integers(1, 9))
def test_merges_on_top_of_one_another(seed: int, last: int, middle: int, total: int) -> None:
    one, two = entries(seed, middle, total, 11), entries(seed + 5, last, middle, 7)
    first, second = Merge.of_entries(*one, (middle, total)), Merge.of_entries(*two, (last, middle))
    expected = matrix(*two, (last, middle)) @ matrix(*one, (middle, total))
    features = torch.randn(total, 3, generator=seeded(seed))
    # A stage whose own weights are dense is taken as it is.
    for both in (second @ first, second.dense() @ first, second @ first.dense(), merged(second.dense(), first.dense())):
        assert both.shape == (last, total)
        near(both.dense() if isinstance(both, Merge) else both, expected)
        near(merged(both, features), expected @ features.double())
    picked = torch.randint(0, last, (4,), generator=seeded(seed))
    some = (second @ first)[picked]
    assert some.shape == (4, total)
    near(some.dense(), expected[picked])
    near(some @ features, (expected @ features.double())[picked])
    third = Merge.picking(torch.tensor([0, 0]), last)
    near((third @ (second @ first)).dense(), expected[[0, 0]])
    near(((third @ second) @ first).dense(), expected[[0, 0]])


def test_means_and_what_belongs_to_none() -> None:
    merge = Merge.means(torch.tensor([2, 0, 3, 0, 2, 2]), torch.tensor([5, 1, 0, 3, 2, 4]), (3, 6))
    third = 1 / 3
    expected = [[0, 0.5, 0, 0.5, 0, 0], [0] * 6, [0, 0, third, 0, third, third]]
    near(merge.dense(), torch.tensor(expected, dtype=torch.float64))
    near(merge @ torch.arange(6.0).unsqueeze(1), torch.tensor([[2.0], [0.0], [11 / 3]], dtype=torch.float64))


def test_what_stays_as_it_is_is_not_touched() -> None:
    features = torch.randn(50, 7, generator=seeded(0)).bfloat16()
    indices = torch.tensor([3, 3, 49, 0])
    assert torch.equal(Merge.picking(indices, 50) @ features, features[indices])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 64, 1 << 22])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.functional.merge._BLOCK", block)
    given_ = entries(0, 6, 30, 200)
    features = torch.randn(30, 9, generator=seeded(1)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = Merge.of_entries(*given_, (6, 30)) @ features
    expected = matrix(*given_, (6, 30)) @ features.double()
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_gradients_reach_the_features() -> None:
    given_ = entries(0, 6, 30, 40)
    for features in (torch.randn(30, 4, generator=seeded(1)), torch.randn(30, 4, generator=seeded(1)).bfloat16()):
        features.requires_grad_()
        merge = Merge.of_entries(*given_, (6, 30))[torch.tensor([4, 1])]
        selection = Selection(torch.tensor([1, 2]), place(30), weights=merge)
        selection.gather(features).float().sum().backward()
        expected = matrix(*given_, (6, 30))[[4, 1]].sum(dim=0, keepdim=True).T.expand(30, 4)
        assert features.grad is not None
        torch.testing.assert_close(features.grad.double(), expected, atol=1e-5, rtol=torch.finfo(features.dtype).eps)


def place(total: int) -> Geometry:
    token = torch.arange(total)
    return Geometry(token // 4000, token % 4000 // 50, token % 50, torch.zeros(total, 4), (1, 1), ((80, 50),) * 5)


@pytest.mark.parametrize(
    "starts, tokens, weights, error, message",
    [
        ([0, 2], [0, 1, 2], [1.0, 1.0], ValueError, "a weight for every token, got 2 rows, 3 tokens and 2 weights"),
        ([0, 2], [0, 1, 4], [1.0] * 3, ValueError, r"must be in \[0, 4\), got 0 to 4"),
        ([0, 2], [0, -1, 3], [1.0] * 3, ValueError, r"must be in \[0, 4\), got -1 to 3"),
        ([1, 2], [0, 1, 3], [1.0] * 3, ValueError, "must ascend from 0 to at most 3"),
        ([0, 2, 1], [0, 1, 3], [1.0] * 3, ValueError, "must ascend"),
        ([0, 4], [0, 1, 3], [1.0] * 3, ValueError, "must ascend"),
        ([0, 1], [0, 1, 3], [1, 1, 1], TypeError, "weights of a merge must be torch.float32, got torch.int64"),
        ([[0], [1]], [0, 1, 3], [1.0] * 3, ValueError, "starts of a merge must have one dimension"),
        ([0.0], [0], [1.0], TypeError, "starts of a merge must be torch.int64"),
    ],
)
def test_what_is_no_merge(starts: list, tokens: list, weights: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Merge(torch.tensor(starts), torch.tensor(tokens), torch.tensor(weights), 4)


def test_what_does_not_fit() -> None:
    merge = Merge.picking(torch.tensor([0, 1]), 4)
    for other in (torch.ones(3, 2), torch.ones(2), merge, torch.ones(())):
        with pytest.raises(ValueError, match=r"weights \(2, 4\) do not fit"):
            merge @ other
    with pytest.raises(ValueError, match=r"weights \(3, 3\) do not fit \(2, 4\)"):
        torch.ones(3, 3) @ merge
    with pytest.raises(ValueError, match="a merge of 4 tokens does not fit one that makes 2"):
        Merge(merge.starts, merge.tokens, merge.weights, 4, merge)
    assert repr(merge) == "Merge(2 from 4 tokens)"


@pytest.mark.parametrize("method", ["visionzip", "prumerge", "prumerge-plus", "pool"])
def test_memory_of_large_merges(method: str) -> None:
    """Half of 20 000 tokens: dense weights alone would take 763 MiB."""
    tokens = 20_000
    keys = torch.randn(tokens, 16, generator=seeded(0)).bfloat16()
    features, saliency = torch.randn(tokens, 32, generator=seeded(1)), torch.rand(tokens, generator=seeded(2))
    visual = VisualTokens(features, place(tokens), saliency, True, keys)
    pruner, found = get_pruner(method, keep=0.5), []
    assert peak_memory(lambda: found.append(pruner.select(visual)), torch.device("cpu")) < 200 * MIB
    assert len(found[0]) == 10_000
    assert peak_memory(lambda: found[0].gather(features), torch.device("cpu")) < 10 * MIB  # the result has 1.2
    some = torch.randint(0, 10_000, (5,), generator=seeded(3))
    rows = found[0].weights[some].dense()
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(found[0].gather(features)[some], rows @ features)


def test_memory_of_a_large_cut() -> None:
    """SparseVLM's, where all that is dropped is recycled: a whole table of 10 297 distances squared has 404 MiB."""
    score, hidden = torch.rand(20_000, generator=seeded(0)), torch.randn(20_000, 8, generator=seeded(1))
    found: list[tuple[Tensor, Merge, int]] = []
    peak = peak_memory(lambda: found.append(keep_and_recycle(score, hidden, 10_000, 1.0, 0.03)), torch.device("cpu"))
    assert peak < 200 * MIB
    kept, weights, merges = found[0]
    assert weights.shape == (10_000, 20_000) and len(kept) == 10_000 and merges == 300
    assert len(weights.tokens) == 20_000 and int((weights.weights < 1).sum()) > 9_000
