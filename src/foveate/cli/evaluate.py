"""``foveate eval`` and ``foveate scenes``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from foveate import bundled
from foveate.asking_again import is_spelled
from foveate.cli.console import (
    load_model,
    note,
    parse_keeps,
    print_json,
    print_wrapped,
    progress_bar,
    split_list,
    stdout,
    warn_when_busy,
    working,
)
from foveate.cli.settling import ATTACHING, check_source, refuse_set, settled
from foveate.cli.tables import print_table
from foveate.crops import Crops
from foveate.evaluation import report as reporting
from foveate.evaluation import saving
from foveate.evaluation.analysis import read_salience
from foveate.evaluation.blind import NAME as BLIND
from foveate.evaluation.blind import is_blind
from foveate.evaluation.cropped import Spelled, counterparts, is_cropped, spread
from foveate.evaluation.drawn import Split, World
from foveate.evaluation.engines import Engine
from foveate.evaluation.leaderboard.result import write as write_result
from foveate.evaluation.pictures import check_pictures
from foveate.evaluation.processes import Processes, from_environment
from foveate.evaluation.runner import (
    ALL,
    PARQUET_FILE,
    ROWS_FILE,
    SOURCE_FILE,
    Transformers,
    budgets_of,
    claim,
    evaluate,
    factory,
    write_parquet,
)
from foveate.evaluation.suites import Source, Suite, check_split
from foveate.evaluation.worlds import get_world
from foveate.keep import keep_label
from foveate.pixels import Pixels
from foveate.pruners import METHODS, get_pruner, known_methods
from foveate.resizing import NAME as RESIZE
from foveate.resizing import is_resize

PLOTTED = ("overall", "small in clutter")
WRITTEN = (
    "pooled", "overall", "unguessed", "group A", "small", "large", "salient", "not salient", "small in clutter",
)  # fmt: skip
"""Of every drawn world; its own kinds follow."""
REFERENCES = ("adafv", "cover")
"""Methods that every other one is compared with, where they run."""
TAGS = (
    "pooled", "sparse", "clutter", "large", "small", "small in clutter", "salient", "not salient", "unguessed",
    "group A",
)  # fmt: skip
FEW = 6
"""Methods, up to which the paired table has each of them beside all tokens."""
USUAL: tuple[str, ...] = ("all", RESIZE, BLIND)
"""What is run unless methods are named."""


@dataclass(frozen=True)
class Request:
    """The command's arguments: what to ask, and the rest as typed."""

    source: Source
    methods: str | None
    keep: str | None
    out: Path | None
    model: str | None
    as_json: bool
    dtype: str
    batch_size: int
    max_new_tokens: int | None
    analysis: Path | None
    engine: str
    vllm_options: Sequence[str]
    pixels: str | None = None
    crops: str | None = None
    config: str | None = None


def draw(world: str, out: Path, count: int, seed: int, split: str) -> Path:
    """Draws pictures of a world with a progress bar and returns the path of their questions.

    Raises:
        ValueError: an unknown world or split, or what ``World.write`` refuses.
    """
    drawn = get_world(world)
    check_split(split)
    with progress_bar(f"drawing {world}") as progress:
        return drawn.write(out, count, seed, cast(Split, split), lambda done: progress(done, count))


def by_kind(world: World) -> tuple[str, ...]:
    """The columns of a drawn world's first table."""
    return ("overall", *world.core, *(kind for kind in world.kinds if kind not in world.core))


def parse_methods(text: str, *, varying: bool = False, resizing: bool = False, cropping: bool = False) -> list[str]:
    """Names of methods, options behind them; ``all`` stands for those before the LLM. Raises ValueError for others.

    Args:
        text: comma-separated.
        varying: whether there may be some among them that spend different numbers of tokens on different questions.
        resizing: whether ``resize``, the baseline without any, may be among them.
        cropping: whether there may be some under which only some crops are encoded; with all crops, they are plain.
    """
    known_methods()  # those of installed packages are among all
    names = [name for part in split_list(text) for name in (METHODS if part == ALL else [part])]
    for place, name in enumerate(names):
        if is_cropped(name):
            if not cropping:
                get_pruner(name)  # which says why it is none
            names[place] = str(Spelled.read(name))
        factory(name)
        if is_resize(name) or is_blind(name):
            if not resizing:
                get_pruner(name)  # which says why it is none
            continue
        if not varying and get_pruner(name, keep=1.0).adaptive:  # get_pruner says why ask-again is none
            raise ValueError(
                f"{name} chooses its own number of tokens, and a given one is measured here: leave it out; "
                "foveate eval measures it"
            )
    return list(dict.fromkeys(names))


