"""``foveate tune``: the smallest budget that holds a share of the unpruned accuracy on the user's own questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from foveate.asking_again import Spelled, is_spelled
from foveate.cli.console import load_model, note, print_json, progress_bar, stdout, warn_when_busy
from foveate.cli.evaluate import answer_tokens, is_filmed, open_suite, parse_methods
from foveate.cli.settling import check_source
from foveate.cli.tables import print_table
from foveate.evaluation import tuning
from foveate.evaluation.processes import from_environment
from foveate.evaluation.runner import Row, Transformers, evaluate
from foveate.evaluation.suites import Source
from foveate.keep import keep_label


@dataclass(frozen=True)
class Request:
    """The command's arguments: what to ask, and the rest as typed."""

    source: Source
    target: float
    methods: str
    confidence: float
    out: Path | None
    model: str | None
    as_json: bool
    dtype: str
    batch_size: int
    max_new_tokens: int | None


def run(request: Request) -> None:
    """Searches, prints what was tried and found, and writes JSON and plot; started again, it goes on.

    Raises:
        ValueError: bad input, or an output folder made with other settings.
    """
    methods = parse_methods(request.methods, varying=True)
    source = request.source
    if is_filmed(source):
        raise ValueError(f"budgets are tuned on pictures, and {source.suite} are none: foveate eval measures them")
    out = request.out or Path("build") / "tune" / source.slug()
    settings: dict[str, Any] = {**source.settings(), "model_name": request.model or "bundled"}
    processes = from_environment()
    check_source(request.model, request.dtype)
    suite = open_suite(source, out, processes)
    items: Sequence[Any] = suite.items
    if suite.world is not None:  # the bundled model is at chance in the other kinds, which would only dilute
        items = [item for item in items if item.kind in suite.world.core]
    warn_when_busy()
    engine = Transformers(*load_model(request.model, request.dtype))
    longest = answer_tokens(source, request.max_new_tokens)

    def ask(method: str, keep: float, asked: Sequence[Any], stage: str) -> list[Row]:
        with progress_bar(f"{stage}: {method}, keep {keep_label(keep)}") as progress:
            return evaluate(
                engine, asked, [method], [keep], out / stage, folder=suite.folder, settings=settings,
                max_new_tokens=longest, batch=request.batch_size, by_picture=any(map(is_spelled, methods)),
                progress=progress, processes=processes,
            )  # fmt: skip

    found = tuning.tune(ask, items, methods, request.target, suite.metric, request.confidence)
    if processes.rank:
        return
    files = tuning.save(found, out, f"{suite.name}, n = {found.questions}")
    if request.as_json:
        print_json({"settings": settings, **found.as_dict(), "files": [str(file) for file in files]})
        return
    console = stdout()
    if found.screening:
        console.print(_screening(found))
        console.print()
    print_table(console, _trials(found), labels=2)
    console.print()
    console.print(_verdict(found), markup=False, soft_wrap=True)
    if found.estimate is not None and found.estimate != found.best:
        e = found.estimate
        note(f"{_named(e)} reaches it on these questions too, which too few of them show to be no luck")
    note(found.how())
    note(f"written: {', '.join(str(file) for file in files)}")


def _screening(found: tuning.Tuning) -> Table:
    title = f"screening at keep {keep_label(tuning.SCREENED)}" if found.plain else "screening"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("method", header_style="bold")
    table.add_column("of all tokens", justify="right", header_style="bold")
    tried = {trial.dial for trial in found.trials}
    for method, ratio in sorted(found.screening.items(), key=lambda one: -one[1]):
        table.add_row(method, f"{100 * ratio:.1f} %", style="" if method in tried else "dim")
    return table


def _trials(found: tuning.Tuning) -> Table:
    title = f"all tokens: {100 * found.accuracy:.1f} % of {found.questions} questions about {found.pictures} pictures"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in (
        "method",
        "keep",
        "visual tokens",
        "ms",
        "of all tokens",
        "surely above",
        f"holds {100 * found.target:g} %",
    ):
        table.add_column(name, justify="left" if name == "method" else "right", header_style="bold")
    for trial in sorted(found.trials, key=lambda trial: (trial.dial, -trial.keep, -trial.kept)):
        table.add_row(
            trial.method,
            keep_label(trial.keep),
            f"{trial.kept:.0f}",
            f"{trial.latency_ms:.0f}",
            f"{100 * trial.relative:.1f} %",
            f"{math.floor(1e4 * trial.bound) / 100:.2f} %",  # a bound is rounded down
            "yes" if trial.holds else "no",
            style="bold" if trial == found.best else "",
        )
    return table


def _named(trial: tuning.Trial) -> str:
    return f"{trial.method} at keep {keep_label(trial.keep)}"


def _verdict(found: tuning.Tuning) -> str:
    held = f"{100 * found.target:g} % of the accuracy with all tokens"
    best = found.best
    asking = Spelled.read(best.method) if best is not None and is_spelled(best.method) else None
    if best is not None and asking is not None and asking.measure == "least":
        return (
            f"--method {asking.method} --keep {keep_label(asking.first)} --again {keep_label(best.keep)} "
            f"--margin {asking.margin:g} spends the fewest tokens of all that were shown to hold {held}: "
            f"{best.kept:.0f} per question"
        )
    if best is not None and not found.plain:
        return (
            f"--method {best.method} --keep {keep_label(best.keep)} spends the fewest tokens of all that were shown to "
            f"hold {held}: {best.kept:.0f} per question"
        )
    if best is not None:
        return f"--method {best.method} --keep {keep_label(best.keep)} is the smallest budget shown to hold {held}"
    if found.best_bound < found.target:
        return (
            f"nothing can be shown to hold {held} with {found.questions} questions: even without a single loss the "
            f"bound would be {100 * found.best_bound:.1f} %. Ask more questions, or lower the target or the confidence"
        )
    return f"no budget below all tokens was shown to hold {held}"
