"""Selection recall on clips: which part of what a question is about is kept, at the places and times where it is seen.

It says what methods choose without an answer, and so without a model that has learned from such clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.evaluation.drawn import FilmedItem
from foveate.evaluation.runner import Factory, budgets_of
from foveate.evaluation.statistics import Design, Estimate, bootstrap, tallied
from foveate.pruners.base import Method
from foveate.tokens import Geometry
from foveate.videos import load_video
from foveate.watching import VideoSession, watch

RECALL_FILE = "recall.json"
ALL = "all"
SMALL = "small in clutter"


@dataclass(frozen=True)
class Found:
    """What a method kept for one question.

    Args:
        clip: the file.
        question, kind: as asked.
        small: whether it is about small things in clutter.
        method, keep: what chose.
        kept: the part of all tokens that stays.
        recall: the part of the tokens of what is asked about that stays: those whose centre is in one of its boxes at a
            time at which it is there.
        moments: of the moments at which it is seen, the part that keeps at least one of these.
    """

    clip: str
    question: str
    kind: str
    small: bool
    method: str
    keep: float | int
    kept: float
    recall: float
    moments: float


@dataclass(frozen=True)
class Figure:
    """Of one method at one budget over a group of questions: means, with 95 % bootstrap intervals over clips."""

    method: str
    keep: float | int
    group: str
    kept: float
    recall: Estimate
    moments: Estimate


@dataclass(frozen=True)
class Recall:
    """All figures. ``unseen`` are questions about things of which no sampled frame or no token's centre shows any."""

    clips: int
    questions: int
    unseen: int
    figures: tuple[Figure, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        note = (
            "recall: the part of the tokens of what is asked about that stays; a token is its own where its centre "
            "lies in one of the thing's boxes at a time of a frame that the token is made of. moments: of the moments "
            "with such tokens, the part that keeps one. 95 % bootstrap intervals over clips."
        )
        return {**asdict(self), "note": note}


def of_what_is_asked(
    item: FilmedItem, geometry: Geometry, size: tuple[int, int], moments: Sequence[range], times: Sequence[float]
) -> np.ndarray:
    """(N,) bool: the tokens that show what a question is about when its answer can be seen.

    Args:
        item: with boxes in pixels and times in seconds.
        geometry: of the video's N tokens.
        size: (width, height) of the clip, pixels.
        moments: of every view, which frames it shows.
        times: when these are shown, seconds.
    """
    boxes = geometry.boxes_in(size[1], size[0]).cpu().numpy()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    view = geometry.view.cpu().numpy()
    found = np.zeros(len(view), dtype=bool)
    for number, frames in enumerate(moments):
        for (x0, y0, x1, y1), (start, end) in zip(item.boxes, item.times, strict=True):
            if any(start <= times[frame] < end for frame in frames):
                inside = ((centres >= (x0, y0)) & (centres < (x1, y1))).all(axis=1)
                found |= inside & (view == number)
    return found


def measure(
    model: Any,
    processor: Any,
    items: Sequence[FilmedItem],
    folder: Path,
    methods: Mapping[str, Factory],
    keeps: Sequence[float | int],
    *,
    fps: float | None = None,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Recall:
    """Watches every clip once and has every method choose for every question about it.

    Args:
        model, processor: of a family that takes videos.
        items: questions about clips.
        folder: where the clips lie.
        methods: name -> factory, see ``foveate.evaluation.runner.factory``.
        keeps: budgets, each a fraction of a clip's tokens, or tokens per clip.
        fps: frames seen in a second; default as for ``foveate.videos.load_video``.
        batch: most questions asked at once.
        progress: called with the number of clips done and of those there are.

    Raises:
        ValueError: no questions, or none about something that is seen; and as for ``watch``.
    """
    if not items:
        raise ValueError("no question to ask")
    by_clip: dict[str, list[FilmedItem]] = {}
    for item in items:
        by_clip.setdefault(item.image, []).append(item)
    found: list[Found] = []
    unseen = 0
    for number, (clip, asked) in enumerate(by_clip.items()):
        session = watch(model, processor, load_video(folder / clip, fps=fps))
        seen = {item.question: _seen(session, item) for item in asked}
        open_ = [item for item in asked if seen[item.question].any()]
        unseen += sum(bool(item.boxes) for item in asked) - len(open_)
        for start in range(0, len(open_), batch):
            for name, make in methods.items():
                for keep in budgets_of(make, keeps):
                    found += _chosen(session, open_[start : start + batch], seen, name, keep, make(keep, number))
        if progress is not None:
            progress(number + 1, len(by_clip))
    if not found:
        raise ValueError("none of the questions asks about something that is seen: draw more clips")
    return summarise(found, unseen)


def _seen(session: VideoSession, item: FilmedItem) -> np.ndarray:
    geometry = session.images[0].tokens.geometry
    return of_what_is_asked(item, geometry, session.video.size, session.moments, session.video.times)


def _chosen(
    session: VideoSession,
    items: Sequence[FilmedItem],
    seen: Mapping[str, np.ndarray],
    name: str,
    keep: float | int,
    method: Any,
) -> list[Found]:
    if not isinstance(method, Method):
        raise ValueError(f"{name} is no method that chooses among the tokens of a video: leave it out")
    answers = session.ask_many(
        [item.question for item in items], method, max_new_tokens=1, do_sample=False, num_beams=1
    )
    view = session.images[0].tokens.geometry.view.cpu().numpy()
    found = []
    for item, answer in zip(items, answers, strict=True):
        inside, mask = seen[item.question], answer.selections[0].mask().cpu().numpy()
        hit = inside & mask
        small = item.clutter and item.size == "small"
        moments = len(set(view[hit])) / len(set(view[inside]))
        recall = float(hit.sum() / inside.sum())
        found.append(
            Found(item.image, item.question, item.kind, small, name, keep, float(mask.mean()), recall, moments)
        )
    return found


def summarise(found: Sequence[Found], unseen: int) -> Recall:
    """Means over all questions, over each kind and over small things in clutter, by method and budget."""
    groups = [ALL, *dict.fromkeys(one.kind for one in found), SMALL]
    runs: dict[tuple[str, str], list[Found]] = {}
    for one in found:
        runs.setdefault((one.method, repr(one.keep)), []).append(one)
    figures = []
    for own in runs.values():
        for group in groups:
            members = [one for one in own if group in (ALL, one.kind) or (group == SMALL and one.small)]
            if members:
                design = Design([one.clip for one in members])
                recall, moments = (
                    bootstrap(design, tallied([getattr(one, name) for one in members]))
                    for name in ("recall", "moments")
                )
                kept = float(np.mean([one.kept for one in members]))
                figures.append(Figure(own[0].method, own[0].keep, group, kept, recall, moments))
    questions = len({(one.clip, one.question) for one in found})
    return Recall(len({one.clip for one in found}), questions, unseen, tuple(figures))


def save(recall: Recall, out: Path) -> Path:
    """Writes the figures as JSON and returns the path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / RECALL_FILE
    whole = json.dumps(recall.as_dict(), indent=2)
    path.write_text(whole + "\n", encoding="utf-8")
    return path
