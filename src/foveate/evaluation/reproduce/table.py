"""The table: asked line by line, each kept on disk when it is done, and printed beside what was published."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate import __version__
from foveate.evaluation.reproduce.asking import Asking, FailedError, Score, Settings, UnfitError
from foveate.evaluation.reproduce.papers import Line, Paper, Task
from foveate.evaluation.runner import ALL, SETTINGS_FILE, claim

NONE = "-"
"""Where nothing was published, or nothing measured."""


@dataclass(frozen=True)
class Done:
    """A line of the table with what was measured: scores by the name of the task."""

    line: Line
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Reproduced:
    """What there is of the table.

    Args:
        paper: whose.
        tasks: the columns.
        lines: those that were asked, in the paper's order.
        left_out: why others were not, by title and budget.
        failed: whether some of these might have been, and were not.
    """

    paper: Paper
    tasks: Sequence[Task]
    lines: Sequence[Done]
    left_out: Mapping[str, str]
    failed: bool = False

    def relative(self, done: Done) -> float:
        """The mean over the tasks of a line's part of what all tokens reach, %; NaN without that."""
        whole = next((one.scores for one in self.lines if one.line.method == ALL), {})
        if not all(task.name in whole and whole[task.name].value and task.name in done.scores for task in self.tasks):
            return math.nan
        return math.fsum(100 * done.scores[one.name].value / whole[one.name].value for one in self.tasks) / len(
            self.tasks
        )

    def cells(self) -> list[list[str]]:
        """Rows of texts; the first is the head. Measured and published stand in one cell, ``58.1 / 58.53``."""
        heads = ["", "keep", "kept, %", *(task.title for task in self.tasks), "average, %", "published"]
        return [heads, *map(self._row, self.lines)]

    def _row(self, done: Done) -> list[str]:
        line = done.line
        shares = [score.share for score in done.scores.values() if score.share is not None]
        share = f"{100 * math.fsum(shares) / len(shares):.1f}" if shares else NONE
        return [
            line.title,
            f"{line.keep:g}",
            share,
            *(f"{_figure(done.scores.get(task.name))} / {_published(line, task)}" for task in self.tasks),
            NONE if math.isnan(self.relative(done)) else f"{self.relative(done):.2f}",
            NONE if not self.comparable or line.average is None else f"{line.average:.2f}",
        ]

    @property
    def comparable(self) -> bool:
        """Whether the average is over the paper's tasks, all of them and nothing else."""
        return {task.title for task in self.tasks} == {task.title for task in self.paper.tasks}

    def note(self) -> str:
        """What stands below the table."""
        told = f"Measured / published. Published figures are of {self.paper.source}, on {self.paper.model}."
        average = " The average is over the tasks, in % of what all tokens reach (none where that is 0)"
        if not self.comparable:
            average += "; the published one is over other tasks and is left out"
        return f"{told}{average}."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "paper": self.paper.name,
            "source": self.paper.source,
            "published_model": self.paper.model,
            "lines": [
                {
                    "method": done.line.method,
                    "title": done.line.title,
                    "keep": done.line.keep,
                    "scores": {name: asdict(score) for name, score in done.scores.items()},
                    "published": {
                        task.name: done.line.figures[task.title]
                        for task in self.tasks
                        if task.title in done.line.figures
                    },
                    "average": None if math.isnan(self.relative(done)) else self.relative(done),
                    "published_average": done.line.average if self.comparable else None,
                }
                for done in self.lines
            ],
            "left_out": dict(self.left_out),
            "note": self.note(),
        }

    def markdown(self) -> str:
        """The table and its note."""
        heads, *rows = self.cells()
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        told = [f"| {' | '.join(cells)} |" for cells in lines]
        reasons = [f"Left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join([*told, "", self.note(), *(part for reason in reasons for part in ("", reason))]) + "\n"


def _figure(score: Score | None) -> str:
    return NONE if score is None else f"{score.value:.2f}"


def _published(line: Line, task: Task) -> str:
    value = line.figures.get(task.title)
    return NONE if value is None else f"{value:.2f}"


def reproduce(
    paper: Paper,
    asking: Sequence[Asking],
    methods: Sequence[str] | None,
    settings: Settings,
    out: Path,
    progress: Callable[[str], None] | None = None,
) -> Reproduced:
    """Asks what has no result yet, line by line.

    Args:
        paper: whose table.
        asking: who asks which tasks.
        methods: of the paper, besides all tokens; None for all.
        settings: how everything is asked. Another model, dtype or limit needs another folder.
        out: folder; a line and task that has its result there is not asked again.
        progress: told what is asked now.

    Raises:
        ValueError: an unknown method, a folder of other settings, or the first line, all tokens, could not be asked.
    """
    unknown = [name for name in methods or () if name not in paper.methods]
    if unknown:
        raise ValueError(f"unknown method {unknown[0]!r} of {paper.name}'s table; known: {', '.join(paper.methods)}")
    recorded = {"paper": paper.name, "model": settings.model, "dtype": settings.dtype}
    claim(out, SETTINGS_FILE, {**recorded, "limit": settings.limit, "foveate": __version__})
    lines: list[Done] = []
    left_out: dict[str, str] = {}
    failed = False
    for line in paper.lines:
        if line.method != ALL and methods is not None and line.method not in methods:
            continue
        path = out / "lines" / f"{line.slug}.json"
        scores = _read(path)
        for one in asking:
            missing = [task for task in one.tasks if task.name not in scores]
            if not missing:
                continue
            if progress is not None:
                progress(f"{line.title} at {line.keep:g}: {', '.join(task.name for task in missing)}")
            try:
                scores = {**scores, **one.scores(line, missing)}
            except (UnfitError, FailedError) as error:
                if line.method == ALL:
                    raise  # nothing is told without it, and what keeps it from being asked keeps the others
                failed = failed or isinstance(error, FailedError)
                left_out[f"{line.title} at {line.keep:g}"] = str(error)
                break
            _write(path, scores)
        else:
            lines.append(Done(line, scores))
    return Reproduced(paper, [task for one in asking for task in one.tasks], lines, left_out, failed)


def _read(path: Path) -> dict[str, Score]:
    if not path.is_file():
        return {}
    try:
        return {name: Score(**told) for name, told in json.loads(path.read_text(encoding="utf-8")).items()}
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"{path} is damaged: delete it, and its line is asked again") from None


def _write(path: Path, scores: Mapping[str, Score]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({name: asdict(score) for name, score in scores.items()}, indent=2) + "\n", "utf-8")
    os.replace(partial, path)
