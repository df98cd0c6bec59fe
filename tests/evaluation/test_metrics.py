"""Metrics case by case, and against their definitions by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.evaluation.metrics import (
    METRICS,
    anls,
    get_metric,
    is_correct,
    levenshtein,
    normalise,
    relaxed_accuracy,
    vqa_accuracy,
    yes_or_no,
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


@pytest.mark.parametrize("matches,others", [(0, 10), (1, 9), (2, 8), (3, 7), (4, 6), (10, 0)])
def test_vqa_accuracy_is_the_mean_over_nine_of_ten_people(matches, others):
    answers = ["2"] * matches + [f"x{number}" for number in range(others)]
    nines = [answers[:left] + answers[left + 1 :] for left in range(10)]
    expected = np.mean([min(1, nine.count("2") / 3) for nine in nines])
    assert vqa_accuracy("Two.", answers) == pytest.approx(expected)


def test_vqa_accuracy_of_few_answers():
    assert vqa_accuracy("the cat", ["cat"]) == 1 and vqa_accuracy("dog", ["cat"]) == 0
    with pytest.raises(ValueError, match="about ten people .* use the metric exact"):
        vqa_accuracy("2", ["2", "two"])


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_levenshtein_against_its_recursion(first, second):
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    assert levenshtein(first, second) == slow(first, second)


@pytest.mark.parametrize(
    "prediction,answers,expected",
    [
        ("Invoice  No 12", ["invoice no 12"], 1.0),
        ("helo", ["hello"], 0.8),
        ("hxxxo", ["hello"], 0.0),  # 0.4 is below the threshold
        ("hello", ["goodbye", "hallo"], 0.8),
        ("", ["a"], 0.0),
    ],
)
def test_anls(prediction, answers, expected):
    assert anls(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    "prediction,answer,expected",
    [
        ("104", "100", 1),
        ("106", "100", 0),
        ("95.0", "100", 1),
        ("1,040", "1000", 1),
        ("12%", "0.12", 1),
        ("12", "12%", 0),
        ("$20.", "20", 1),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("Blue", "blue", 1),
        ("blue", "100", 0),
        ("nan", "100", 0),
        ("-96", "-100", 1),
    ],
)
def test_relaxed_accuracy(prediction, answer, expected):
    assert relaxed_accuracy(prediction, ["nothing like it", answer]) == expected


@pytest.mark.parametrize(
    "text,expected",
    [("Yes.", True), ("No, there is none", False), ("There is not", False), ("yes, not no", True), ("a cat", None)],
)
def test_yes_or_no(text, expected):
    assert yes_or_no(text) is expected


def test_yesno_is_f1_of_yes():
    yesno = METRICS["yesno"]
    said = ["yes", "yes", "no", "yes", "perhaps", "no"]
    true = ["yes", "no", "yes", "yes", "yes", "no"]
    totals = yesno.tallies((one, [other]) for one, other in zip(said, true, strict=True)).sum(0)
    precision, recall = 2 / 3, 2 / 4
    assert yesno.value(totals) == pytest.approx(2 * precision * recall / (precision + recall))
    extras = {name: float(value(totals)) for name, value in yesno.extras.items()}
    assert extras == pytest.approx({"accuracy": 3 / 6, "precision": 2 / 3, "recall": 0.5, "yes ratio": 3 / 6})
    assert [yesno.score(one, [other]) for one, other in zip(said, true, strict=True)] == [1, 0, 0, 1, 0, 1]
    with pytest.raises(ValueError, match="needs yes or no"):
        yesno.score("yes", ["a cat"])


@pytest.mark.parametrize("name", [name for name in METRICS if name != "yesno"])
def test_averages_average(name):
    metric = METRICS[name]
    pairs = [("100", ["100"]), ("blue", ["100"]), ("100", ["blue"])]
    scores = [metric.score(*pair) for pair in pairs]
    assert scores == [1, 0, 0] and metric.value(metric.tallies(pairs).sum(0)) == pytest.approx(1 / 3)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="unknown metric 'bleu'; known: exact, vqa, anls, relaxed, yesno"):
        get_metric("bleu")