def open_suite(source: Source, out: Path, processes: Processes) -> Suite:
    """The questions; the first process draws or exports what is not there yet, the others wait for it.

    What the folder is for is recorded before anything is written into it.

    Raises:
        ValueError: the folder holds results of other settings, or what ``Source.open`` refuses.
    """
    if processes.rank:
        processes.wait()
    fresh = not (out / SOURCE_FILE).exists()
    claim(out, SOURCE_FILE, source.settings())
    try:
        with progress_bar(f"drawing {source.suite}" if source.world else "reading questions") as progress:
            suite = source.open(out, progress)
        if suite.world is None and not processes.rank and not (out / ROWS_FILE).exists():
            with progress_bar("looking through the pictures") as progress:
                check_pictures(suite, progress)
    except Exception:
        if fresh:  # a wrong column shall not keep the folder from the right one
            (out / SOURCE_FILE).unlink()
        raise
    if not processes.rank:
        processes.wait()
    return suite


def is_filmed(source: Source) -> bool:
    """Whether a suite is of clips."""
    return source.world is not None and source.world.filmed


def require_videos(model: str | None) -> None:
    """Raises ValueError where the model is the one that takes no videos."""
    if bundled.shipped(model) == "bundled":
        raise ValueError("the bundled model takes pictures only: give --model dynamic, or another that takes videos")


def _require_clips(request: Request) -> None:
    """Raises ValueError where clips are asked about in a way that is for pictures."""
    require_videos(request.model)
    if request.engine != "transformers":
        raise ValueError("clips are answered through transformers: leave --engine out")
    for name, given in (("--pixels", request.pixels), ("--crops", request.crops)):
        if given is not None:
            raise ValueError(f"{name} is for pictures, and these are clips: leave it out")


def answer_tokens(source: Source, wanted: int | None) -> int:
    """The longest answer in tokens: as asked for, else by the suite."""
    return wanted or (8 if source.world else 32)


def run(request: Request) -> None:
    """Asks everything that has no answer yet, prints the tables and writes answers, report and plot.

    Raises:
        ValueError: bad input, or an output folder made with other settings.
    """
    if is_filmed(request.source):
        _require_clips(request)
    processes = from_environment()
    request = _configured(request)
    assert request.keep is not None
    pixels = None if request.pixels is None else Pixels.parse(request.pixels)
    keeps = parse_keeps(request.keep)
    methods = _runnable(request, _spread(request, keeps), processes)
    for name in methods:
        again = is_spelled(Spelled.read(name).method if is_cropped(name) else name)
        if again and not budgets_of(factory(name), keeps):
            raise ValueError(f"{name}: --keep is the second budget, and none of {request.keep} exceeds the first")
    out = request.out or Path("build") / "eval" / request.source.slug()
    settings = {**request.source.settings(), "model_name": request.model or "bundled"}
    if request.analysis is not None and request.source.suite != "scenes":
        raise ValueError("--analysis says how salient the things in scenes are: leave it out for other suites")
    salience = None if request.analysis is None else read_salience(request.analysis)
    if request.engine == "transformers":
        check_source(request.model, request.dtype)
    suite = open_suite(request.source, out, processes)
    asking = "asking" if processes.size == 1 else f"asking, process {processes.rank}"
    with closing(_engine(request, methods, pixels)) as engine, progress_bar(asking) as progress:
        rows = evaluate(
            engine, suite.items, methods, keeps, out, folder=suite.folder, settings=settings,
            max_new_tokens=answer_tokens(request.source, request.max_new_tokens), batch=request.batch_size,
            progress=progress, processes=processes,
        )  # fmt: skip
    if processes.rank:
        return
    report = _report(suite, rows, methods, salience)
    title = f"{suite.name}, {Path(request.model).name if request.model else 'bundled model'}"
    title += "" if pixels is None else f", pixels {pixels.value}"
    plotted, columns = report.groups[:3], report.groups
    if suite.world is not None:
        plotted, columns = PLOTTED, (*WRITTEN, *suite.world.written)
    files = saving.save(report, out, plotted, columns, title)
    files.append(write_result(out, suite, rows, report, request.model, request.engine))
    try:
        files.append(write_parquet(rows, suite.items, suite.metric, out / PARQUET_FILE))
    except ModuleNotFoundError as error:
        note(f"warning: {PARQUET_FILE} was not written. {error}")
    if request.as_json:
        print_json({"settings": settings, **report.as_dict(), "files": [str(file) for file in files]})
        return
    console = stdout()
    tables: tuple[tuple[str, tuple[str, ...]], ...] = (("", report.groups),)
    if suite.world is not None:
        tables = (("by kind", by_kind(suite.world)), ("by size and clutter", TAGS))
    for heading, columns in tables:
        print_table(console, _accuracy(report, heading, columns), labels=2)
        console.print()
    compared = _paired(report)
    if compared.rows:
        print_table(console, compared, labels=4)
        console.print()
    if report.legend:
        print_wrapped(report.legend)
        console.print()
    note(f"written: {', '.join(str(file) for file in files)}")


