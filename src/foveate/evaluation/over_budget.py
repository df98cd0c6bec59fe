"""What tables say of smaller pictures that exceed a budget, because the model makes more tokens of them at any size."""

from __future__ import annotations

MEANING = (
    "however small the picture is made, the model makes more tokens of it than the budget says; the largest size with "
    "the fewest tokens is asked about, the row's tokens say how many these are, and group A is what goes wrong there"
)
"""Of "over budget" behind ``resize``, for legends."""


def marked(name: str, over: int, count: int) -> str:
    """A run's name in tables, with "over budget" behind it where it is.

    Args:
        name: of the run.
        over: questions whose pictures exceed the budget; unless these are all, their part is told.
        count: of all its questions.
    """
    if not over:
        return name
    return f"{name} (over budget{'' if over == count else f' for {_part(over, count)}'})"


def _part(over: int, count: int) -> str:
    share = 100 * over / count
    return f"{share:.0f} %" if 0.5 <= share < 99.5 else f"{over} of {count}"
