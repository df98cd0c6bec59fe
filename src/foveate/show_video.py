"""What a method kept of a video: a contact sheet of its moments, or the film itself with what was dropped under a veil.

Kept patches are clear and outlined, as many as stay is written over every moment. Needs Pillow and numpy only.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from foveate.show import overlay
from foveate.tokens import Selection
from foveate.videos import Video
from foveate.watching import kept_by_moment, moments

SHEETS = ("png", "jpg", "jpeg", "pdf")
FILMS = ("gif", "webp", "apng")
CELL = 260
"""Width of a moment on a sheet, pixels."""
_GAP, _TEXT, _BACK = 10, (40, 40, 40), (255, 255, 255)


def marked(video: Video, selection: Selection, number: int) -> Image.Image:
    """One of the video's frames, its kept patches clear and outlined, the others under a veil.

    Args:
        video: as the model saw it.
        selection: of its tokens.
        number: of the frame.

    Raises:
        ValueError: the selection is of another number of frames, or there is no such frame.
    """
    view = next((view for view, some in enumerate(_moments(video, selection)) if number in some), None)
    if view is None:
        raise ValueError(f"there is no frame {number} among the video's {len(video)}")
    return _overlay(video, selection, view, number)


def sheet(
    video: Video,
    selection: Selection,
    *,
    question: str | None = None,
    answer: str | None = None,
    method: str | None = None,
) -> Image.Image:
    """All moments beside each other, each with its times and how many of its tokens stay.

    Of frames that the model sees as one, the first is shown.

    Args:
        video, selection: as for ``marked``.
        question, answer, method: for the title.
    """
    views = _moments(video, selection)
    columns = min(len(views), max(4, math.ceil(math.sqrt(len(views) * video.size[1] / video.size[0]))))
    height = round(CELL * video.size[1] / video.size[0])
    font, small = (ImageFont.load_default(size) for size in (17, 14))
    width = _GAP + columns * (CELL + _GAP)
    lines = _title(question, answer, method, selection, letters=max(30, width // 9))
    head, row = _GAP + 24 * len(lines), height + 24 + _GAP
    whole = Image.new("RGB", (width, head + math.ceil(len(views) / columns) * row), _BACK)
    pen = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP // 2 + 24 * number), line, fill=_TEXT, font=font)
    for view, (some, kept) in enumerate(zip(views, kept_by_moment(selection), strict=True)):
        x, y = _GAP + view % columns * (CELL + _GAP), head + view // columns * row
        rows, across = selection.geometry.grids[view]
        pen.text((x, y), f"{_span(video, some)}: {kept} of {rows * across}", fill=_TEXT, font=small)
        whole.paste(_overlay(video, selection, view, some[0], (CELL, height)), (x, y + 22))
    return whole


def save(
    path: str | os.PathLike[str],
    video: Video,
    selection: Selection,
    *,
    question: str | None = None,
    answer: str | None = None,
    method: str | None = None,
) -> None:
    """Writes a contact sheet (png, jpg, pdf), or the film as an animated gif, webp or apng; the suffix says which.

    Raises:
        ValueError: as for ``marked``, or a suffix that cannot be written.
        FileNotFoundError: the folder does not exist.
    """
    check_path(path)
    suffix = Path(path).suffix.lower().lstrip(".")
    if suffix in SHEETS:
        sheet(video, selection, question=question, answer=answer, method=method).save(path)
        return
    first, *others = (marked(video, selection, number) for number in range(len(video)))
    options: dict[str, Any] = {"format": "PNG" if suffix == "apng" else suffix}
    if suffix == "webp":
        options |= {"quality": 85}
    ends = [*video.times[1:], max(video.duration, video.times[-1] + 0.1)]
    lengths = [max(20, round(1000 * (end - start))) for start, end in zip(video.times, ends, strict=True)]
    first.save(path, save_all=True, append_images=others, duration=lengths, loop=0, **options)


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises what ``save`` would raise for this path, before there is anything to save."""
    target = Path(path)
    if target.suffix.lower().lstrip(".") not in (*SHEETS, *FILMS):
        raise ValueError(
            f"cannot write what was kept of a video to {target}: give it one of the suffixes {', '.join(SHEETS)} (a "
            f"contact sheet), {', '.join(FILMS)} (a film)"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")


def _overlay(
    video: Video, selection: Selection, view: int, number: int, size: tuple[int, int] | None = None
) -> Image.Image:
    """A frame with what is kept of a view; it gets its size before its outlines, which would be blurred with it."""
    frame = video.frames[number]
    if size is not None:
        frame = frame.resize(size, Image.Resampling.LANCZOS)
    return overlay(frame, selection, views=[view])


def _moments(video: Video, selection: Selection) -> list[range]:
    return moments(selection.geometry.grids, len(video))


def _span(video: Video, some: Sequence[int]) -> str:
    first, last = video.times[some[0]], video.times[some[-1]]
    return f"{first:.1f} s" if first == last else f"{first:.1f} to {last:.1f} s"


def _title(
    question: str | None, answer: str | None, method: str | None, selection: Selection, letters: int
) -> list[str]:
    parts = [] if question is None else [f"Q: {question}"]
    parts += [] if answer is None else [f"A: {answer or '(empty)'}"]
    share = 100 * len(selection) / selection.total
    told = f"{len(selection)} of {selection.total} visual tokens kept ({share:.3g} %)"
    parts.append(told + ("" if method is None else f" by {method}"))
    return [line for part in parts for line in textwrap.wrap(part, letters)[:4]]
