"""What drawn worlds share: a world draws pictures (or clips) with questions, and both become files, the same way for
every world.

Needs numpy and Pillow only. Which worlds there are stands in ``foveate.evaluation.worlds``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

Split = Literal["test", "style", "train"]
"""``style`` is drawn with what training never sees: other artwork in scenes, other fonts in documents."""

STREAMS: dict[str, int] = {"train": 0, "test": 1, "style": 2}
"""Split -> its own stream of random numbers."""

SIZES = ("small", "large", "none")


@dataclass(frozen=True)
class Item:
    """One question about one picture, a line of a world's JSONL.

    Attributes:
        image: file name of the picture, beside the JSONL.
        question: the question, plain English.
        answers: what counts as right.
        kind: one of the world's kinds.
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
class FilmedItem(Item):
    """One question about one clip.

    Attributes:
        times: [start, end) of every box, seconds from the clip's start.
    """

    times: list[list[float]]


@dataclass(frozen=True)
class Asked:
    """A question about a drawn picture; the fields are those of ``Item``, and of ``FilmedItem`` about a clip."""

    text: str
    answers: tuple[str, ...]
    kind: str
    size: str
    boxes: list[list[int]]
    times: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Drawing:
    """A drawn picture (RGB) with its questions. ``rng`` goes on to decide how the picture is encoded as a file.

    A clip has ``frames``, of which ``picture`` is the first, and ``rate`` of them in a second.
    """

    picture: Image.Image
    questions: tuple[Asked, ...]
    clutter: bool
    rng: np.random.Generator
    frames: tuple[Image.Image, ...] = ()
    rate: float = 0.0


