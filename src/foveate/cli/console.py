"""What every command shares: consoles, wrapped text, one-line errors, progress."""

from __future__ import annotations

import codecs
import functools
import json
import math
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_F = TypeVar("_F", bound=Callable[..., Any])

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
QUIET = 60.0
"""Seconds without a word after which long work says, in a pipe or file, how far it is."""
WIDTH = 80
"""Columns of what is wrapped, on a terminal of any width and in a pipe."""


def stdout() -> Console:
    """For what was asked for. On a terminal, and where COLUMNS says so, tables fit; in another pipe or file lines are
    as long as they need to be, so that each row is one."""
    columns = os.environ.get("COLUMNS", "")
    given = int(columns) if columns.isdecimal() and int(columns) > 0 else 240
    return Console(highlight=False, width=None if sys.stdout.isatty() else given)


def print_wrapped(text: str, first: str = "", following: str | None = None) -> None:
    """Text in lines of at most ``WIDTH`` columns, with what stands before the first and before the others."""
    indent = first if following is None else following
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    for line in lines:
        stdout().print(line, markup=False, soft_wrap=True)


def stderr() -> Console:
    """For everything else."""
    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """One line on stderr."""
    style = "yellow" if text.startswith("warning") else "dim"
    stderr().print(f"foveate: {text}", style=style, markup=False, soft_wrap=True)


def warn_when_busy() -> None:
    """Says, before long work, that others use the cores: torch's threads would then wait for each other."""
    cores = os.cpu_count() or 1
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg") or os.getloadavg()[0] <= cores:
        return
    note(
        f"warning: other programs keep the {cores} cores busy (load {os.getloadavg()[0]:.1f}), and torch's threads "
        "wait for each other: OMP_NUM_THREADS=1 in front of the command may be many times faster"
    )


def print_json(value: Mapping[str, Any]) -> None:
    """One object on stdout and nothing else: JSON in any locale, with whatever bytes a file's name has.

    Where stdout cannot take a character, or would write one that is no text, it is written as an escape; what is no
    number is null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    except ValueError:  # not a number, or infinite
        text = json.dumps(_finite(value), ensure_ascii=False, indent=2)
    try:
        plain = codecs.lookup(sys.stdout.encoding or "").name == "utf-8" and text.encode() is not None
    except (LookupError, UnicodeEncodeError):
        plain = False
    if not plain:
        text = json.dumps(json.loads(text), indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(message: str, kind: str, status: int) -> None:
    """What ``--json`` prints of an error; the line for people goes to stderr beside it."""
    print_json({"error": {"message": message, "kind": kind, "status": status}})


def answer_line(text: str) -> str:
    """A model's answer for people, who would take an empty one for a fault."""
    return text or "(the model gave an empty answer)"


def told(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def command(function: _F) -> _F:
    """Turns what bad input raises into one line on stderr and status 2; FOVEATE_TRACEBACK=1 shows where it arose.

    With ``--json`` an error is an object on stdout as well, one that is Foveate's own fault too.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        def tell(error: BaseException, status: int) -> None:
            if kwargs.get("as_json"):
                print_error(told(error), type(error).__name__, status)

        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return function(*args, **kwargs)
            except (typer.Exit, typer.Abort):
                raise
            except KeyboardInterrupt:
                stderr().print("foveate: stopped", markup=False)
                tell(KeyboardInterrupt("stopped"), INTERRUPTED)
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                expected = isinstance(error, (ValueError, TypeError, OSError, ModuleNotFoundError))
                # A TypeError with no message of ours is a bug, and bugs keep their traceback.
                if not expected or (isinstance(error, TypeError) and not _is_ours(error)):
                    tell(error, FAILED)
                    raise
                tell(error, BAD_INPUT)
                if os.environ.get("FOVEATE_TRACEBACK"):
                    raise
                stderr().print(f"foveate: error: {told(error)}", style="red", markup=False, soft_wrap=True)
                raise typer.Exit(BAD_INPUT) from None

    return wrapped  # type: ignore[return-value]


def parse_keep(text: str, option: str = "--keep") -> float | int:
    """A budget as typed: ``Keep.read`` says how.

    Raises:
        ValueError: none, or a bare 1.
    """
    from foveate.keep import Keep

    if text.strip() == "auto":
        raise ValueError(
            f"{option} auto: here a budget is given; as many tokens as needed keeps the method auto:cover, whose "
            f"{option} is the most"
        )
    return Keep.read(text, option).value


def split_list(text: str) -> list[str]:
    """The parts of a comma-separated list. Raises ValueError where there is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{text!r} names nothing")
    return parts


def parse_keeps(text: str) -> list[float | int]:
    """The budgets of a comma-separated list, for what measures several beside all tokens.

    Raises:
        ValueError: as for ``parse_keep``; or a single token, which the tables could not tell from 1.0.
    """
    keeps = [parse_keep(part) for part in split_list(text)]
    if any(keep == 1 and isinstance(keep, int) for keep in keeps):
        raise ValueError("--keep 1t: a single token is not measured beside all of them; give 2t or more")
    return keeps


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner while something long runs, on a terminal only."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Yields ``update(done, total)``; the bar shows on a terminal only, elsewhere there is a line every ``QUIET``
    seconds."""
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(text, total=None)

        said = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal said
            progress.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - said >= QUIET:
                said = time.monotonic()
                note(f"{text}: {done} of {total}")

        yield update


def load_model(source: str | None, dtype: str, device: str | None = None) -> tuple[Any, Any]:
    """``foveate.loading.load`` behind a spinner, with transformers' own chatter off."""
    with working("importing torch and transformers"):
        from transformers.utils import logging

        from foveate import bundled, loading
    logging.set_verbosity_error()
    local = source is None or bundled.shipped(source) is not None or loading.is_folder(source)
    if local or not stderr().is_terminal:
        logging.disable_progress_bar()
        with working(f"loading {source or 'the bundled model'}"):
            return loading.load(source, dtype=dtype, device=device)
    return loading.load(source, dtype=dtype, device=device)  # a download shows its own bars


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        note(f"warning: {' '.join(str(message).split())}")


def _is_ours(error: TypeError) -> bool:
    """Whether an error was raised by a statement of Foveate's own, and not by Python or a library underneath."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("foveate.")
