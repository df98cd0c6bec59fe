"""What ``foveate ask`` was told, and what is plainly wrong with it: that is said at once.

Nothing here imports torch or transformers, which take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.cli.console import parse_keep
from foveate.images import checked_file
from foveate.keep import Keep
from foveate.method_names import AUTO, check_name
from foveate.videos import is_video

STDIN = "-"


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed; ``again`` is the budget of a second pass, None where there shall be none, and
    ``margin`` its dial."""

    images: Sequence[str]
    question: str
    model: str | None
    method: str | None
    keep: str | None
    show: Path | None
    compare: bool
    as_json: bool
    max_new_tokens: int
    repeats: int
    dtype: str
    again: str | None = None
    margin: float | None = None
    pixels: str | None = None
    crops: str | None = None
    html: Path | None = None
    config: str | None = None
    option: Sequence[str] = ()
    device: str | None = None
    positions: str | None = None
    newlines: str | None = None
    frames: int | None = None
    fps: float | None = None

    @property
    def unsure(self) -> float:
        """The margin below which is asked again."""
        return 0.5 if self.margin is None else self.margin

    @property
    def filmed(self) -> bool:
        """Whether it is about a video: by a file's name, or because some of its frames are asked for."""
        return self.frames is not None or self.fps is not None or any(map(is_video, self.images))


def run(request: Request) -> None:
    """Refuses what is plainly wrong, and has the rest answered.

    Raises:
        ValueError, TypeError, FileNotFoundError: bad input, each with what to do.
    """
    check(request)
    from foveate.cli import ask

    ask.run(request)


def check(request: Request) -> None:
    """What can be said without a model, or what runs one. What is within files is looked at later.

    Raises:
        ValueError, FileNotFoundError: bad input, each with what to do.
    """
    if not request.images:
        raise ValueError('give at least one image and then the question: foveate ask photo.jpg "What is this?"')
    if not request.question.strip():
        raise ValueError("the question is empty")
    if request.question != STDIN and Path(request.question).is_file():
        raise ValueError(
            f"the last argument is the question, and {request.question} is a file: add the question after it"
        )
    if [*request.images, request.question].count(STDIN) > 1:
        raise ValueError("- is standard input, and that can be one picture or the question, not both")
    if request.method is not None:
        check_name(request.method)
    if request.keep not in (None, AUTO):
        Keep.read(request.keep, "--keep")
    if request.again is not None:
        parse_keep(request.again, "--again")
    for path in request.images:
        if path != STDIN:
            checked_file(path, "video" if request.filmed else "image")
