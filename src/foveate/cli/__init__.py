"""The ``foveate`` command. Answers go to stdout; notes, progress and errors to stderr; bad input ends with status 2."""

from __future__ import annotations

from foveate.cli.app import app, main

__all__ = ["app", "main"]
