"""Answers without the picture: what a model guesses from the question alone."""

from __future__ import annotations

from dataclasses import dataclass

NAME = "blind"
"""What evaluation calls it."""


@dataclass(frozen=True)
class Blind:
    """The question alone is asked, as text. How many are answered rightly so says how much a suite's questions need
    their pictures."""


def is_blind(name: str) -> bool:
    """Whether a method's name stands for answers without the picture.

    Raises:
        ValueError: it has options.
    """
    first, colon, options = name.partition(":")
    if first == NAME and colon:
        raise ValueError(f"{name!r}: {NAME} has no options, and its budget is always 0 tokens; got {options!r}")
    return first == NAME