def _configured(request: Request) -> Request:
    """The request with what its file says, where nothing was typed: the one method and budget, beside all tokens.

    Raises:
        ValueError: what is not measured here, or what ``settled`` refuses.
    """
    if request.config is None:
        return request
    config = settled(request.config, crops=request.crops, pixels=request.pixels)
    refuse_set(config, request.config, ATTACHING, "is not measured by this command")
    keep = f"1.0,{keep_label(config.pruner.keep)}"  # of one that chooses its own number, the most
    return replace(
        request,
        methods=request.methods or config.name,
        keep=request.keep or keep,
        crops=None if config.crops is None else str(config.crops),
        pixels=None if config.pixels is None else str(config.pixels),
    )


def _spread(request: Request, keeps: Sequence[float | int]) -> list[str]:
    """The methods, each under every amount of crops.

    Raises:
        ValueError: unknown methods, impossible amounts.
    """
    usual = USUAL if request.engine == "transformers" else USUAL[:1]
    if is_filmed(request.source):  # clips are seen at their size
        usual = tuple(name for name in usual if name != RESIZE)
    methods = parse_methods(request.methods or ",".join(usual), varying=True, resizing=True, cropping=True)
    if request.crops is None:
        return methods
    amounts = [None if text == "1" else Crops.of(text) for text in split_list(request.crops)]
    whole = any(repr(keep) == "1.0" for keep in keeps)
    baselines = [name for name in methods if is_resize(name) or is_blind(name)]
    plain = [name for name in methods if name not in baselines]
    if not plain and not whole and any(amounts):
        raise ValueError(
            f"--crops: of {' and '.join(baselines)} all crops are seen or none, and nothing else is run: leave --crops "
            "out, or name a method beside it"
        )
    return list(dict.fromkeys([*spread(plain, amounts, whole=whole), *baselines]))


def _runnable(request: Request, methods: list[str], processes: Processes) -> list[str]:
    """The methods that the engine runs: all that are named; of ``all`` those that it can, which is told.

    Raises:
        ValueError: an unknown engine, or what it cannot do.
    """
    if request.engine == "transformers":
        if request.vllm_options:
            raise ValueError("vLLM's options go with --engine vllm")
        return methods
    if request.engine != "vllm":
        raise ValueError(f"unknown engine {request.engine!r}; known: transformers, vllm")
    if processes.size > 1:
        raise ValueError(
            "--engine vllm has processes of its own: without accelerate launch, and with vLLM's options after --, such "
            "as --tensor-parallel-size 2"
        )
    from foveate.evaluation.vllm_engine import check_pixels, overrides, servable

    if request.methods is None or "all" in split_list(request.methods):
        left_out = [name for name in methods if not servable(name)]
        methods = [name for name in methods if name not in left_out]
        note(f"left out under --engine vllm, which gives no picture its own seed: {', '.join(left_out)}")
    check_pixels(None if request.pixels is None else Pixels.parse(request.pixels).value)
    overrides(methods)  # what it refuses, it refuses before pictures are drawn
    return methods


def _engine(request: Request, methods: list[str], pixels: Pixels | None) -> Engine:
    wanted = None if pixels is None else pixels.value
    if request.engine == "transformers":
        warn_when_busy()
        if is_filmed(request.source):
            from foveate.evaluation.filmed import Filmed

            return Filmed(*load_model(request.model, request.dtype))
        warn_of_words(request.source.suite, request.model)
        return Transformers(*load_model(request.model, request.dtype), wanted)
    from foveate.evaluation.vllm_engine import Vllm

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # or its log would drown the tables
    with working("starting vLLM"):
        try:
            return Vllm.start(request.model or "bundled", methods, request.dtype, request.vllm_options, wanted)
        except RuntimeError as error:
            if "foveate was tested" in str(error):
                raise ValueError(str(error)) from None
            raise


def warn_of_words(suite: str, model: str | None) -> None:
    """Says so where the bundled model is to read."""
    if suite == "documents" and bundled.shipped(model) == "bundled":
        note("warning: the bundled model has never seen documents: give --model dynamic, or one that reads")


