"""Scenes as files: ordinary pictures and one JSONL of questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from foveate.evaluation.scenes.asking import KINDS, Question, ask
from foveate.evaluation.scenes.composing import ZOOM, Scene, compose
from foveate.evaluation.scenes.drawing import draw

Split = Literal["test", "style", "train"]

#: Split -> (its own stream of random numbers, artwork style).
SPLITS: dict[str, tuple[int, str]] = {"train": (0, "noto"), "test": (1, "noto"), "style": (2, "twemoji")}

QUESTIONS_FILE = "scenes.jsonl"
SIZES = ("small", "large", "none")


@dataclass(frozen=True)
class Item:
    """One question about one picture, a line of ``scenes.jsonl``.

    Attributes:
        image: file name of the picture, beside the JSONL.
        question: the question, plain English.
        answers: what counts as right.
        kind: one of ``KINDS``.
        size: "small" or "large", of what is asked about; "none" when it is not in the picture.
        clutter: whether the picture is cluttered.
        boxes: [x0, y0, x1, y1] of what is asked about, pixels of the image file; empty when it is nowhere.
    """

    image: str
    question: str
    answers: list[str]
    kind: str
    size: str
    clutter: bool
    boxes: list[list[int]]


@dataclass(frozen=True)
class Sample:
    """A drawn scene with its questions: what training and the files are both made of."""

    scene: Scene
    picture: Image.Image
    boxes: list[list[int]]
    questions: list[Question]
    rng: np.random.Generator


def make_sample(split: str, seed: int, index: int, *, clutter: bool | None = None) -> Sample:
    """Scene number ``index`` of a split and seed. Every second one is cluttered, unless ``clutter`` says otherwise."""
    stream, style = SPLITS[split]
    rng = np.random.default_rng([stream, seed, index])
    scene = compose(rng, index % 2 == 1 if clutter is None else clutter)
    picture, boxes = draw(scene, rng.uniform(*ZOOM), style, rng)
    return Sample(scene, picture, boxes, ask(scene, rng), rng)


def write_scenes(
    out: Path,
    count: int,
    seed: int,
    split: Split = "test",
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write pictures and their questions.

    Half of the pictures are sparse, half cluttered. The same arguments give the same bytes (with the same Pillow). No
    seed of one split gives the scenes of another.

    Args:
        out: folder, made if it is not there.
        count: how many pictures.
        seed: which pictures, >= 0.
        split: "test" (the artwork seen in training), "style" (artwork never trained on) or "train".
        progress: called with the number of pictures written so far, after each.

    Returns:
        The path of ``scenes.jsonl``.

    Raises:
        ValueError: an argument is out of range, or ``out`` is a file.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}")
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; scenes are written to a folder")
    out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for index in range(count):
        sample = make_sample(split, seed, index)
        image = _save(sample, out, f"{split}-{seed}-{index:05d}")
        lines += [json.dumps(asdict(item)) for item in _items(sample, image)]
        if progress is not None:
            progress(index + 1)
    path = out / QUESTIONS_FILE
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _save(sample: Sample, out: Path, stem: str) -> str:
    if sample.rng.random() < 0.5:
        name = f"{stem}.jpg"
        sample.picture.save(out / name, quality=int(sample.rng.integers(80, 96)))
    else:
        name = f"{stem}.png"
        sample.picture.save(out / name)
    return name


def _items(sample: Sample, image: str) -> list[Item]:
    return [
        Item(
            image=image,
            question=question.text,
            answers=list(question.answers),
            kind=question.kind,
            size=question.size,
            clutter=sample.scene.clutter,
            boxes=[sample.boxes[i] for i in question.things],
        )
        for question in sample.questions
    ]


def read_items(path: Path) -> list[Item]:
    """Read a ``scenes.jsonl``.

    Raises:
        ValueError: a line is malformed; the message names the file and the line number.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                items.append(_parse(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not items:
        raise ValueError(f"{path}: no questions in it")
    return items


def _parse(line: str) -> Item:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    names = [field.name for field in fields(Item)]
    if set(entry) != set(names):
        missing = [name for name in names if name not in entry]
        unknown = [name for name in entry if name not in names]
        raise ValueError(f"fields must be exactly {', '.join(names)}; missing {missing}, unknown {unknown}")
    for name in ("image", "question"):
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise ValueError(f"{name} must be a text that is not empty")
    for name, values in (("kind", KINDS), ("size", SIZES)):
        if entry[name] not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}; got {entry[name]!r}")
    if not isinstance(entry["clutter"], bool):
        raise ValueError("clutter must be true or false")
    answers, boxes = entry["answers"], entry["boxes"]
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("answers must be a list of at least one text")
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        raise ValueError("boxes must be a list of [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
    return Item(**entry)


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(isinstance(edge, (int, float)) and not isinstance(edge, bool) for edge in box):
        return False
    return bool(0 <= box[0] < box[2] and 0 <= box[1] < box[3])
