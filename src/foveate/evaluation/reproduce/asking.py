"""What asks a task's questions under a line of a table: lmms-eval, or Foveate itself where its own worlds are asked."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from foveate.evaluation.lmms import write_task
from foveate.evaluation.lmms.task import Figures
from foveate.evaluation.reproduce.papers import Line, Paper, Task
from foveate.evaluation.runner import ALL, count_kept, generate
from foveate.evaluation.suites import drawn_suite
from foveate.evaluation.worlds import STILL
from foveate.images import load_image
from foveate.inputs import question_prompt
from foveate.loading import is_folder, load
from foveate.pruners import Method, get_pruner

PICTURES = 100
"""Of a drawn world, at most; with a limit as many as there may be questions."""
ANSWER = 8
"""Longest answer about a drawn picture, tokens: as ``foveate eval`` and the tasks for lmms-eval have it."""
FIGURE = "pooled"
"""The figure of a drawn world: accuracy over its core questions."""
LMMS = "lmms_eval"
INSTALL = "pip install 'foveate[eval]' lmms-eval==0.7.3"


@dataclass(frozen=True)
class Score:
    """What a line reached on a task.

    Args:
        value: in the unit of the published figure.
        count: of questions, where it is known.
        share: of the visual tokens, what was kept, where it is known.
    """

    value: float
    count: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Settings:
    """How everything is asked.

    Args:
        model: a folder, a hub id, or the name of a model that ships with the package.
        dtype: see ``foveate.loading.load``.
        limit: questions of each task, from the first; None for all.
        batch: most questions asked at once.
        processes: of lmms-eval, each on a GPU of its own.
    """

    model: str
    dtype: str = "auto"
    limit: int | None = None
    batch: int = 1
    processes: int = 1

    @property
    def ships(self) -> bool:
        """Whether the model ships with the package: a hub id has an owner before it."""
        return "/" not in self.model and not is_folder(self.model)


class UnfitError(ValueError):
    """The model cannot be pruned as a line of the table wants it."""


class FailedError(ValueError):
    """lmms-eval failed on a line of the table."""


class Asking(Protocol):
    """Asks tasks of one sort."""

    tasks: Sequence[Task]

    def scores(self, line: Line, tasks: Sequence[Task]) -> dict[str, Score]:
        """What the line reaches on each task, by its name.

        Raises:
            UnfitError: the model cannot be pruned that way.
            FailedError: lmms-eval failed.
        """


Load = Callable[[str, str], tuple[Any, Any]]
"""Loads a model and its processor, by its name and a dtype's."""


def plan(
    names: Sequence[str] | None, paper: Paper, settings: Settings, out: Path, loading: Load | None = None
) -> list[Asking]:
    """Who asks the tasks of these names. By default they are the paper's, of a model that ships Foveate's own worlds.

    Args:
        names: of tasks; None for the default.
        paper: whose table.
        settings: how they are asked.
        out: folder for drawn pictures and what lmms-eval writes.
        loading: for what is asked here; default ``foveate.loading.load``.

    Raises:
        ValueError: an unknown task, or one that needs what is not there.
        ModuleNotFoundError: a task of lmms-eval's, which is not installed.
    """
    names = names or ([*STILL] if settings.ships else [task.name for task in paper.tasks])
    own = [Task(name, name, FIGURE) for name in names if name in STILL]
    drawn = {Figures(world).task: world.name for world in STILL.values()}
    others: list[Task] = []
    for name in names:
        if name in STILL:
            continue
        task = Task(name, name, FIGURE) if name in drawn else paper.task(name)
        if task is None:
            known = [*STILL, *drawn, *(task.name for task in (*paper.tasks, *paper.others))]
            raise ValueError(f"unknown task {name!r}; known: {', '.join(known)}")
        others.append(task)
    titles = [task.title for task in (*own, *others)]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ValueError(f"two of the tasks are {twice}: leave one out")
    asking: list[Asking] = []
    if own:
        asking.append(OwnWorlds(own, settings, out, loading or (lambda model, dtype: load(model, dtype=dtype))))
    if others:
        asking.append(LmmsEval(others, settings, out, drawn))
    return asking


