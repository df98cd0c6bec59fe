"""Asks a suite's questions with every method and budget, one line per answer, and goes on where a kill left off.

Several processes (``accelerate launch``) share the work: each has its own file of answers, and all read them all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL.Image import Image

from foveate import __version__
from foveate.asking_again import AskAgain, Spelled, is_spelled
from foveate.crops import Crops, encoded_tokens
from foveate.evaluation.blind import Blind, is_blind
from foveate.evaluation.cropped import Cropped, is_cropped
from foveate.evaluation.cropped import Spelled as SpelledCrops
from foveate.evaluation.engines import Answered, Asker, Engine, Item, Spent, Way
from foveate.evaluation.metrics import Metric
from foveate.evaluation.processes import ALONE, Processes
from foveate.images import load_image, size_of
from foveate.inputs import question_prompt
from foveate.inside import check_inside
from foveate.models import family_for
from foveate.options import Options
from foveate.pixels import Pixels, resized, resized_to, warn_fixed
from foveate.pruners import InsidePruner, Method, get_pruner, takes
from foveate.pruners.uniform import Uniform
from foveate.readable import check_readable
from foveate.resizing import Counts, Resize, is_resize
from foveate.session import Answer, Session, look
from foveate.stopwatch import FirstToken, Stopwatch, timing
from foveate.tokens import Keep, Selection
from foveate.turns import adds_special_tokens

ROWS_FILE = "rows.jsonl"
ROWS_FILES = "rows*.jsonl"
SETTINGS_FILE = "settings.json"
SOURCE_FILE = "source.json"
PARQUET_FILE = "answers.parquet"

FEW = 2
"""With fewer questions per picture than this on average, batches go across pictures."""

ALL = "all"
"""The method name of the run with all tokens."""


@dataclass(frozen=True)
class Row:
    """One answer, a line of ``rows.jsonl``. What it is worth is worked out from the item's answers afterwards.

    Args:
        item: which question, its id or its place in the suite.
        method: a method's name, or ``"all"``.
        keep: the budget asked for: a fraction, or an int, tokens per image.
        question: as asked.
        answer: the model's.
        kept, total: patch tokens of the picture that reached the LLM, and that there were. Of methods inside the LLM,
            what its layers held on average, row ends included. Of ``ask-again``, those of all its passes. Of
            ``resize``, those of the smaller picture, and of the picture as it was. Of ``blind``, 0 and those of the
            picture.
        latency_ms: from picture to answer: processor, vision tower, selection and generation. Questions that were asked
            as one batch share its time alike; a vision tower that ran once for several questions counts for each. Under
            ``crops``, so does the base view, and a crop for every question that it was encoded for, at the mean time of
            one; across pictures, questions share the tower's time as all else.
        encoded: patch tokens of the picture that the vision tower encoded, of ``resize`` those of the smaller picture;
            None: all of them.
        encoder_ms, selection_ms, prefill_ms: of ``latency_ms``, see ``Spent``; they share and count alike. None: not
            measured.
    """

    item: str
    method: str
    keep: float | int
    question: str
    answer: str
    kept: int
    total: int
    latency_ms: float
    encoded: int | None = None
    encoder_ms: float | None = None
    selection_ms: float | None = None
    prefill_ms: float | None = None

    @property
    def tokens_encoded(self) -> int:
        """``encoded`` as a number."""
        return self.total if self.encoded is None else self.encoded

    @property
    def key(self) -> tuple[str, str, str]:
        """What a row is the answer to. ``1`` (one token) and ``1.0`` (all) are equal numbers, hence the text."""
        return self.item, self.method, repr(self.keep)

    @property
    def over_budget(self) -> bool:
        """Of ``resize``, whether the picture had more patch tokens than the budget, because the model makes more of it
        at any size. What methods spend is their own affair, and False here."""
        return is_resize(self.method) and self.kept > Keep(self.keep).budget(self.total)


Factory = Callable[[float | int, int], Way]
"""Makes a method's pruner, a way of asking again, either under crops, or a baseline without any, for a budget and a
picture's number."""


