"""Where questions come from: drawn worlds, any JSONL, any Hugging Face data set. All end as pictures and a JSONL."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from foveate.evaluation.drawn import Split, World
from foveate.evaluation.metrics import EXACT, Metric, get_metric
from foveate.evaluation.worlds import WORLDS

HUB = "hf:"
"""What a data set's name begins with, before the name on the hub or the folder."""

JSONL = (".jsonl", ".json", ".ndjson")

QUESTIONS_FILE = "questions.jsonl"


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Args:
        image: file name of the picture, relative to the JSONL.
        question: as asked.
        answers: what counts as right; what it means that there are several is the metric's business.
        id: unique in its suite; default the number of its line, from 0.
        group: what accuracy is reported for separately, "" for none.
    """

    image: str
    question: str
    answers: list[str]
    id: str
    group: str = ""


@dataclass(frozen=True)
class Columns:
    """What the fields of a JSONL, or the columns of a data set, are called.

    Args:
        image, question, answers: required; where ``answers`` is missing, ``answer`` is tried.
        id, group: None for none.
    """

    image: str = "image"
    question: str = "question"
    answers: str = "answers"
    id: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Suite:
    """Questions with their pictures and their metric.

    Args:
        name: for titles.
        folder: where the pictures lie.
        items: what is asked: ``Question`` or a drawn world's ``Item``.
        metric: what an answer is worth.
        world: that the pictures are of, which has kinds, sizes and clutter to report on; None when they are not drawn.
    """

    name: str
    folder: Path
    items: Sequence[Any]
    metric: Metric = EXACT
    world: World | None = None


Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(frozen=True)
class Source:
    """What to ask, as a command was told it.

    Args:
        suite: the name of a drawn world, such as ``"scenes"``, the path of a JSONL file, or ``"hf:"`` and a data set's
            name or folder.
        count: how many pictures are drawn; of the others, how many questions are asked, from the first, None for all.
        seed: which drawn pictures.
        split: of the drawn pictures or the data set.
        metric: its name; a drawn world's is exact match.
        columns: of a JSONL or data set.
        config: of a data set that has several.
        suffix: put after every question (an instruction how to answer).

    Raises:
        ValueError: no such suite or metric, or options that do not go with the suite.
    """

    suite: str = "scenes"
    count: int | None = None
    seed: int = 0
    split: str = "test"
    metric: str = EXACT.name
    columns: Columns = Columns()
    config: str | None = None
    suffix: str = ""

    def __post_init__(self) -> None:
        get_metric(self.metric)
        if self.world is not None:
            check_split(self.split)
            if self.count is None:
                raise ValueError(f"say how many {self.suite} are to be drawn")
            if (self.metric, self.columns, self.suffix, self.config) != (EXACT.name, Columns(), "", None):
                raise ValueError(
                    f"the {self.suite} have their own questions and metric: leave out metric, columns and suffix"
                )
        elif not self.is_hub and Path(self.suite).suffix not in JSONL:
            raise ValueError(
                f"unknown suite {self.suite!r}; known: {', '.join(WORLDS)}, the path of a .jsonl file, or {HUB}NAME "
                "of a data set"
            )

    @property
    def world(self) -> World | None:
        """The drawn world that the pictures are of, if they are."""
        return WORLDS.get(self.suite)

    @property
    def is_hub(self) -> bool:
        return self.suite.startswith(HUB)

    def settings(self) -> dict[str, Any]:
        """What made the questions what they are, to be recorded beside the answers."""
        if self.world is not None:
            return {"suite": self.suite, "split": self.split, "count": self.count, "seed": self.seed}
        common = {"suite": self.suite, "count": self.count, "suffix": self.suffix, "columns": asdict(self.columns)}
        return {**common, "split": self.split, "config": self.config} if self.is_hub else common

    def slug(self) -> str:
        """A name for the results folder."""
        if self.world is not None:
            return f"{self.suite}-{self.split}-{self.seed}-{self.count}"
        path = Path(self.suite.removeprefix(HUB)).expanduser()
        parts = (path.name, self.split) if self.is_hub else (path.stem,)
        return "-".join([*parts, *([str(self.count)] if self.count else [])])

    def open(self, out: Path, progress: Progress | None = None) -> Suite:
        """The questions; drawn pictures and data sets are written to the results folder unless they are there."""
        metric = get_metric(self.metric)
        if self.world is not None:
            assert self.count is not None
            return drawn_suite(self.world, out, self.count, self.seed, self.split, progress)
        if not self.is_hub:
            return jsonl_suite(Path(self.suite), metric, self.columns, self.count, self.suffix)
        return hub_suite(
            self.suite.removeprefix(HUB),
            out,
            metric,
            self.columns,
            split=self.split,
            config=self.config,
            count=self.count,
            suffix=self.suffix,
            progress=progress,
        )


def drawn_suite(world: World, out: Path, count: int, seed: int, split: str, progress: Progress | None = None) -> Suite:
    """Pictures of a drawn world, in a folder of its name in ``out``; drawn unless they are there.

    Raises:
        ValueError: an unknown split, or what ``World.write`` refuses.
    """
    check_split(split)
    questions = out / world.name / world.questions_file
    if not questions.is_file():  # written last, so it stands for the pictures too
        told = None if progress is None else lambda done: progress(done, count)
        world.write(questions.parent, count, seed, cast(Split, split), told)
    name = f"{world.name}, split {split}, {count} pictures"
    return Suite(name, questions.parent, world.read(questions), world=world)


def check_split(split: str) -> None:
    """Raises ValueError unless drawn pictures of this split are for measuring."""
    if split not in ("test", "style"):
        raise ValueError(f"unknown split {split!r}; known: test, style")
    assert split in get_args(Split)


def jsonl_suite(
    path: Path, metric: Metric, columns: Columns | None = None, count: int | None = None, suffix: str = ""
) -> Suite:
    """The questions of a JSONL file, whose pictures are named relative to it.

    Args:
        path: of the file.
        metric: what an answer is worth.
        columns: names of the fields.
        count: only so many questions, from the first; default all.
        suffix: put after every question (an instruction how to answer).

    Raises:
        ValueError: a malformed line, a picture that is not there, an id that stands twice; each with its line.
        FileNotFoundError: there is no such file.
    """
    columns = columns or Columns()
    if not path.is_file():
        raise FileNotFoundError(f"no such file of questions: {path}")
    items: list[Question] = []
    seen: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if count is not None and len(items) == count:
                break
            if not line.strip():
                continue
            try:
                item = _question(json.loads(line), columns, str(len(items)), suffix)
                if not (path.parent / item.image).is_file():
                    raise ValueError(f"there is no picture {path.parent / item.image}")
                metric.score("", item.answers)  # refuses answers that it cannot use, before anything is asked
                if seen.setdefault(item.id, number) != number:
                    raise ValueError(f"the id {item.id!r} stood in line {seen[item.id]} already")
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            items.append(item)
    if not items:
        raise ValueError(f"{path}: no questions in it")
    return Suite(path.stem, path.parent, items, metric)


def _question(entry: Any, columns: Columns, default_id: str, suffix: str) -> Question:
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    answers = columns.answers if entry.get(columns.answers) is not None else "answer"
    for name, key in (("image", columns.image), ("question", columns.question), ("answers", answers)):
        if entry.get(key) in (None, "", []):
            raise ValueError(
                f"no {key!r} in it, which has: {', '.join(map(str, entry)) or 'nothing'}. Another name for it? Give "
                f"--{name}-column"
            )
    for key in (columns.image, columns.question):
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{key} must be a text that is not empty, got {entry[key]!r}")
    identity = default_id if columns.id is None else _required(entry, columns.id)
    group = "" if columns.group is None else _required(entry, columns.group)
    return Question(entry[columns.image], entry[columns.question] + suffix, as_answers(entry[answers]), identity, group)


def _required(entry: Mapping[str, Any], key: str) -> str:
    if entry.get(key) is None:
        raise ValueError(f"no {key!r} in it")
    return str(entry[key])


def as_answers(value: Any) -> list[str]:
    """What data sets write as answers, as texts: one text or number, a list, or a list of objects with an "answer".

    Raises:
        ValueError: none of these, or no answer.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    answers = [one.get("answer") if isinstance(one, Mapping) else one for one in values]
    if not answers or not all(isinstance(one, (str, int, float)) for one in answers):
        raise ValueError(f"answers must be a text, a number or a list of them, got {value!r}")
    return [("yes" if one else "no") if isinstance(one, bool) else str(one) for one in answers]


