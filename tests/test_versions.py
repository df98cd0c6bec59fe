"""Transformers outside the tested range is said aloud, once."""

from __future__ import annotations

import warnings

import pytest
import transformers

from foveate import versions
from foveate.versions import LOWEST, NEWEST, TESTED, is_tested, warn_untested


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_warned", set())


@pytest.mark.parametrize(
    "version, tested",
    [
        ("5.4.0", False),
        ("5.5.0.dev0", False),
        ("5.5.0rc1", False),
        ("5.5.0", True),
        ("5.19.0", True),
        ("5.20.0.dev0", True),
        ("5.24.0", True),
        ("5.24.0+cu130", True),
        ("5.24.3", True),
        ("5.25.0.dev0", False),
        ("5.25.0rc1", False),
        ("5.25.0", False),
        ("6.0.0", False),
        ("built yesterday", False),
    ],
)
def test_what_is_tested(version: str, tested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written for one range: with other versions in versions.py, these go along."""
    assert (LOWEST, NEWEST) == ("5.5.0", "5.24.0")
    assert is_tested(version) is tested
    monkeypatch.setattr(transformers, "__version__", version)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_untested()
        warn_untested()
    assert len(said) == (not tested)


def test_the_warning_names_both_and_what_to_install() -> None:
    with pytest.warns(UserWarning, match="5.25.0") as said:
        warn_untested("5.25.0")
    (message,) = [str(warning.message) for warning in said]
    assert f"{LOWEST} to {NEWEST}" in message and f'pip install "transformers{TESTED}"' in message


def test_an_error_is_raised_every_time() -> None:
    """Who turns warnings into errors is not let through at the second try."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="was tested with transformers"):
                warn_untested("6.0.0")


def test_here_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_untested()