def factory(name: str) -> Factory:
    """How a registered method, those inside the LLM included, is made for each picture: one with a ``seed`` gets the
    picture's number, so that its luck differs from picture to picture and is the same in every run.

    Args:
        name: as for ``foveate.pruners.parse_method``, options behind it included; or as for ``Spelled``, of
            ``asking_again`` and of ``cropped``; or ``resize``, which exceeds the budget where a picture cannot be made
            so small, or ``blind``.

    Raises:
        ValueError: no such method or option, or a value that the method refuses.
    """
    if is_cropped(name):
        cropped = SpelledCrops.read(name)
        if cropped.method == ALL:
            return lambda keep, picture: Cropped(cropped.of(picture), Uniform(keep=1.0), whole=True)
        held = factory(cropped.method)
        if cropped.crops is None:
            return held
        return lambda keep, picture: Cropped(cropped.of(picture), cast("Method | AskAgain", held(keep, picture)))
    if is_spelled(name):
        spelled = Spelled.read(name)
        lucky = takes(spelled.method, "seed")
        return lambda keep, picture: spelled.asking(keep, picture if lucky else None)
    if is_resize(name):
        return lambda keep, picture: Resize(keep, or_fewest=True)
    if is_blind(name):
        return lambda keep, picture: Blind()
    seeded = takes(name, "seed")

    def make(keep: float | int, picture: int) -> Method:
        return get_pruner(f"{name}:seed={picture}" if seeded else name, keep=keep)

    make(1.0, 0)  # what it refuses, it refuses now
    return make


def budgets_of(make: Factory, budgets: Sequence[float | int]) -> list[float | int]:
    """Those of some budgets that a method is run at: all but ``1.0``, which is the run with all tokens.

    Where the budget is a limit, ``1.0`` is run too: ``auto`` without one, and ``ask-again``, whose second pass has all
    tokens then. Of ``ask-again``, they are those that exceed its first. Of all tokens of what was encoded, it is
    ``1.0``. Without the picture, there is the one of 0 tokens.
    """
    made = make(1.0, 0)
    if isinstance(made, Blind):
        return [0]
    if isinstance(made, Cropped):
        if made.whole:
            return [1.0]
        made = made.method
    if isinstance(made, AskAgain):
        first = Keep(made.first.keep)
        return [value for value in budgets if Keep(value).exceeds(first)]
    limit = isinstance(made, Method) and made.adaptive
    return [value for value in budgets if limit or repr(value) != "1.0"]


def sizes_of(items: Sequence[Item], folder: Path) -> list[tuple[int, int]]:
    """The different sizes, (width, height), of the items' pictures, of which only the heads are read.

    Raises:
        FileNotFoundError, ValueError: as for ``foveate.images.size_of``.
    """
    return sorted({size_of(folder / item.image) for item in items})