def hub_suite(
    name: str,
    out: Path,
    metric: Metric,
    columns: Columns | None = None,
    *,
    split: str = "test",
    config: str | None = None,
    count: int | None = None,
    suffix: str = "",
    progress: Progress | None = None,
) -> Suite:
    """The questions of a Hugging Face data set: written to ``out/data`` as pictures and a JSONL unless they are there.

    So the answers can be held against the very files that were asked about, a picture of several rows is encoded once,
    and going on after a kill needs no hub. Pictures are copied byte for byte where the data set holds them encoded.

    Args:
        name: on the hub, or a local folder: one that ``save_to_disk`` wrote, or one that ``load_dataset`` takes
            (Parquet files, an image folder).
        out: results folder.
        metric, count, suffix: as for ``jsonl_suite``.
        columns: names of the columns.
        split: of the data set.
        config: of a data set that has several.
        progress: called with the number of rows written and of those there are.

    Raises:
        ValueError: no such data set, split or column; the message says what there is.
        ModuleNotFoundError: ``datasets`` is not installed.
    """
    columns = columns or Columns()
    folder = out / "data"
    if not (folder / QUESTIONS_FILE).is_file():
        _export(_load(name, config, split), folder, columns, count, progress)
    plain = Columns(id="id", group="group" if columns.group else None)
    suite = jsonl_suite(folder / QUESTIONS_FILE, metric, plain, None, suffix)
    return Suite(f"{Path(name).name}, split {split}", folder, suite.items, metric)


