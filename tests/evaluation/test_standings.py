"""Groups in place of ranks: against the tests of two methods, a plain loop, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.evaluation.standings import standings
from foveate.evaluation.statistics import Design, holm, paired_difference, tallied

PICTURES = [str(number // 5) for number in range(200)]


def answers(rng: np.random.Generator, share: float) -> np.ndarray:
    """Right and wrong answers; all five questions of a picture are answered alike."""
    return np.repeat(rng.random(40) < share, 5).astype(float)


def test_two_methods_as_the_paired_test_of_scores_has_it():
    rng = np.random.default_rng(0)
    one, two = rng.random(200), rng.random(200) * 0.9
    design = Design(PICTURES)
    best, other = standings([tallied(one), tallied(two)], design, level=0.0)
    expected = paired_difference(one, two, design)
    assert (-other.difference.value, -other.difference.high, -other.difference.low) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert other.p_corrected == expected.p_value and best.p_corrected == 1.0
    assert standings([tallied(one), tallied(two)], design)[1].group == (2 if expected.p_value < 0.05 else 1)
    assert best.difference.value == best.difference.low == best.difference.high == 0


def test_p_values_by_swapping_every_picture_in_turn():
    """With few pictures, all swaps can be gone through; whole pictures are swapped, not questions."""
    rng = np.random.default_rng(1)
    pictures = [str(number // 3) for number in range(24)]
    sides = [(rng.random(24) < share).astype(float) for share in (0.9, 0.6, 0.3)]
    gaps = [(sides[0] - side).reshape(8, 3).sum(1) for side in sides[1:]]
    exact = []
    for gap in gaps:
        signs = np.array([[1 if number >> bit & 1 else -1 for bit in range(8)] for number in range(256)])
        exact.append(float((np.abs(signs @ gap) >= abs(gap.sum()) - 1e-9).mean()))
    told = standings([tallied(side) for side in sides], Design(pictures), level=0.0)
    assert [one.group for one in told] == [1, 1, 1]  # at level 0, nobody is told apart
    assert [one.p_corrected for one in told[1:]] == pytest.approx(holm(exact), abs=0.03)


def test_groups_follow_the_best_of_the_rest():
    rng = np.random.default_rng(2)
    good, poor = answers(rng, 0.95), answers(rng, 0.5)
    nearly = good.copy()
    nearly[:5] = 1 - nearly[:5]
    none = np.zeros(200)
    told = standings([tallied(one) for one in (poor, good, none, nearly)], Design(PICTURES))
    assert [one.group for one in told] == [2, 1, 3, 1]
    assert told[2].difference.value == pytest.approx(-good.mean())
    assert standings([], Design(PICTURES)) == []


def test_equal_answers_are_no_certainty():
    """Of 40 pictures on which two methods agree, up to about 9 % of others may be answered otherwise (Wilson)."""
    alike = answers(np.random.default_rng(4), 0.8)
    best, other = standings([tallied(alike), tallied(alike)], Design(PICTURES))
    assert best.difference.low == best.difference.high == 0
    assert (round(other.difference.low, 4), round(other.difference.high, 4)) == (-0.0876, 0.0876)


def test_equal_methods_are_seldom_told_apart_however_alike_a_picture_s_answers_are():
    """Questions as independent trials would tell equal methods apart several times as often."""
    rng = np.random.default_rng(3)
    apart = 0
    for _ in range(60):
        told = standings([tallied(answers(rng, 0.7)) for _ in range(4)], Design(PICTURES))
        apart += max(one.group for one in told) > 1
    # The best of four is compared, so that somewhat more than 5 in 100 would do.
    assert apart <= 9