def evaluate(
    engine: Engine,
    items: Sequence[Item],
    methods: Sequence[str] | Mapping[str, Factory],
    keeps: Sequence[float | int],
    out: Path,
    *,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    max_new_tokens: int = 8,
    batch: int = 16,
    by_picture: bool = False,
    progress: Callable[[int, int], None] | None = None,
    resume: bool = True,
    processes: Processes = ALONE,
) -> list[Row]:
    """Answers every item with all tokens, and with every method at every budget.

    Where pictures have several questions, the vision tower runs once per picture and the questions of a picture are
    asked in batches. Where most have one or two, batches go across pictures, and the vision tower runs for every batch;
    so they do wherever the engine ``mixes``. ``ask-again`` needs what the tower gave of a picture, so with it among the
    methods no batch goes across pictures, and times are comparable.
    Every answer is on disk before the next batch is asked: after a kill, the same call goes on and repeats nothing.

    Args:
        engine: what answers, such as ``Transformers(model, processor)``.
        items: what to ask; items of one picture need not stand together.
        methods: names of registered methods, or name -> factory for variants of them.
        keeps: budgets, each a fraction in (0, 1] or an int, tokens per image. ``1.0`` is the run with all tokens,
            which is done once and in any case.
        out: folder for the answers and ``settings.json``, made if it is not there.
        folder: where the items' pictures lie.
        settings: what else made the items and the model what they are (names, seeds); recorded and compared.
        max_new_tokens: longest answer, tokens.
        batch: most questions asked at once; 1 never batches across pictures.
        by_picture: never batch across pictures, whatever the methods are.
        progress: called with the number of answers there are and of those there will be (of this process's share).
        resume: False refuses a folder that holds answers already.
        processes: which of several this is. Each takes every n-th piece of the work, all on one file system; it may be
            gone on with by another number of them.

    Returns:
        The rows of these items, methods and budgets, in the order of the items, those of other processes included.

    Raises:
        ValueError: no item, a method that is unknown or that the engine cannot run, impossible budget, a damaged file
            of answers, or a folder that was made with other settings; the message names what differs.
    """
    if not items:
        raise ValueError("no question to ask")
    if isinstance(methods, str):
        raise TypeError(f"methods is a list of names or a mapping, got the text {methods!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    factories = dict(methods) if isinstance(methods, Mapping) else {name: factory(name) for name in methods}
    if ALL in factories:
        raise ValueError(f"{ALL!r} is the run with all tokens, which is done in any case: leave it out of methods")
    budgets = list({repr(value): value for value in (Keep(keep).value for keep in keeps)}.values())
    own_budgets = {name: budgets_of(make, budgets) for name, make in factories.items()}
    runs = [(ALL, cast("float | int", 1.0))]
    runs += [(name, value) for name, own in own_budgets.items() for value in own]
    ids = [str(getattr(item, "id", place)) for place, item in enumerate(items)]
    if len(set(ids)) != len(ids):
        raise ValueError("items must have different ids")
    pieces: list[Sequence[int]] = list(_by_picture(items))
    for name, own in own_budgets.items():
        for value in own:  # what a method refuses at one of its budgets, it refuses before anything is asked
            factories[name](value, 0)
        for value in own[:1]:
            made = [factories[name](value, picture) for picture in (0, 1)]
            engine.require(name, made)
            if isinstance(made[0], Resize):
                sizes = sizes_of(items, folder)
                for one in own:
                    engine.require_sizes(cast("Resize", factories[name](one, 0)), sizes)
            by_picture = by_picture or any(
                isinstance(_held(one)[0], AskAgain) for one in made if not isinstance(one, (Resize, Blind))
            )
    across = batch > 1 and not by_picture and (engine.mixes or len(items) < FEW * len(pieces))
    if across:
        pieces = list(_chunks([place for places in pieces for place in places], batch))

    recorded = {
        **(settings or {}),
        "items": _digest_items(items, ids, folder),
        **engine.facts(),
        "max_new_tokens": max_new_tokens,
        "foveate": __version__,
    }
    if across:  # the seeds of a piece follow from where it begins
        recorded["batch"] = batch
    if processes.rank:
        processes.wait()
    rows = {row.key: row for row in open_folder(out, recorded, resume=resume)}
    if not processes.rank:
        processes.wait()  # the others find a folder that was made, checked and repaired
    processes.wait()  # and nobody writes while another still reads
    mine = [(number, places) for number, places in enumerate(pieces) if number % processes.size == processes.rank]
    asked = [ids[place] for _, places in mine for place in places]
    done = sum((item, method, repr(keep)) in rows for item in asked for method, keep in runs)
    total = len(runs) * len(asked)
    if progress is not None:
        progress(done, total)
    with (out / processes.file(ROWS_FILE)).open("a", encoding="utf-8") as file:
        for number, places in mine:
            open_runs = [
                (method, keep, [place for place in places if (ids[place], method, repr(keep)) not in rows])
                for method, keep in runs
            ]
            if not any(pending for _, _, pending in open_runs):
                continue
            asker = engine.asker(folder, across)
            for method, keep, pending in open_runs:
                for chunk in _chunks(pending, batch):
                    pruner = Uniform(keep=1.0) if method == ALL else factories[method](keep, number)
                    answers, spent = asker.ask([items[place] for place in chunk], pruner, max_new_tokens)
                    fresh = [
                        Row(
                            item=ids[place],
                            method=method,
                            keep=keep,
                            question=items[place].question,
                            answer=answer,
                            kept=kept,
                            total=of,
                            latency_ms=round(spent.latency, 3),
                            encoded=encoded,
                            encoder_ms=_rounded(spent.encoder),
                            selection_ms=_rounded(spent.selection),
                            prefill_ms=_rounded(spent.prefill),
                        )
                        for place, (answer, kept, of, encoded) in zip(chunk, answers, strict=True)
                    ]
                    file.write("".join(json.dumps(vars(row), ensure_ascii=False) + "\n" for row in fresh))
                    file.flush()
                    rows.update((row.key, row) for row in fresh)
                    done += len(fresh)
                    if progress is not None:
                        progress(done, total)
    if processes.size > 1:
        processes.wait()
        rows = {row.key: row for row in _read_folder(out)}
    return [rows[item, method, repr(keep)] for item in ids for method, keep in runs]


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


class Transformers:
    """A stock transformers model of a known family, and its processor.

    Args:
        model, processor: the two.
        pixels: how large pictures are when the processor sees them, see ``Pixels``; default as they are.
    """

    mixes = False

    def __init__(self, model: Any, processor: Any, pixels: float | int | str | None = None) -> None:
        self.model, self.processor = model, processor
        self.pixels = None if pixels is None else Pixels(pixels)
        if pixels is not None:
            warn_fixed(family_for(model))

    @functools.cached_property
    def counts(self) -> Counts:
        """How many tokens the model makes of pictures."""
        return Counts.of(self.model, self.processor)

    def facts(self) -> dict[str, Any]:
        return {
            "model": fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            **({} if self.pixels is None else {"pixels": self.pixels.value}),
        }

    def require(self, method: str, pruners: Sequence[Way]) -> None:
        """Every method runs here, under crops those before the LLM of a model that has crops."""
        family = family_for(self.model)
        for one in pruners:
            if isinstance(one, (Resize, Blind)):
                continue
            options = Options(crops=one.crops) if isinstance(one, Cropped) else Options()
            options.check(family)
            whole = one.method if isinstance(one, Cropped) else one
            for held in (whole.first, whole.then) if isinstance(whole, AskAgain) else [whole]:
                check_inside(family, held, options)
                check_readable(family, held, options)

    def require_sizes(self, resize: Resize, sizes: Sequence[tuple[int, int]]) -> None:
        if self.pixels is None or not self.pixels.is_auto:  # which is seen when a picture's turn has come
            for size in sizes:
                resize.size(size if self.pixels is None else self.pixels.size(*size), self.counts)

    def asker(self, folder: Path, across: bool) -> Asker:
        return (_Across if across else _OnePicture)(self, folder)

    def resized(self, picture: Image) -> Image:
        """A picture as the processor sees it."""
        return picture if self.pixels is None else resized(picture, self.pixels, self.model, self.processor)

    def blind(
        self, items: Sequence[Item], pictures: Sequence[Image], max_new_tokens: int
    ) -> tuple[list[Answered], Spent]:
        """What some items are answered without their pictures, which only say how many tokens were left out."""
        prompts = [question_prompt(self.processor, item.question, 0, self.model) for item in items]
        watch = stopwatch(self.model)
        with timing(watch):
            texts = generate(
                self.model, self.processor, prompts, [()] * len(items), Uniform(keep=1.0),
                max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, logits_processor=[FirstToken(watch)],
            )  # fmt: skip
        totals = [self.counts.patches(picture.size) for picture in pictures]
        told: list[Answered] = [(text, 0, total, 0) for text, total in zip(texts, totals, strict=True)]
        return told, shared(watch, len(items))

    def close(self) -> None:
        """Nothing was started."""


class _OnePicture:
    """Asks batches of questions about one picture, at which the vision tower looks once; under ``resize`` once at each
    size, and under crops once for every choice of them, so that no run is spared the time that another has paid for."""

    def __init__(self, engine: Transformers, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.picture: Any = None
        self.resizing = 0.0
        self.looks: dict[tuple[Resize | None, Crops | None], _Look] = {}

    def ask(self, items: Sequence[Item], pruner: Way, max_new_tokens: int) -> tuple[list[Answered], Spent]:
        """See ``Asker``."""
        engine = self.engine
        if self.picture is None:
            given = load_image(self.folder / items[0].image)
            start = _now(engine.model)
            self.picture = engine.resized(given)
            self.resizing = (_now(engine.model) - start) * 1e3
        if isinstance(pruner, Blind):
            return engine.blind(items, [self.picture] * len(items), max_new_tokens)
        resize = pruner if isinstance(pruner, Resize) else None
        method, crops = _held(Uniform(keep=1.0) if isinstance(pruner, Resize) else pruner)
        seen = self._look(resize, crops)
        watch = stopwatch(engine.model)
        with timing(watch):
            answers = seen.session.ask_many(
                [item.question for item in items], method, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
                logits_processor=[FirstToken(watch)],
            )  # fmt: skip
        seen.for_crops += watch.taken["encoder"]  # which is shared out by another rule
        watch.taken["encoder"] = 0.0
        chosen = [answer.selections[0] for answer in answers]
        own = seen.crops_of(chosen)
        asking = shared(watch, len(items))
        spent = replace(asking, latency=asking.latency + self.resizing + seen.taken + own, encoder=seen.encoder + own)
        counted = count_passes(method, answers) if isinstance(method, AskAgain) else count_kept(method)
        if resize is not None:
            counted = [(kept, engine.counts.patches(self.picture.size)) for kept, _ in counted]
        encoded = _count_encoded(chosen) if resize is None else [kept for kept, _ in counted]
        told = zip(answers, counted, encoded, strict=True)
        return [(answer.text, *counts, encoded) for answer, counts, encoded in told], spent

    def _look(self, resize: Resize | None, crops: Crops | None) -> _Look:
        """A session; the seconds in which a size was searched for do not count."""
        if (resize, crops) not in self.looks:
            engine = self.engine
            size = self.picture.size if resize is None else resize.size(self.picture.size, engine.counts)
            self.looks[resize, crops] = _Look(engine.model, engine.processor, self.picture, size, crops)
        return self.looks[resize, crops]


class _Look:
    """A session about one picture, and what it took.

    ``taken`` are the milliseconds until the first question could be asked, ``encoder`` those of the vision tower among
    them, and ``for_crops`` its milliseconds since then, for the crops that questions asked for.
    """

    def __init__(self, model: Any, processor: Any, picture: Image, size: tuple[int, int], crops: Crops | None) -> None:
        watch = stopwatch(model)
        with timing(watch):
            self.session: Session = look(model, processor, resized_to(picture, size), crops=crops)
        self.taken, self.encoder = sum(watch.taken.values()), watch.taken["encoder"]
        self.for_crops = 0.0

    def crops_of(self, chosen: Sequence[Selection]) -> float:
        """Milliseconds that one question's crops took, were they encoded for it alone: mean over these questions."""
        crops = len(self.session.views.store.known) - 1
        if not self.for_crops or not crops:
            return 0.0
        return self.for_crops / crops * sum(len(one.encoded_views) - 1 for one in chosen) / len(chosen)


class _Across:
    """Asks batches of questions about a picture each, through the model's own ``generate``."""

    def __init__(self, engine: Transformers, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def ask(self, items: Sequence[Item], pruner: Way, max_new_tokens: int) -> tuple[list[Answered], Spent]:
        """As for one picture."""
        engine = self.engine
        if isinstance(pruner, Blind):
            seen = [engine.resized(load_image(self.folder / item.image)) for item in items]
            return engine.blind(items, seen, max_new_tokens)
        method, crops = _held(Uniform(keep=1.0) if isinstance(pruner, Resize) else pruner)
        assert isinstance(method, Method)  # with AskAgain no batch goes across pictures
        given = [load_image(self.folder / item.image) for item in items]
        prompts = [question_prompt(engine.processor, item.question, 1, engine.model) for item in items]
        start = _now(engine.model)
        pictures = [engine.resized(picture) for picture in given]
        seconds, totals = _now(engine.model) - start, []
        if isinstance(pruner, Resize):
            sizes = [pruner.size(picture.size, engine.counts) for picture in pictures]
            totals = [engine.counts.patches(picture.size) for picture in pictures]
        watch = stopwatch(engine.model)
        with timing(watch):
            if totals:
                pictures = [resized_to(picture, size) for picture, size in zip(pictures, sizes, strict=True)]
            texts = generate(
                engine.model, engine.processor, prompts, [[picture] for picture in pictures], method, {"crops": crops},
                max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, logits_processor=[FirstToken(watch)],
            )  # fmt: skip
        watch.taken["rest"] += seconds * 1e3
        counted = count_kept(method)
        if totals:
            counted = [(kept, total) for (kept, _), total in zip(counted, totals, strict=True)]
        encoded = [kept for kept, _ in counted] if totals else _count_encoded(method.selections)
        told = zip(texts, counted, encoded, strict=True)
        return [(text, *counts, encoded) for text, counts, encoded in told], shared(watch, len(items))


def _held(pruner: Method | AskAgain | Cropped) -> tuple[Method | AskAgain, Crops | None]:
    return (pruner.method, pruner.crops) if isinstance(pruner, Cropped) else (pruner, None)


def _count_encoded(selections: Sequence[Selection]) -> list[int | None]:
    return [None if one.encoded is None else encoded_tokens(one) for one in selections]


def generate(
    model: Any,
    processor: Any,
    prompts: Sequence[str],
    pictures: Sequence[Sequence[Image]],
    pruner: Method,
    attaching: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[str]:
    """Answers prompts, each with its own pictures, as one batch under a pruner, through the model's own ``generate``.

    Args:
        model, processor: a stock transformers model of a known family, and its processor.
        prompts: as the processor's chat template renders them.
        pictures: those of each prompt; none at all, or every prompt has some.
        pruner: which tokens stay; its ``selections`` are those of this batch afterwards, one per picture.
        attaching: options of ``foveate.attach``.
        options: for the model's ``generate``.
    """
    inputs = processor(
        images=[list(own) for own in pictures] if any(pictures) else None,
        text=list(prompts),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=adds_special_tokens(processor, prompts[0]),
    ).to(model.device, model.dtype)
    with pruner(model, **(attaching or {})):
        sequences = model.generate(**inputs, return_dict_in_generate=False, **options)
    length = inputs["input_ids"].shape[1]
    return [text.strip() for text in processor.tokenizer.batch_decode(sequences[:, length:], skip_special_tokens=True)]


def count_kept(pruner: Method) -> list[tuple[int, int]]:
    """(tokens kept, tokens there were) of every picture of a pruner's last call; see ``Row``."""
    if isinstance(pruner, InsidePruner):
        layers = zip(pruner.tokens_per_layer, pruner.selections, strict=True)
        return [(round(sum(held) / len(held)), selection.total) for held, selection in layers]
    return [(len(selection), selection.total) for selection in pruner.selections]


def count_passes(asking: AskAgain, answers: Sequence[Answer]) -> list[tuple[int, int]]:
    """The same of questions that were asked again where unsure: what both passes kept together."""
    first = count_kept(asking.first)
    again = iter(count_kept(asking.then) if any(answer.asked_again for answer in answers) else [])
    return [
        (kept + next(again)[0], total) if answer.asked_again else (kept, total)
        for answer, (kept, total) in zip(answers, first, strict=True)
    ]


def stopwatch(model: Any) -> Stopwatch:
    """One that waits for the model's device."""
    return Stopwatch(lambda: _now(model) * 1e3)


def shared(watch: Stopwatch, questions: int) -> Spent:
    """What each of so many questions took that were one batch."""
    taken = {name: milliseconds / questions for name, milliseconds in watch.taken.items()}
    return Spent(sum(taken.values()), taken["encoder"], taken["selection"], taken["prefill"])


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def write_parquet(rows: Sequence[Row], items: Sequence[Item], metric: Metric, path: Path) -> Path:
    """Writes one line per answer: what was asked, what was answered, what it is worth, tokens and milliseconds.

    A budget stands in ``keep`` when it was a fraction and in ``keep_tokens`` when it was tokens per image;
    ``over_budget`` is as of ``Row``.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ModuleNotFoundError("Parquet needs pyarrow: pip install 'foveate[eval]'") from None
    known = {str(getattr(item, "id", place)): item for place, item in enumerate(items)}
    asked = [known[row.item] for row in rows]
    table = pa.table(
        {
            "item": [row.item for row in rows],
            "image": [item.image for item in asked],
            "question": [row.question for row in rows],
            "answers": pa.array([list(item.answers) for item in asked], pa.list_(pa.string())),
            "group": [getattr(item, "group", getattr(item, "kind", "")) for item in asked],
            "method": [row.method for row in rows],
            "keep": pa.array([row.keep if isinstance(row.keep, float) else None for row in rows], pa.float64()),
            "keep_tokens": pa.array([row.keep if isinstance(row.keep, int) else None for row in rows], pa.int64()),
            "answer": [row.answer for row in rows],
            "score": [metric.score(row.answer, item.answers) for row, item in zip(rows, asked, strict=True)],
            "kept": [row.kept for row in rows],
            "total": [row.total for row in rows],
            "encoded": [row.tokens_encoded for row in rows],
            "over_budget": [row.over_budget for row in rows],
            "latency_ms": [row.latency_ms for row in rows],
            **{
                name: pa.array([getattr(row, name) for row in rows], pa.float64())
                for name in ("encoder_ms", "selection_ms", "prefill_ms")
            },
        }
    )
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    os.replace(partial, path)
    return path


def open_folder(out: Path, settings: Mapping[str, Any], *, resume: bool = True) -> list[Row]:
    """Makes a results folder, or checks that one belongs to these settings, and reads the rows it holds.

    A last line that a kill cut short is taken off the file.

    Raises:
        ValueError: as for ``evaluate``.
    """
    answered = any(path.stat().st_size for path in out.glob(ROWS_FILES))
    if answered and not (out / SETTINGS_FILE).exists():
        raise ValueError(f"{out} holds {ROWS_FILE} without {SETTINGS_FILE}: choose another folder")
    claim(out, SETTINGS_FILE, settings)
    if answered and not resume:
        raise ValueError(f"{out} holds answers already: choose another folder, or resume")
    return _read_folder(out)


def claim(out: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Makes a results folder and records what it is for, or checks that it is for the same.

    Raises:
        ValueError: it is for something else, which is named; it is a file; or the record is damaged.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; results are written to a folder")
    out.mkdir(parents=True, exist_ok=True)
    record = out / name
    settings = json.loads(json.dumps(settings))  # as it will be read back
    if not record.exists():
        # Written aside and renamed, so that a kill leaves either no settings or whole ones.
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, record)
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise ValueError(f"{record} is damaged: choose another folder, or delete this one") from None
    changed = [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} then, {settings.get(key)!r} now" for key in changed)
        raise ValueError(f"{out} holds results of other settings ({listed}): choose another folder")


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


def _read_folder(out: Path) -> list[Row]:
    return [row for path in sorted(out.glob(ROWS_FILES)) for row in _read_rows(path)]


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
