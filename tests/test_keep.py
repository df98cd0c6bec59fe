"""What people write as a budget outside Python, and that nobody can mistake it."""

from __future__ import annotations

import json
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from foveate import Keep, get_pruner
from foveate.cli import app
from foveate.evaluation.dials import dials_of
from foveate.pruners import parse_method
from foveate.serving.policy import Policy


@pytest.mark.parametrize(
    "text, value",
    [
        ("10%", 0.1), ("100%", 1.0), ("100 %", 1.0), ("12.5%", 0.125), (".5%", 0.005), ("7%", 0.07), ("0.1", 0.1),
        ("1.0", 1.0), ("64", 64), ("64t", 64), ("64 tokens", 64), ("1t", 1), ("100", 100), (" 0.25 ", 0.25),
    ],
)  # fmt: skip
def test_texts(text: str, value: float | int) -> None:
    found = Keep.read(text).value
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("given_", ["1", "+1", "01", " 1 ", "１", 1])
def test_a_bare_one_is_refused(given_: object) -> None:
    with pytest.raises(ValueError, match=r"may mean all tokens or a single one: write 100% \(or 1.0\) .* 1t for one"):
        Keep.read(given_, "--keep")


@pytest.mark.parametrize("text", ["", "x", "%", "10%%", "-10%", "t", "0t", "0%", "101%", "64.0", "1.5t", "nan", "inf"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="keep"):
        Keep.read(text)


@pytest.mark.parametrize("value", [None, True, [1], b"10%"])
def test_other_things_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="keep must be"):
        Keep.read(value)


@given(st.integers(1, 10**6))
def test_a_percentage_is_the_fraction_beside_it(hundredths: int) -> None:
    percent = hundredths / 10**4 if hundredths % 10**4 else hundredths // 10**4
    exact = Fraction(str(percent)) / 100
    assert Fraction(Keep.read(f"{percent}%").value) == Fraction(float(exact))


@given(st.one_of(st.integers(1), st.floats(0, 1, exclude_min=True, allow_subnormal=False)))
def test_what_is_printed_can_be_typed(value: float | int) -> None:
    """And what is sent can be read, with Python's int 1 among them."""
    keep = Keep(value)
    for written in (str(keep), keep.written):
        again = Keep.read(written)
        assert again == keep and type(again.value) is type(keep.value)


def test_in_python_numbers_stay_what_they_are() -> None:
    assert get_pruner("cover", keep=1).keep == 1 and isinstance(get_pruner("cover", keep=1).keep, int)
    assert Keep(1).budget(50) == 1 and Keep(1.0).budget(50) == 50


def test_options_that_are_budgets() -> None:
    assert parse_method("auto:floor=2%:cover")[1]["floor"] == 0.02
    assert parse_method("auto:floor=1t:cover")[1]["floor"] == 1
    with pytest.raises(ValueError, match="floor 1 may mean"):
        parse_method("auto:floor=1:cover")
    (dial, _) = dials_of("ask-again:first=5%:margin=0.5:cover")
    assert dial.runs == (("ask-again:first=0.05:margin=0.5:cover", 1.0),)


def test_requests_to_a_server() -> None:
    policy = Policy(keep="5%", max_keep="50%")  # type: ignore[arg-type]
    assert (policy.keep, policy.max_keep) == (0.05, 0.5)
    assert policy.wish({"keep": "10%"}).keep == Keep(0.1) and policy.wish({"keep": "9t"}).keep == Keep(9)
    assert Policy(keep=1).wish({}).keep.value == 1  # its own default, typed in Python
    with pytest.raises(ValueError, match=r"keep 1 may mean all tokens or a single one.*allows 0 < keep <= 0.5"):
        policy.wish({"keep": 1})
    for one in (Policy(keep=1), Policy(keep=1.0), Policy(keep=0.1, max_keep=64)):
        given_ = json.loads(json.dumps(one.as_dict()))
        again = Policy.of(SimpleNamespace(foveate=given_))
        assert again == one and again is not None and type(again.keep) is type(one.keep)
    with pytest.raises(ValueError, match="keep 1 may mean"):  # as typed behind vLLM's --hf-overrides
        Policy.of(SimpleNamespace(foveate={"method": "adafv", "keep": 1}))
    with pytest.raises(ValueError, match="more than this server allows"):
        policy.wish({"keep": "100%"})


@pytest.mark.parametrize(
    "words",
    [
        ("ask", "pyproject.toml", "Is there a cat?", "--keep", "1"),
        ("ask", "pyproject.toml", "Is there a cat?", "--again", "1"),
        ("eval", "--keep", "1,0.1"),
        ("eval", "--keep", "0.1,1t"),
        ("eval", "--methods", "ask-again:first=1:cover"),
        ("bench", "--keep", "1,0.1"),
        ("bench", "--serve", "--keep", "1"),
        ("bench", "--selection", "--keep", "1"),
        ("serve", "bundled", "--keep", "1"),
        ("serve", "bundled", "--max-keep", "1"),
    ],
)
def test_every_command_refuses_it(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2, result.output
    assert "single" in result.stderr and "Traceback" not in result.stderr