@dataclass(frozen=True)
class World:
    """A world of drawn pictures: what it is called, what it asks, and how a picture of it comes about.

    Attributes:
        name: of the suite, and of the file of its questions.
        kinds: of its questions.
        core: the kinds whose mean is the overall figure.
        drawn: makes picture number ``index`` of a split and seed: ``drawn(split, seed, index)``.
        halves: kinds of which each answer named counts as a kind of its own, at its share of the weight.
        sized: kinds that tell small from large.
        located: kinds whose boxes are what is asked about, which a score should find.
        written: kinds that the written report shows besides the figures every world has.
        filmed: whether its pictures are clips, and its boxes have times.
    """

    name: str
    kinds: tuple[str, ...]
    core: tuple[str, ...]
    drawn: Callable[[str, int, int], Drawing] = field(repr=False, compare=False)
    halves: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    sized: tuple[str, ...] = ()
    located: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    filmed: bool = False

    @property
    def questions_file(self) -> str:
        """Name of the JSONL beside the pictures."""
        return f"{self.name}.jsonl"

    def draw(self, seed: int, split: Split = "test", index: int = 0) -> Drawing:
        """Picture number ``index`` of a seed and split, with its questions.

        The same arguments give the same picture, on any machine (with the same Pillow); no seed of one split gives a
        picture of another. Every second picture is cluttered.

        Raises:
            ValueError: no such split, or a negative seed or index.
        """
        _check_split(split)
        _check_integers(("seed", seed, 0), ("index", index, 0))
        return self.drawn(split, seed, index)

    def write(
        self,
        out: Path,
        count: int,
        seed: int,
        split: Split = "test",
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        """Write pictures and their questions.

        Half of the pictures are sparse, half cluttered. The same arguments give the same bytes (with the same Pillow).

        Args:
            out: folder, made if it is not there.
            count: how many pictures.
            seed: which pictures, >= 0.
            split: "test" (drawn with what training sees), "style" (with what it never sees) or "train".
            progress: called with the number of pictures written so far, after each.

        Returns:
            The path of the questions.

        Raises:
            ValueError: an argument is out of range, or ``out`` is a file.
        """
        _check_split(split)
        _check_integers(("count", count, 1), ("seed", seed, 0))
        out = Path(out)
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; {self.name} are written to a folder")
        lines: list[str] = []
        for index in range(count):
            drawing = self.draw(seed, split, index)
            out.mkdir(parents=True, exist_ok=True)
            image = _save(drawing, out, f"{split}-{seed}-{index:05d}")
            lines += [json.dumps(asdict(_item(asked, drawing, image))) for asked in drawing.questions]
            if progress is not None:
                progress(index + 1)
        path = out / self.questions_file
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def read(self, path: Path) -> list[Item]:
        """Read what ``write`` wrote.

        Raises:
            ValueError: a line is malformed; the message names the file and the line number.
            FileNotFoundError: there is no such file.
        """
        path = Path(path)
        items = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    items.append(self._parse(line))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
        if not items:
            raise ValueError(f"{path}: no questions in it")
        return items

    @property
    def _kind(self) -> type[Item]:
        return FilmedItem if self.filmed else Item

    def _parse(self, line: str) -> Item:
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ValueError("not a JSON object")
        names = [one.name for one in fields(self._kind)]
        if set(entry) != set(names):
            missing = [name for name in names if name not in entry]
            unknown = [name for name in entry if name not in names]
            raise ValueError(f"fields must be exactly {', '.join(names)}; missing {missing}, unknown {unknown}")
        for name in ("image", "question"):
            if not isinstance(entry[name], str) or not entry[name].strip():
                raise ValueError(f"{name} must be a text that is not empty")
        for name, values in (("kind", self.kinds), ("size", SIZES)):
            if entry[name] not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {entry[name]!r}")
        if not isinstance(entry["clutter"], bool):
            raise ValueError("clutter must be true or false")
        answers, boxes = entry["answers"], entry["boxes"]
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError("answers must be a list of at least one text")
        if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
            raise ValueError("boxes must be a list of [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
        if self.filmed and not _are_times(entry["times"], len(boxes)):
            raise ValueError(f"times must be {len(boxes)} of [start, end] in seconds, one per box, with start < end")
        return self._kind(**entry)


def begun(split: str, seed: int, index: int, clutter: bool | None = None) -> tuple[np.random.Generator, bool]:
    """What a world makes picture number ``index`` of a split and seed from: random numbers that no other picture has,
    and whether it is cluttered; every second one is, unless ``clutter`` says otherwise."""
    return np.random.default_rng([STREAMS[split], seed, index]), index % 2 == 1 if clutter is None else clutter


def _check_split(split: str) -> None:
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}")


def _check_integers(*named: tuple[str, Any, int]) -> None:
    for name, value, least in named:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def _save(drawing: Drawing, out: Path, stem: str) -> str:
    if drawing.frames:
        return _save_clip(drawing, out, f"{stem}.apng")
    if drawing.rng.random() < 0.5:
        name = f"{stem}.jpg"
        drawing.picture.save(out / name, quality=int(drawing.rng.integers(80, 96)))
    else:
        name = f"{stem}.png"
        drawing.picture.save(out / name)
    return name


def _save_clip(drawing: Drawing, out: Path, name: str) -> str:
    """An animated PNG: it loses nothing, Pillow reads it, and so does what reads videos."""
    first, *others = drawing.frames
    first.save(
        out / name, format="png", save_all=True, append_images=others, duration=1000 / drawing.rate, loop=0,
        disposal=0, blend=0,
    )  # fmt: skip
    return name


def _item(asked: Asked, drawing: Drawing, image: str) -> Item:
    about = asked.text, list(asked.answers), asked.kind, asked.size, drawing.clutter, [*map(list, asked.boxes)]
    return FilmedItem(image, *about, [*map(list, asked.times)]) if drawing.frames else Item(image, *about)


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(isinstance(edge, (int, float)) and not isinstance(edge, bool) for edge in box):
        return False
    return bool(0 <= box[0] < box[2] and 0 <= box[1] < box[3])


def _are_times(times: Any, boxes: int) -> bool:
    """Whether these are the times of so many boxes."""
    if not isinstance(times, list) or len(times) != boxes:
        return False
    for one in times:
        if not isinstance(one, list) or len(one) != 2:
            return False
        if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in one):
            return False
        if not 0 <= one[0] < one[1]:
            return False
    return True
