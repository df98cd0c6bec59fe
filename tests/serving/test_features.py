"""The cache of encoded images: what goes in comes out, in memory that never grows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.serving.features import PAGE, FeatureCache


def group(seed: int, tokens: int) -> list[torch.Tensor | None]:
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tokens, 8, generator=draw).half(), None, torch.rand(tokens, generator=draw),
        torch.randint(0, 99, (tokens,), generator=draw), torch.rand(tokens, 4, generator=draw),
    ]  # fmt: skip


def same(one, other) -> bool:
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in zip(one, other, strict=True)
    )


def test_what_goes_in_comes_out():
    cache = FeatureCache(20 * PAGE, "cpu")
    tensors = group(0, 5000)
    tensors[0] = tensors[0].T  # strides of its own
    assert cache.put("a", tensors, {"note": 1})
    found, note = cache.get("a")
    assert same(found, tensors)
    assert note == {"note": 1}
    assert cache.get("b") is None
    assert (cache.hits, cache.misses) == (1, 1)


def test_copies_are_apart_from_the_cache():
    cache = FeatureCache(4 * PAGE, "cpu")
    tensors = group(1, 10)
    cache.put("a", tensors)
    kept = [None if one is None else one.clone() for one in tensors]
    tensors[0].zero_()
    found, _ = cache.get("a")
    found[0].add_(1)
    assert same(cache.get("a")[0], kept)


def test_the_oldest_go_first():
    cache = FeatureCache(3 * PAGE, "cpu")
    for key in "abc":
        cache.put(key, [torch.zeros(PAGE // 4)])
    cache.get("a")
    cache.put("d", [torch.zeros(PAGE // 4)])
    assert [cache.get(key) is None for key in "abcd"] == [False, True, False, False]
    assert cache.used == 3 * PAGE


def test_what_is_larger_than_the_cache_is_not_taken():
    cache = FeatureCache(2 * PAGE, "cpu")
    cache.put("a", [torch.zeros(8)])
    assert not cache.put("b", [torch.zeros(PAGE)])
    assert cache.get("a") is not None
    assert not FeatureCache(0, "cpu").put("a", [torch.zeros(8)])
    assert not FeatureCache(PAGE - 1, "cpu").put("a", [torch.zeros(8)])


def test_clear():
    cache = FeatureCache(2 * PAGE, "cpu")
    cache.put("a", [torch.zeros(8)])
    cache.clear()
    assert (len(cache), cache.used, cache.get("a")) == (0, 0, None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 4000), st.booleans()), max_size=40))
def test_any_order_of_calls(calls):
    """Whatever is asked in whatever order: never more than the buffer, and never another key's tensors."""
    cache = FeatureCache(6 * PAGE, "cpu")
    known = {}
    for key, tokens, puts in calls:
        if puts:
            tensors = group(key * 10000 + tokens, tokens)
            if cache.put(key, tensors):
                known[key] = tensors
        else:
            found = cache.get(key)
            assert found is None or same(found[0], known[key])
        assert cache.used <= 6 * PAGE
        assert len(cache.buffer) == 6


def test_a_key_that_is_put_again_takes_no_second_place():
    cache = FeatureCache(4 * PAGE, "cpu")
    for seed in range(9):
        cache.put("a", group(seed, 100))
    assert same(cache.get("a")[0], group(8, 100))
    assert cache.used == PAGE


def test_keys_of_any_kind():
    cache = FeatureCache(4 * PAGE, "cpu")
    cache.put((1, 2), [torch.ones(3)])
    assert torch.equal(cache.get((1, 2))[0][0], torch.ones(3))
    with pytest.raises(TypeError):
        cache.put([1], [torch.ones(3)])