class OwnWorlds:
    """Foveate's drawn worlds, asked in this process the way that lmms-eval's model asks: stock ``generate`` under a
    pruner, batches across pictures."""

    def __init__(self, tasks: Sequence[Task], settings: Settings, out: Path, loading: Load) -> None:
        self.tasks, self.settings, self.out, self.loading = tasks, settings, out, loading

    @functools.cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its processor."""
        return self.loading(self.settings.model, self.settings.dtype)

    def scores(self, line: Line, tasks: Sequence[Task]) -> dict[str, Score]:
        """See ``Asking``."""
        model, processor = self.loaded
        try:  # on a picture and question of which nothing can be wrong
            prompt = question_prompt(processor, "Is there a cat?", 1, model)
            generate(
                model,
                processor,
                [prompt],
                [[Image.new("RGB", (64, 64))]],
                _pruner(line),
                line.attaching,
                max_new_tokens=1,
            )
        except (TypeError, ValueError) as error:
            raise UnfitError(" ".join(str(error).split())) from error
        return {task.name: self._score(line, task.name) for task in tasks}

    def _score(self, line: Line, name: str) -> Score:
        world, limit = STILL[name], self.settings.limit
        suite = drawn_suite(world, self.out, min(PICTURES, limit or PICTURES), 0, "test")
        items = suite.items[:limit]
        model, processor = self.loaded
        pruner = _pruner(line)
        answers: list[str] = []
        kept = total = 0
        for start in range(0, len(items), self.settings.batch):
            chunk = items[start : start + self.settings.batch]
            answers += generate(
                model,
                processor,
                [question_prompt(processor, item.question, 1, model) for item in chunk],
                [[load_image(suite.folder / item.image)] for item in chunk],
                pruner,
                line.attaching,
                max_new_tokens=ANSWER,
                do_sample=False,
                num_beams=1,
            )
            for one, of in count_kept(pruner):
                kept, total = kept + one, total + of
        figures = Figures(world)
        told = [figures.results(vars(item), [text]) for item, text in zip(items, answers, strict=True)]
        counted = [one[FIGURE] for one in told if FIGURE in one]
        if not counted:
            raise ValueError(f"none of the first {len(items)} questions counts in the figure of {name}: raise --limit")
        return Score(100 * figures.aggregations[FIGURE](counted), len(items), kept / total)


def _pruner(line: Line) -> Method:
    return get_pruner("uniform" if line.pruner == ALL else line.pruner, keep=line.keep, **line.options)


class LmmsEval:
    """Tasks of lmms-eval, which runs in a process of its own: once for a line, whatever the number of tasks."""

    def __init__(self, tasks: Sequence[Task], settings: Settings, out: Path, drawn: Mapping[str, str]) -> None:
        if find_spec(LMMS) is None:
            named = ", ".join(task.name for task in tasks)
            raise ModuleNotFoundError(
                f"{named}: lmms-eval asks these, and is not installed: {INSTALL}. Without it, --tasks "
                f"{','.join(STILL)} are asked by Foveate itself"
            )
        judged = [task.name for task in tasks if task.judged]
        if judged and not os.environ.get("OPENAI_API_KEY"):
            left = ",".join(task.name for task in tasks if not task.judged)
            raise ValueError(
                f"answers to {', '.join(judged)} are judged by a model behind an API, and OPENAI_API_KEY is not set: "
                f"set it (see lmms-eval), or leave them out: --tasks {left or 'gqa'}"
            )
        self.tasks, self.settings, self.out, self.drawn = tasks, settings, out, drawn

    def command(self, line: Line, tasks: Sequence[Task], folder: Path) -> list[str]:
        """The command that asks them, which leaves its results in a folder."""
        told: dict[str, Any] = {"pretrained": self.settings.model, "dtype": self.settings.dtype, "method": line.pruner}
        if line.pruner != ALL:
            told |= {"keep": line.keep, **line.options, **line.attaching}
        launch = ["-m", LMMS]
        if self.settings.processes > 1:
            launch = ["-m", "accelerate.commands.launch", "--num_processes", str(self.settings.processes), *launch]
        command = [sys.executable, *launch, "--model", "foveate"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in told.items())]
        command += ["--tasks", ",".join(task.name for task in tasks), "--batch_size", str(self.settings.batch)]
        command += ["--output_path", str(folder)]
        command += [] if self.settings.limit is None else ["--limit", str(self.settings.limit)]
        if any(task.name in self.drawn for task in tasks):
            command += ["--include_path", str(self.out / "tasks")]
        return command

    def scores(self, line: Line, tasks: Sequence[Task]) -> dict[str, Score]:
        """See ``Asking``."""
        for task in tasks:
            if task.name in self.drawn:
                self._draw(self.drawn[task.name])
        folder = self.out / "lmms" / line.slug / "-".join(task.name for task in tasks)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        command = self.command(line, tasks, folder)
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
        said = log.read_text(encoding="utf-8", errors="replace")
        files = sorted(folder.rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
        if done.returncode or not files:
            last = " ".join(said.split()[-40:])
            raise FailedError(
                f"lmms-eval failed on {line.title} at {line.keep:g} (status {done.returncode}); the whole of it is in "
                f"{log}, which ends: {last}"
            )
        told = json.loads(files[-1].read_text(encoding="utf-8"))
        counts = [(int(kept), int(of)) for kept, of in re.findall(r"kept (\d+) of (\d+) visual tokens", said)]
        share = sum(kept for kept, _ in counts) / sum(of for _, of in counts) if counts else None
        return {task.name: _read(told, task, share, files[-1]) for task in tasks}

    def _draw(self, name: str) -> None:
        folder = self.out / "tasks"
        drawn_suite(STILL[name], folder, min(PICTURES, self.settings.limit or PICTURES), 0, "test")
        write_task(folder / name, name)


def _read(told: Mapping[str, Any], task: Task, share: float | None, path: Path) -> Score:
    figures = told.get("results", {}).get(task.name, {})
    value = figures.get(f"{task.metric},none")
    if not isinstance(value, (int, float)):
        raise FailedError(
            f"{path} has no figure {task.metric} of {task.name}, but: {', '.join(figures) or 'nothing'}. Is lmms-eval "
            "0.7.3 installed, which this was made for?"
        )
    count = told.get("n-samples", {}).get(task.name, {}).get("effective")
    return Score(task.scale * value, count, share)