def _load(name: str, config: str | None, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError("data sets need the package datasets: pip install 'foveate[eval]'") from None
    folder = Path(name).expanduser()
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(map(str, loaded))}")
                loaded = loaded[split]
            return loaded
        return datasets.load_dataset(str(folder) if folder.is_dir() else name, config, split=split)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the data set {name} cannot be loaded: {reason} Check the name and the network (and HF_HUB_OFFLINE), or "
            "give a folder that holds it"
        ) from None


def _export(data: Any, folder: Path, columns: Columns, count: int | None, progress: Progress | None) -> None:
    import datasets

    answers = columns.answers if columns.answers in data.column_names else "answer"
    wanted = {"image": columns.image, "question": columns.question, "answers": answers}
    wanted |= {name: key for name, key in (("id", columns.id), ("group", columns.group)) if key is not None}
    for name, key in wanted.items():
        if key not in data.column_names:
            raise ValueError(
                f"the data set has no column {key!r}; it has: {', '.join(data.column_names)}. Give --{name}-column"
            )
    data = data.select_columns(list(dict.fromkeys(wanted.values())))
    names = {key: feature for key, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)}
    if isinstance(data.features[columns.image], datasets.Image):
        data = data.cast_column(columns.image, datasets.Image(decode=False))
    total = len(data) if count is None else min(count, len(data))
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    partial = folder / (QUESTIONS_FILE + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for number in range(total):
            row = data[number]
            for key, feature in names.items():
                row[key] = None if row[key] is None else feature.int2str(row[key])
            try:
                entry = {
                    "image": _picture_file(row[columns.image], folder),
                    "question": row[columns.question],
                    "answers": as_answers(row[answers]),
                    "id": str(number) if columns.id is None else _required(row, columns.id),
                }
                if columns.group is not None:
                    entry["group"] = _required(row, columns.group)
            except ValueError as error:
                raise ValueError(f"row {number} of the data set: {error}") from None
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            if progress is not None:
                progress(number + 1, total)
    os.replace(partial, folder / QUESTIONS_FILE)  # written last, so it stands for the pictures too


def _picture_file(value: Any, folder: Path) -> str:
    """Writes a row's picture under the hash of its bytes, once, and returns its name relative to the folder."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise ValueError(f"one picture per question is asked about, got {len(value)}")
        value = value[0]
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        value = Path(value).read_bytes()
    elif isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "png")
        value = buffer.getvalue()
    if not isinstance(value, bytes):
        raise ValueError(f"a picture must be an image, its bytes or its path, got {type(value).__name__}")
    try:
        with Image.open(io.BytesIO(value)) as picture:
            suffix = (picture.format or "png").lower()
    except UnidentifiedImageError:
        raise ValueError("its picture is none that Pillow can read") from None
    name = f"pictures/{hashlib.sha256(value).hexdigest()[:24]}.{suffix}"
    if not (folder / name).is_file():
        partial = folder / f"{name}.partial"
        partial.write_bytes(value)
        os.replace(partial, folder / name)
    return name
