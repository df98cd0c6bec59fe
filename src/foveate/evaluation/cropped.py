"""Crops by question as an axis of an evaluation: a method under which only some of a picture's crops are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from foveate.asking_again import AskAgain, taken_apart
from foveate.crops import Crops
from foveate.pruners import Method

NAME = "crops"
ALL = "all"
"""Behind ``crops:``, all tokens of what was encoded; alone, the run with all tokens."""


@dataclass(frozen=True)
class Cropped:
    """A method, or a way of asking again, and which crops are encoded under it.

    Args:
        crops: see ``foveate.Crops``.
        method: what chooses among what was encoded.
        whole: whether it keeps all of that, whatever the budget.
    """

    crops: Crops
    method: Method | AskAgain
    whole: bool = False


@dataclass(frozen=True)
class Spelled:
    """What evaluation calls it: ``crops:amount=0.5:by=random:cdpruner``, with options as of ``foveate.Crops``.

    The method stands last, with options of its own, and may be a way of asking again, or ``all``: all tokens of what
    was encoded.

    Args:
        crops: what the options say; None where all are encoded: the plain method.
        method: the method's name.
        lucky: whether the crops are drawn by chance, and the name does not say with which seed.
    """

    crops: Crops | None
    method: str
    lucky: bool = False

    @classmethod
    def read(cls, text: str) -> Spelled:
        """Raises ValueError for another name, or options that ``Crops`` does not have or refuses."""
        example = "amount=0.5:cdpruner"
        options, method = taken_apart(text, NAME, [one.name for one in fields(Crops)], example)
        if not method:
            raise ValueError(f"{text!r}: the method stands behind, as in {NAME}:{example}")
        if is_cropped(method):
            raise ValueError(f"{text!r}: {NAME} stand there twice: write one amount of them")
        amount = options.pop("amount", str(Crops()))
        try:
            crops = Crops.of(":".join([amount, *(f"{option}={value}" for option, value in options.items())]))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
        if crops is None and method == ALL:
            raise ValueError(f"{text!r} is the run with all tokens, which is done in any case: leave it out")
        lucky = crops is not None and crops.by == "random" and "seed" not in options
        return cls(crops, method, lucky)

    def __str__(self) -> str:
        return self.method if self.crops is None else f"{NAME}:amount={self.crops}:{self.method}"

    @property
    def title(self) -> str:
        """For tables and plots."""
        method = "all tokens" if self.method == ALL else self.method
        return method if self.crops is None else f"{method}, crops {self.crops}"

    def of(self, picture: int) -> Crops:
        """The crops of a picture of that number, so that luck differs from picture to picture."""
        assert self.crops is not None
        return replace(self.crops, seed=picture) if self.lucky else self.crops


def is_cropped(name: str) -> bool:
    """Whether a name stands for a method under which only some crops are encoded."""
    return name.split(":")[0] == NAME


def spread(methods: Sequence[str], amounts: Sequence[Crops | None], whole: bool) -> list[str]:
    """Every method under every amount of crops.

    Args:
        methods: names, without crops of their own.
        amounts: None for all crops.
        whole: whether all tokens of what was encoded is one more method.

    Raises:
        ValueError: a method that names its crops already.
    """
    for name in filter(is_cropped, methods):
        raise ValueError(f"{name} says which crops are encoded, and so does --crops: leave out one of them")
    names = [str(Spelled(crops, name)) for crops in amounts for name in methods]
    return [str(Spelled(crops, ALL)) for crops in amounts if crops is not None and whole] + names


def counterparts(name: str, methods: Sequence[str]) -> list[str]:
    """What a run under crops is compared with: the same method without, and the same number of crops drawn by chance.

    Args:
        name: of a run.
        methods: all that were run.
    """
    if not is_cropped(name):
        return []
    own = Spelled.read(name)
    found = [own.method] if own.method in methods else []
    if own.crops is None or own.crops.by == "random":
        return found
    others = {one: Spelled.read(one) for one in methods if is_cropped(one)}
    return found + [
        one
        for one, other in others.items()
        if other.crops is not None
        and other.crops.by == "random"
        and (other.method, repr(other.crops.amount)) == (own.method, repr(own.crops.amount))
    ]
