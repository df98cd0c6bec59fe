"""Normalisation case by case; intervals and tests against known values and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.evaluation.metrics import (
    Estimate,
    combine,
    is_correct,
    mcnemar,
    normalise,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("Yes.", "yes"),
        ("  a   Red\tcard \n", "red card"),
        ("The cat!", "cat"),
        ("it's", "its"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("7.", "7"),
        ("red,blue", "red blue"),
        ("A", "a"),
        ("the", "the"),
        ("Ｃａｔ", "cat"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@given(st.text(max_size=30))
def test_normalise_is_idempotent_on_words(text):
    once = normalise(text)
    assert normalise(once.upper().lower()) == normalise(once) and "  " not in once


def test_is_correct_takes_any_of_the_answers():
    assert is_correct("Two.", ["2", "two"]) and is_correct("2", ["2", "two"])
    assert not is_correct("12", ["2", "two"]) and not is_correct("", ["no"])


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
    plain = paired_difference(first, second, pictures)
    assert plain.value == pytest.approx(0.3) and (plain.first_only, plain.second_only) == (3, 0)
    assert plain.p_value == pytest.approx(0.25) and plain.count == 10
    assert plain.low <= plain.value <= plain.high
    strata = ["a"] * 8 + ["b"] * 2
    weighted = paired_difference(first, second, pictures, strata, {"a": 1.0, "b": 3.0})
    assert weighted.value == pytest.approx((3 / 8 * 1 + 0 * 3) / 4)
    assert paired_difference(first, second, pictures) == plain  # the bootstrap has a seed
    same = paired_difference(first, first, pictures)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_bootstrap_resamples_whole_pictures():
    # Ten questions on each picture, all won or all lost together: the pictures are what varies.
    wins = np.repeat(np.random.default_rng(1).random(40) < 0.5, 10)
    nothing = np.zeros(400, dtype=bool)
    clustered = paired_difference(wins, nothing, [f"p{n // 10}" for n in range(400)])
    scattered = paired_difference(wins, nothing, [f"p{n}" for n in range(400)])
    assert clustered.high - clustered.low > 2.5 * (scattered.high - scattered.low)


def test_paired_difference_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="as many on both sides"):
        paired_difference([True], [True, False], ["p"])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [], [])
