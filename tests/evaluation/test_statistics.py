"""Intervals and tests against known values, brute force and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.evaluation.statistics import (
    Design,
    Estimate,
    bootstrap,
    combine,
    holm,
    mcnemar,
    paired_difference,
    relative,
    tallied,
    wilson,
)


def test_wilson_known_values():
    # Newcombe 1998, table I: 81 of 263
    estimate = wilson(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20).low == 0 and round(wilson(0, 20).high, 4) == 0.1611
    assert wilson(20, 20).high == 1
    empty = wilson(0, 0)
    assert math.isnan(empty.value) and (empty.low, empty.high, empty.count) == (0, 1, 0)


@pytest.mark.parametrize("correct,count", [(2, 1), (-1, 3)])
def test_wilson_refuses_the_impossible(correct, count):
    with pytest.raises(ValueError, match="impossible"):
        wilson(correct, count)


@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_holds_the_share(case):
    estimate = wilson(*case)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_combine_weights_and_leaves_out_the_empty():
    yes, no, reading = wilson(8, 10), wilson(4, 10), wilson(9, 10)
    mean = combine([yes, no, reading, wilson(0, 0)], [0.5, 0.5, 1, 1])
    assert mean.value == pytest.approx((0.6 + 0.9) / 2) and mean.count == 30
    assert mean.low < mean.value < mean.high
    # a single part is itself
    alone = combine([yes])
    assert (alone.value, alone.low, alone.high) == pytest.approx((yes.value, yes.low, yes.high))
    assert math.isnan(combine([wilson(0, 0)]).value)
    assert combine([Estimate(1, 0.9, 1, 5), Estimate(1, 0.8, 1, 5)]).low < 1


def test_combine_covers_as_it_says():
    rng = np.random.default_rng(0)
    shares, counts = (0.95, 0.7, 0.5), (60, 40, 80)
    truth = np.mean(shares)
    hits = 0
    for _ in range(400):
        drawn = combine([wilson(int(rng.binomial(n, p)), n) for p, n in zip(shares, counts, strict=True)])
        hits += drawn.low <= truth <= drawn.high
    assert 0.92 <= hits / 400 <= 0.985


def test_mcnemar_against_enumeration():
    for first, second in itertools.product(range(7), repeat=2):
        trials = first + second
        tail = sum(1 for flips in itertools.product((0, 1), repeat=trials) if sum(flips) <= min(first, second))
        assert mcnemar(first, second) == pytest.approx(min(1, 2 * tail / 2**trials) if trials else 1)
    assert mcnemar(900, 800) == pytest.approx(0.0163, abs=2e-4)  # integers, so no overflow


def test_paired_difference_counts_and_weighs():
    first = [True] * 6 + [False] * 4
    second = [True] * 3 + [False] * 7
    pictures = [f"p{number // 2}" for number in range(10)]
    plain = paired_difference(first, second, Design(pictures))
    assert plain.value == pytest.approx(0.3) and (plain.first_only, plain.second_only) == (3, 0)
    assert plain.p_value == pytest.approx(0.25) and plain.count == 10
    assert plain.low <= plain.value <= plain.high
    strata = ["b"] * 8 + ["a"] * 2
    weighted = paired_difference(first, second, Design(pictures, strata=strata, weights={"b": 1.0, "a": 3.0}))
    assert weighted.value == pytest.approx((3 / 8 * 1 + 0 * 3) / 4)
    assert paired_difference(first, second, Design(pictures)) == plain  # the bootstrap has a seed
    same = paired_difference(first, first, Design(pictures))
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_bootstrap_resamples_whole_pictures():
    # Ten questions on each picture, all won or all lost together: the pictures are what varies.
    wins = np.repeat(np.random.default_rng(1).random(40) < 0.5, 10)
    nothing = np.zeros(400, dtype=bool)
    clustered = paired_difference(wins, nothing, Design([f"p{n // 10}" for n in range(400)]))
    scattered = paired_difference(wins, nothing, Design([f"p{n}" for n in range(400)]))
    assert clustered.high - clustered.low > 2.5 * (scattered.high - scattered.low)


def test_paired_difference_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="as many on both sides"):
        paired_difference([True], [True, False], Design(["p"]))
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [], Design([]))
    with pytest.raises(ValueError, match="as many as their pictures"):
        paired_difference([True], [True], Design(["p", "q"]))


def test_bootstrap_covers_as_it_says():
    rng = np.random.default_rng(0)
    truth = np.clip(rng.normal(0.7, 0.2, 1_000_000), 0, 1).mean()
    hits = 0
    for trial in range(200):
        hard = np.clip(rng.normal(0.7, 0.2, (60, 1)), 0, 1)  # questions of a picture go together
        scores = rng.random((60, 3)) < hard
        estimate = bootstrap(Design(np.repeat(np.arange(60), 3).tolist()), tallied(scores.ravel()), seed=trial)
        hits += estimate.low <= truth <= estimate.high
    assert 0.89 <= hits / 200 <= 0.99


def test_swapping_agrees_with_all_swaps():
    """Scores that are no 0 and 1 are tested by swapping the methods on whole pictures: here all 2^8 ways."""
    rng = np.random.default_rng(3)
    first, second = rng.random(16), rng.random(16) * 0.8
    pictures = [f"p{number // 2}" for number in range(16)]
    told = paired_difference(first, second, Design(pictures))
    gains = (first - second).reshape(8, 2).sum(1)
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    exact = np.mean(np.abs(signs @ gains) >= abs(gains.sum()) - 1e-12)
    assert told.p_value == pytest.approx(exact, abs=0.02)


def test_the_figure_may_be_no_mean():
    """Sums of tallies go through ``value``, in the bootstrap as in the figure itself."""
    tallies = np.array([[1, 1, 1.0], [0, 1, 1.0], [1, 0, 1.0], [1, 1, 1.0]])

    def ratio(totals):
        return totals[..., 0] / np.maximum(totals[..., 1], 1e-9)

    estimate = bootstrap(Design(["a", "b", "c", "d"], ratio), tallies)
    assert estimate.value == 1 and estimate.low < 1 < estimate.high


LOSS = np.array([[0.0, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize("kept_share", [0.95, 0.99])
def test_relative_is_bounded_as_confidently_as_asked(kept_share):
    rng = np.random.default_rng(0)
    missed = 0
    for trial in range(150):
        whole = rng.random(150) < 0.9
        kept = whole & (rng.random(150) < kept_share)
        value, bound = relative(tallied(kept), tallied(whole), Design(list(range(150))), 0.9, LOSS, seed=trial)
        assert bound <= value
        missed += bound > kept_share
    assert missed / 150 <= 0.14  # 0.1 is promised; 0.1 + 2 standard errors of 150 trials is 0.149


def test_no_loss_at_all_gives_the_rule_of_three():
    right = tallied([True] * 300)
    value, bound = relative(right, right, Design(list(range(300))), 0.95, LOSS)
    assert value == 1 and bound == pytest.approx(1 - 3 / 301, abs=1e-3)


def test_relative_refuses_what_it_cannot_bound():
    with pytest.raises(ValueError, match="relative to 0"):
        relative(tallied([1, 0]), tallied([0, 0]), Design(["a", "b"]), 0.95, LOSS)
    with pytest.raises(ValueError, match="one stratum"):
        relative(tallied([1, 0]), tallied([1, 0]), Design(["a", "b"], strata=["x", "y"]), 0.95, LOSS)


def test_holm_by_its_definition():
    """The smallest p-value times m, the next times m - 1, and so on; none below the one before it, none above 1."""
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5, 0.0]) == pytest.approx([1.0, 1.0, 0.0])
    rng = np.random.default_rng(0)
    p_values = rng.random(30) ** 3
    for level in (0.01, 0.05, 0.3):  # rejected one after the other while p <= level / how many are left
        rejected, left = set(), sorted(range(30), key=lambda n: p_values[n])
        while left and p_values[left[0]] <= level / len(left):
            rejected.add(left.pop(0))
        assert {n for n, one in enumerate(holm(list(p_values))) if one <= level} == rejected
