"""How much of a picture stays: what people write as ``keep``, and how many tokens that is."""

from __future__ import annotations

import math
import numbers
import re
import reprlib
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) ?%")
_TOKENS = re.compile(r"([0-9]+) ?t(?:okens?)?")


@dataclass(frozen=True)
class Keep:
    """How much of an image stays: a fraction of its patch tokens, or a number of tokens.

    Args:
        value: a float in (0, 1], the fraction of each image's patch tokens; or an int >= 1, tokens per image.
            ``1.0`` keeps everything, ``1`` keeps a single token. A numpy scalar counts as what it prints as:
            ``np.float32(0.1)`` is 0.1.

    Raises:
        TypeError: ``value`` is no number (bool and arrays included).
        ValueError: ``value`` is NaN, infinite, zero, negative, or a fraction above 1.
    """

    value: float | int

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            # Of what may print as pages (a tensor, a model), the type says enough.
            shown = f"{reprlib.repr(value)}, a " if isinstance(value, (str, bytes, bool)) else ""
            instead = "write keep=0.1, say"
            if isinstance(value, str) and value == "auto":
                instead = 'that is foveate.Auto(method), or foveate.get_pruner("cover", keep="auto")'
            raise TypeError(
                f"keep must be a float in (0, 1] or an int >= 1 (tokens per image), got {shown}{type(value).__name__}: "
                f"{instead}"
            )
        if isinstance(value, numbers.Integral):
            if value < 1:
                raise ValueError(f"keep={value} keeps no token: give an int >= 1 or a float in (0, 1]")
            object.__setattr__(self, "value", int(value))
            return
        # In single precision 0.1 is a hair more, and a hair more of 1000 tokens would be 101.
        number = float(str(value)) if isinstance(value, np.floating) else float(value)
        if not 0.0 < number <= 1.0:  # NaN fails both comparisons
            raise ValueError(
                f"keep={value!r} is no fraction of an image's tokens: give a float in (0, 1], "
                "or an int for tokens per image"
            )
        object.__setattr__(self, "value", number)

    @classmethod
    def read(cls, given: object, name: str = "keep") -> Keep:
        """What people write outside Python: on a command line, in a configuration file, in a request to a server.

        Texts are ``"10%"`` (a fraction), ``"64t"`` (tokens per image), ``"0.1"`` and ``"64"``; numbers are taken as
        ``Keep`` takes them. A bare ``1`` is refused there, as text and as number: some mean all tokens by it (JSON as
        JavaScript writes it has no ``1.0``) and some a single one.

        Args:
            given: a text or a number.
            name: what it was given as, for messages: ``"--keep"``.

        Raises:
            ValueError: a text that is neither, a budget that ``Keep`` refuses, or a bare 1.
            TypeError: neither text nor number.
        """
        value: object = given
        if isinstance(given, str):
            text = given.strip().lower()
            if found := _PERCENT.fullmatch(text):
                value = float(Decimal(found[1]) / 100)
            elif found := _TOKENS.fullmatch(text):
                return cls(int(found[1]))
            else:
                value = _number(text)
                if value is None:
                    raise ValueError(
                        f"{name} {given!r} is no budget: give a part of each image's tokens, such as 10% or 0.1, or "
                        "tokens per image, such as 64t or 64"
                    )
        if isinstance(value, numbers.Integral) and not isinstance(value, bool) and value == 1:
            raise ValueError(
                f"{name} {given} may mean all tokens or a single one: write 100% (or 1.0) for all of them, 1t for one"
            )
        try:
            return cls(value)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{name} {given}: {error}") from None

    @property
    def written(self) -> float | int | str:
        """The value as ``read`` takes it: itself, but for a single token ``"1t"``."""
        return "1t" if isinstance(self.value, int) and self.value == 1 else self.value

    def __str__(self) -> str:
        """For people: see ``keep_label``."""
        return keep_label(self.value)

    def budget(self, tokens: int) -> int:
        """Tokens kept out of ``tokens``: ``max(1, ceil(keep * tokens))`` or the int, never above ``tokens``.

        Raises:
            ValueError: ``tokens`` < 1.
        """
        if tokens < 1:
            raise ValueError(f"an image without patch tokens (got {tokens}) leaves nothing to keep")
        if isinstance(self.value, int):
            return min(self.value, tokens)
        # 0.55 * 100 is 55.00000000000001 in binary: without the guard, ceil would keep a token too many.
        return min(max(1, math.ceil(self.value * tokens - 1e-9)), tokens)

    def exceeds(self, other: Keep) -> bool:
        """Whether it keeps more. Nothing exceeds all tokens, and a single token nothing; else a fraction and a number
        of tokens cannot be compared, and count as exceeding each other."""
        if type(self.value) is type(other.value):
            return self.value > other.value
        if isinstance(self.value, int) and self.value == 1:
            return False
        return not (isinstance(other.value, float) and other.value == 1.0)


def _number(text: str) -> float | int | None:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def keep_label(keep: float | int) -> str:
    """A budget for people, as ``Keep.read`` takes it: ``"10%"``, ``"64t"``."""
    if isinstance(keep, int):
        return f"{keep}t"
    return f"{(Decimal(repr(float(keep))) * 100).normalize():f}%"
