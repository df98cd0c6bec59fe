"""What the leaderboard says of a result: by budget, every run's figures, and which of them are told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.evaluation.blind import NAME as BLIND
from foveate.evaluation.leaderboard.checked import Measured, Result
from foveate.evaluation.report import (
    GROUP_A,
    RIGHT,
    UNGUESSED,
    Cell,
    Group,
    Grouped,
    Report,
    Run,
    Stratum,
    figure_of,
)
from foveate.evaluation.runner import ALL
from foveate.evaluation.standings import Standing, standings
from foveate.evaluation.statistics import Design, Estimate
from foveate.resizing import NAME as RESIZE

ROUNDING = 1.0
"""Tokens per question by which a run may exceed its budget: budgets are rounded up, picture by picture."""


@dataclass(frozen=True)
class Line:
    """One run in the table of a budget.

    Args:
        run: which, and its tokens and milliseconds.
        cells: its figures by group of questions; those without a figure are left out.
        standing: where it stands among the methods of the table; None of the run with all tokens, of that without the
            picture, and of runs that sent more tokens than the budget.
        resize_in_time: what smaller pictures reach in the same milliseconds, NaN where nothing says.
    """

    run: Measured
    cells: dict[str, Estimate]
    standing: Standing | None
    resize_in_time: float


@dataclass(frozen=True)
class Table:
    """What was measured at one budget: all tokens first, then by group of methods, no picture last.

    Args:
        keep: the budget.
        lines: the runs.
    """

    keep: float | int
    lines: tuple[Line, ...]

    @property
    def resized(self) -> bool:
        """Whether downsampling was run at this budget."""
        return any(line.run.method == RESIZE for line in self.lines)


@dataclass(frozen=True)
class Board:
    """All tables of one result.

    Args:
        result: the evaluation.
        groups: of questions, that have a figure, the main one first.
        tables: by budget, the largest first, fractions before numbers of tokens.
    """

    result: Result
    groups: tuple[str, ...]
    tables: tuple[Table, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """Parts of the time that some run tells of."""
        return tuple(dict.fromkeys(name for run in self.result.runs for name in run.stages))


def board(result: Result) -> Board:
    """Works out all tables of a result."""
    report = _report(result)
    main = _Questions(result, result.groups()[0])
    budgets = sorted(
        {repr(run.keep): run.keep for run in result.runs if run.method not in (ALL, BLIND)}.values(),
        key=lambda keep: (isinstance(keep, int), -keep),
    )
    tables = [_table(result, report, main, keep) for keep in budgets]
    return Board(result, report.groups, tuple(tables))


def _table(result: Result, report: Report, main: _Questions, keep: float | int) -> Table:
    own = [run for run in result.runs if repr(run.keep) == repr(keep) and run.method not in (ALL, BLIND)]
    compared = [run for run in own if within(run)]
    told = dict(
        zip(
            [run.key for run in compared],
            standings([run.tallies[main.places] for run in compared], main.design(result)),
            strict=True,
        )
    )

    def line(run: Measured) -> Line:
        cells = {
            cell.group: cell.estimate
            for cell in report.cells
            if (cell.method, repr(cell.keep)) == run.key and cell.estimate.count
        }
        (spent,) = (one for one in report.runs if (one.method, repr(one.keep)) == run.key)
        return Line(run, cells, told.get(run.key), report.resized_in_time_of(spent, report.groups[0]))

    def place(one: Line) -> tuple[float, float, str]:
        group = one.standing.group if one.standing else math.inf
        return group, -one.cells[report.groups[0]].value, one.run.method

    whole = [line(run) for run in result.runs if run.method == ALL]
    blind = [line(run) for run in result.runs if run.method == BLIND]
    return Table(keep, (*whole, *sorted(map(line, own), key=place), *blind))


def within(run: Measured) -> bool:
    """Whether a run sent no more tokens than its budget, which it must to be compared with others at that budget."""
    most = run.keep * run.total if isinstance(run.keep, float) else run.keep
    return run.kept <= most + ROUNDING


class _Questions:
    """The questions of a group, or the ``chosen`` of them: their places, strata, and what the strata weigh."""

    def __init__(self, result: Result, group: Group, chosen: np.ndarray | None = None) -> None:
        told = [
            (place, group.stratum_of(item))
            for place, item in enumerate(result.items)
            if chosen is None or chosen[place]
        ]
        self.group = group
        self.places = np.array([place for place, stratum in told if stratum is not None], dtype=int)
        self.strata = [stratum.name for _, stratum in told if stratum is not None]
        self.pictures = [result.items[place].image for place in self.places]
        self.weights = {stratum.name: stratum.weight for stratum in group.strata}

    def design(self, result: Result) -> Design:
        return Design(self.pictures, result.metric.value, self.strata, self.weights)

    def estimate(self, result: Result, run: Measured) -> Estimate:
        """The figure with its interval, as ``foveate eval`` works it out."""
        answers = {
            str(place): (run.tallies[place], picture, stratum)
            for place, picture, stratum in zip(self.places.tolist(), self.pictures, self.strata, strict=True)
        }
        return figure_of(Grouped(answers), self.group, result.metric, bootstrapped=result.world is None)[0]


def _report(result: Result) -> Report:
    """The figures, as ``foveate eval`` works them out from answers."""
    groups = result.groups()
    cells = [
        Cell(run.method, run.keep, group.name, questions.estimate(result, run), math.nan)
        for group in groups
        for questions in [_Questions(result, group)]
        for run in result.runs
    ]
    by_key = {run.key: run for run in result.runs}
    guessed = _right(by_key[BLIND, "0"])
    cells += [_cell(result, run, UNGUESSED, ~guessed) for run in result.runs]
    whole = _right(by_key[ALL, "1.0"])
    resized = {key[1]: run for key, run in by_key.items() if key[0] == RESIZE}
    for run in result.runs:
        small = resized.get(repr(run.keep))
        if small is not None and run is not small:
            cells.append(_cell(result, run, GROUP_A, whole & ~_right(small)))
    names = (*(group.name for group in groups), UNGUESSED, *([GROUP_A] if resized else []))
    runs = [
        Run(
            run.method,
            run.keep,
            run.kept,
            run.total,
            run.latency_ms,
            len(result.items),
            run.encoded,
            over_budget=run.over_budget,
        )
        for run in result.runs
    ]
    return Report(tuple(runs), names, tuple(cells), (), result.metric)


def _right(run: Measured) -> np.ndarray:
    """(n,) whether each question was answered rightly."""
    return np.asarray(run.tallies[:, -2] > RIGHT)


def _cell(result: Result, run: Measured, name: str, chosen: np.ndarray) -> Cell:
    """The figure over some of the questions."""
    questions = _Questions(result, Group(name, (Stratum(name, lambda item: True),)), chosen)
    return Cell(run.method, run.keep, name, questions.estimate(result, run), math.nan)


def boards(results: Sequence[Result]) -> list[Board]:
    """Those of several results, by suite, then by model."""
    return sorted(map(board, results), key=lambda one: (one.result.suite, one.result.model, one.result.identity))
