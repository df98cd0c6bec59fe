"""What a search turns: the budget of a method, the share of ``auto``, the margin and first budget of ``ask-again``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import takewhile

from foveate.asking_again import NAME as ASK_AGAIN
from foveate.keep import keep_label
from foveate.method_names import AUTO
from foveate.tokens import Keep

LADDER = tuple(round(0.02 ** (rung / 24), 3) for rung in range(25))
"""Budgets that are tried, 1 first, each about 15 % below the one before."""
SCREENED = 0.1
"""The budget at which methods are compared when there are more than go on."""

SHARES = (0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.91, 0.89, 0.86, 0.83, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)
"""Shares of ``auto`` that are tried, most tokens first, under its usual ceiling, or none where its floor is higher."""
CEILING = 0.25
SCREENED_SHARE = 0.8

MARGINS = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1)
"""Margins of ``ask-again`` that are tried, most tokens first."""
SCREENED_MARGIN = 0.5
FIRSTS = (0.02, 0.05, 0.1)
SECONDS = (1.0, 0.25)
"""First and second budgets of which each pair is compared."""

Run = tuple[str, float | int]
"""A method's name with all options, and its budget."""


@dataclass(frozen=True)
class Dial:
    """Runs of one method, from those that spend most tokens to those that spend least.

    Args:
        label: for people.
        runs: at least one; all tokens stand before the first.
        probe: the run by which it is compared with others beforehand.
        plain: whether it is the budget that is turned.
    """

    label: str
    runs: tuple[Run, ...]
    probe: Run
    plain: bool


def dials_of(method: str) -> list[Dial]:
    """The dials that a method has, of which the best is to be found.

    Args:
        method: as for ``evaluate``. Of ``auto`` and ``ask-again``, what stands in the name is left as it is.
    """
    name, *parts = method.split(":")
    own = dict(one.split("=", 1) for one in takewhile(lambda one: "=" in one, parts))
    held = ":".join(parts[len(own) :])

    def spell(**options: object) -> str:
        return ":".join([name, *(f"{option}={value}" for option, value in {**own, **options}.items()), held])

    least = Keep.read(own.get("floor", "0.02")).value if name == AUTO else 0.0
    if name == AUTO and "share" not in own:
        ceiling = 1.0 if isinstance(least, float) and least > CEILING else CEILING
        runs = tuple((spell(share=share), ceiling) for share in SHARES)
        return [Dial(method, runs, (spell(share=SCREENED_SHARE), ceiling), plain=False)]
    if name == ASK_AGAIN:
        firsts = [Keep.read(own["first"]).value] if "first" in own else FIRSTS
        margins = [ast.literal_eval(own["margin"])] if "margin" in own else MARGINS
        probed = margins[0] if "margin" in own else SCREENED_MARGIN
        return [
            Dial(
                f"{spell(first=first)}, then {keep_label(then)}",
                tuple((spell(first=first, margin=margin), then) for margin in margins),
                (spell(first=first, margin=probed), then),
                plain=False,
            )
            for first in firsts
            for then in SECONDS
            if Keep(then).exceeds(Keep(first))
        ]
    budgets = [keep for keep in LADDER[1:] if not Keep(least).exceeds(Keep(keep))] if least else list(LADDER[1:])
    return [Dial(method, tuple((method, keep) for keep in budgets), (method, SCREENED), plain=True)]
