"""Asks a suite's questions with every method and budget, one line per answer, and goes on where a kill left off."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from foveate import __version__
from foveate.evaluation.metrics import is_correct
from foveate.images import load_image
from foveate.pruners import METHODS, Pruner
from foveate.session import look
from foveate.tokens import Keep

ROWS_FILE = "rows.jsonl"
SETTINGS_FILE = "settings.json"

ALL = "all"
"""The method name of the run with all tokens."""


class Item(Protocol):
    """A question about one picture. An ``id`` attribute is used where there is one, else the place in the suite."""

    @property
    def image(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answers(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Row:
    """One answer, a line of ``rows.jsonl``.

    Args:
        item: which question, its id or its place in the suite.
        method: a method's name, or ``"all"``.
        keep: the budget asked for: a fraction, or an int, tokens per image.
        question: as asked.
        answer: the model's.
        correct: whether it equals one of the item's answers, normalised.
        kept, total: patch tokens of the picture that reached the LLM, and that there were.
        latency_ms: selection and generation, the vision tower (which ran once for the picture) left out; the mean
            over the questions that were asked as one batch.
    """

    item: str
    method: str
    keep: float | int
    question: str
    answer: str
    correct: bool
    kept: int
    total: int
    latency_ms: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What a row is the answer to. ``1`` (one token) and ``1.0`` (all) are equal numbers, hence the text."""
        return self.item, self.method, repr(self.keep)


Factory = Callable[[float | int, int], Pruner]
"""Makes a method's pruner for a budget and a picture's number."""