def _report(
    suite: Suite, rows: list[Any], methods: list[str], salience: Mapping[tuple[str, str], float] | None
) -> reporting.Report:
    # The same comparison is not made twice: among themselves, only the later ones are compared with the earlier.
    references = references_of(methods)
    pairs = [
        (first, other)
        for place, first in enumerate(references)
        for other in methods
        if other not in references[: place + 1] and not is_cropped(other)
    ]
    pairs += [(name, other) for name in methods for other in counterparts(name, methods)]
    if suite.world is not None:
        groups = reporting.world_groups(suite.world)
        if salience is not None:
            groups += reporting.salience_groups(suite.items, salience)
        return reporting.summarise(rows, suite.items, groups, pairs, reporting.PAIRED_GROUPS)
    groups = reporting.plain_groups(suite.items)
    return reporting.summarise(rows, suite.items, groups, pairs, ["all"], suite.metric, bootstrapped=True)


def _accuracy(report: reporting.Report, heading: str, columns: tuple[str, ...]) -> Table:
    """One table: ``visual tokens`` and ``ms`` are means per question, the stages medians of their ms, ``encoded`` the
    part of the pictures' tokens that the vision tower encoded, ``of all tokens`` the first column's part of what all
    tokens reach, in %."""
    columns = tuple(name for name in columns if name in report.groups)
    what = f"{'accuracy' if report.metric.binary else report.metric.title} in % {heading}".strip()
    table = Table(title=f"{what} [95 % interval]", title_justify="left", box=None, pad_edge=False)
    extras = tuple(report.metric.extras)
    named = map(reporting.group_title, columns)
    encoded = ["encoded"] if report.cropped else []
    in_time = ["resize, same ms"] if report.resized else []
    stages = [f"{name} ms" for name in report.stages]
    heads = ("method", "keep", *encoded, "visual tokens", "ms", *stages, *named, "of all tokens", *in_time, *extras)
    for name in heads:
        table.add_column(name, justify="left" if name == "method" else "right", header_style="bold")
    for run in report.runs:
        cells = [report.cell(run.method, run.keep, name) for name in columns]
        shown = [
            f"{100 * c.estimate.value:.1f} [dim]{'-'.join(saving.bounds(c.estimate.low, c.estimate.high, 0))}[/]"
            if c.estimate.count
            else ""
            for c in cells
        ]
        timed = [saving.percent(report.resized_in_time_of(run, columns[0])) for _ in in_time]
        more = [f"{100 * cells[0].extras[name]:.1f}" for name in extras]
        spent = *(f"{100 * run.share_encoded:.0f} %" for _ in encoded), f"{run.kept:.0f}", f"{run.latency_ms:.0f}"
        table.add_row(
            run.title,
            keep_label(run.keep),
            *spent,
            *(saving.milliseconds(run.milliseconds(name)) for name in report.stages),
            *shown,
            f"{100 * cells[0].relative:.1f}",
            *timed,
            *more,
        )
    # Which questions group A has is another matter at every budget.
    counted = (report.cell(ALL, 1.0, name).estimate.count for name in columns)
    counts = [str(count) if name != reporting.GROUP_A else "" for name, count in zip(columns, counted, strict=True)]
    table.add_section()
    table.add_row("[dim]questions[/]", *[""] * (3 + len(encoded) + len(stages)), *counts, "")
    return table


def references_of(methods: Sequence[str]) -> list[str]:
    """Those that every other method is compared with: of ``REFERENCES``; where none of them runs, the first."""
    plain = [name for name in methods if not (is_cropped(name) or is_resize(name) or is_blind(name))]
    return [name for name in REFERENCES if name in plain] or plain[:1]


def _paired(report: reporting.Report) -> Table:
    """The references against the others; where few methods run, each against all tokens as well."""
    methods = list(dict.fromkeys(run.method for run in report.runs if run.method != ALL))
    references = references_of(methods)
    table = Table(title="paired on the same questions, points [95 %]", title_justify="left", box=None, pad_edge=False)
    test = "p (McNemar)" if report.metric.binary else "p (swaps)"
    for name in ("group", "keep", "first", "second", "difference", "won:lost", test, "p, Holm"):
        table.add_column(
            name, justify="right" if name in ("keep", "difference", "won:lost") else "left", header_style="bold"
        )
    for pair in report.pairs:
        shown = pair.first in references or is_cropped(pair.first) or len(methods) <= FEW
        if not shown or pair.group not in ("pooled", "all"):
            continue  # the others stand in report.json
        d = pair.difference
        table.add_row(
            reporting.group_title(pair.group),
            keep_label(pair.keep),
            report.run(pair.first, pair.keep).title,
            report.run(pair.second, pair.keep).title,
            f"{100 * d.value:+.1f} [dim]{' to '.join(saving.bounds(d.low, d.high, 1, '+'))}[/]",
            f"{d.first_only}:{d.second_only}",
            f"{d.p_value:.2g}",
            f"{pair.p_corrected:.2g}",
        )
    return table
