"""The command itself: what cannot be parsed is JSON too where JSON is asked for, and no character ends it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from typer.core import TyperGroup

from foveate.cli.console import print_error


class Commands(TyperGroup):
    """Typer's own, but for errors in the arguments under ``--json``, and for what stdout cannot encode."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command and ends the process, as ``TyperGroup.main`` does."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                with contextlib.suppress(ValueError, OSError):  # closed, or not to be changed any more
                    stream.reconfigure(errors="backslashreplace")
        words = list(sys.argv[1:] if args is None else args)
        ours = words[: words.index("--")] if "--" in words else words
        run = partial(super().main, args, prog_name, complete_var, windows_expand_args=windows_expand_args, **extra)
        if not standalone_mode or "--json" not in ours:
            return run(standalone_mode=standalone_mode)
        try:
            found = run(standalone_mode=False)
        except Exception as error:
            # Of typer's own kind, which has moved between its versions; all others are told where they arise.
            if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
                raise
            print(f"foveate: error: {error.format_message()}", file=sys.stderr)
            print_error(error.format_message(), type(error).__name__, error.exit_code)
            sys.exit(error.exit_code)
        sys.exit(found if isinstance(found, int) else 0)