def factory(name: str) -> Factory:
    """How a registered method is made for each picture: one with a ``seed`` gets the picture's number, so that its luck
    differs from picture to picture and is the same in every run.

    Raises:
        ValueError: no such method; the message names those known.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    method = METHODS[name]
    seeded = any(field.name == "seed" for field in fields(method))

    def make(keep: float | int, picture: int) -> Pruner:
        return method(keep=keep, seed=picture) if seeded else method(keep=keep)  # type: ignore[call-arg]

    return make


def evaluate(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    methods: Sequence[str] | Mapping[str, Factory],
    keeps: Sequence[float | int],
    out: Path,
    *,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    max_new_tokens: int = 8,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
    resume: bool = True,
) -> list[Row]:
    """Answers every item with all tokens, and with every method at every budget.

    The vision tower runs once per picture; the questions of a picture are asked in batches. Every answer is on disk
    before the next batch is asked: after a kill, the same call goes on and repeats nothing.

    Args:
        model, processor: a stock transformers model of a known family, and its processor.
        items: what to ask; items of one picture need not stand together.
        methods: names of registered methods, or name -> factory for variants of them.
        keeps: budgets, each a fraction in (0, 1] or an int, tokens per image. ``1.0`` is the run with all tokens,
            which is done once and in any case.
        out: folder for ``rows.jsonl`` and ``settings.json``, made if it is not there.
        folder: where the items' pictures lie.
        settings: what else made the items and the model what they are (names, seeds); recorded and compared.
        max_new_tokens: longest answer, tokens.
        batch: most questions asked at once.
        progress: called with the number of answers there are and of those there will be.
        resume: False refuses a folder that holds answers already.

    Returns:
        The rows of these items, methods and budgets, in the order of the items.

    Raises:
        ValueError: no item, unknown method, impossible budget, a damaged ``rows.jsonl``, or a folder that was made with
            other settings; the message names what differs.
    """
    if not items:
        raise ValueError("no question to ask")
    if isinstance(methods, str):
        raise TypeError(f"methods is a list of names or a mapping, got the text {methods!r}")
    factories = dict(methods) if isinstance(methods, Mapping) else {name: factory(name) for name in methods}
    if ALL in factories:
        raise ValueError(f"{ALL!r} is the run with all tokens, which is done in any case: leave it out of methods")
    budgets = list(dict.fromkeys((repr(value), value) for value in (Keep(keep).value for keep in keeps)))
    runs = [(ALL, cast("float | int", 1.0))]
    runs += [(name, value) for name in factories for text, value in budgets if text != "1.0"]
    ids = [str(getattr(item, "id", place)) for place, item in enumerate(items)]
    if len(set(ids)) != len(ids):
        raise ValueError("items must have different ids")

    recorded = {
        **(settings or {}),
        "items": _digest_items(items, ids, folder),
        "model": fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "max_new_tokens": max_new_tokens,
        "foveate": __version__,
    }
    rows = {row.key: row for row in open_folder(out, recorded, resume=resume)}
    wanted = [(item, method, repr(keep)) for item in ids for method, keep in runs]
    done = sum(key in rows for key in wanted)
    if progress is not None:
        progress(done, len(wanted))
    with (out / ROWS_FILE).open("a", encoding="utf-8") as file:
        for number, places in enumerate(_by_picture(items)):
            open_runs = [
                (method, keep, [place for place in places if (ids[place], method, repr(keep)) not in rows])
                for method, keep in runs
            ]
            if not any(pending for _, _, pending in open_runs):
                continue
            session = look(model, processor, load_image(folder / items[places[0]].image))
            for method, keep, pending in open_runs:
                for chunk in _chunks(pending, batch):
                    pruner = None if method == ALL else factories[method](keep, number)
                    start = time.perf_counter()
                    answers = session.ask_many(
                        [items[place].question for place in chunk],
                        pruner,
                        max_new_tokens=max_new_tokens,
                        do_sample=False,
                        num_beams=1,
                    )
                    milliseconds = (time.perf_counter() - start) * 1e3 / len(chunk)
                    fresh = [
                        Row(
                            item=ids[place],
                            method=method,
                            keep=keep,
                            question=items[place].question,
                            answer=answer.text,
                            correct=is_correct(answer.text, items[place].answers),
                            kept=sum(len(selection) for selection in answer.selections),
                            total=sum(selection.total for selection in answer.selections),
                            latency_ms=round(milliseconds, 3),
                        )
                        for place, answer in zip(chunk, answers, strict=True)
                    ]
                    file.write("".join(json.dumps(vars(row), ensure_ascii=False) + "\n" for row in fresh))
                    file.flush()
                    rows.update((row.key, row) for row in fresh)
                    done += len(fresh)
                    if progress is not None:
                        progress(done, len(wanted))
    return [rows[key] for key in wanted]


def open_folder(out: Path, settings: Mapping[str, Any], *, resume: bool = True) -> list[Row]:
    """Makes a results folder, or checks that one belongs to these settings, and reads the rows it holds.

    A last line that a kill cut short is taken off the file.

    Raises:
        ValueError: as for ``evaluate``.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; results are written to a folder")
    out.mkdir(parents=True, exist_ok=True)
    rows, record = out / ROWS_FILE, out / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))  # as it will be read back
    if record.exists():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            raise ValueError(f"{record} is damaged: choose another folder, or delete this one") from None
        names = sorted({*before, *settings})
        changed = [name for name in names if before.get(name) != settings.get(name)]
        if changed:
            listed = "; ".join(f"{name}: {before.get(name)!r} then, {settings.get(name)!r} now" for name in changed)
            raise ValueError(f"{out} holds results of other settings ({listed}): choose another folder")
    elif rows.exists() and rows.stat().st_size:
        raise ValueError(f"{out} holds {ROWS_FILE} without {SETTINGS_FILE}: choose another folder")
    else:
        # Written aside and renamed, so that a kill leaves either no settings or whole ones.
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, record)
    if not rows.exists():
        return []
    if not resume and rows.stat().st_size:
        raise ValueError(f"{out} holds answers already: choose another folder, or resume")
    return _read_rows(rows)


def fingerprint(model: Any) -> str:
    """A short hash of a model's configuration and of a sample of every weight: equal for equal checkpoints."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if not weight.is_meta:  # offloaded to disk
            digest.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest_items(items: Sequence[Item], ids: Sequence[str], folder: Path) -> str:
    digest = hashlib.sha256()
    for item, name in zip(items, ids, strict=True):
        file = folder / item.image
        size = file.stat().st_size if file.is_file() else None
        digest.update(json.dumps([name, item.image, size, item.question, list(item.answers)]).encode())
    return digest.hexdigest()[:16]


def _read_rows(path: Path) -> list[Row]:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    rows = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            rows.append(Row(**json.loads(line)))
        except (TypeError, ValueError):
            raise ValueError(f"{path}, line {number} is damaged: choose another folder, or delete that line") from None
    return rows


def _by_picture(items: Sequence[Item]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.image, []).append(place)
    return list(places.values())


_T = TypeVar("_T")


def _chunks(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
