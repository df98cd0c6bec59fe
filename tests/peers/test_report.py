"""The comparison itself: what it lets pass and what it shows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.peers import __main__ as peers

WORDS = "inputs_embeds hide which tokens are visual"


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "REFUSED", {WORDS: "documented"})


def outcomes(**tests: Any) -> peers.Outcomes:
    """By test, its outcome and message, or a list of these where it has subtests."""
    reports = {name: [given] if isinstance(given, tuple) else given for name, given in tests.items()}
    return {
        name: [{"test": name, "outcome": outcome, "message": message, "pruned": 1} for outcome, message in parts]
        for name, parts in reports.items()
    }


BARE = outcomes(one=("passed", ""), two=("passed", ""), broken=("failed", "its own fault"))


@pytest.mark.parametrize(
    "around, status, shown",
    [
        ({"two": ("passed", "")}, 0, "2 of them pass too"),
        ({"two": ("failed", f"ValueError: {WORDS}, so")}, 0, "1 documented"),
        ({"two": ("failed", "AssertionError: 3 != 4")}, 1, "NEW two (failed): AssertionError: 3 != 4"),
        ({"two": ("skipped", "not here")}, 1, "NEW two (skipped)"),
        ({}, 1, "NEW two (missing)"),
        ({"two": [("passed", ""), ("failed", f"{WORDS}"), ("failed", "3 != 4")]}, 1, "NEW two (failed): 3 != 4"),
        ({"two": ("passed", ""), "broken": ("failed", "differently")}, 0, "not seen in this run: inputs_embeds"),
    ],
)
def test_what_is_new_shows(around: Any, status: int, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.report(BARE, outcomes(one=("passed", ""), **around)) == status
    assert shown in capsys.readouterr().out


def test_no_tests_prove_nothing() -> None:
    assert peers.report({}, {}) == 1


def test_a_run_that_pruned_nothing_proves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    around = outcomes(one=("passed", ""), two=("passed", ""))
    for reports in around.values():
        reports[0]["pruned"] = 0
    assert peers.report(BARE, around) == 1
    assert "(0 of these pruned images)" in capsys.readouterr().out
