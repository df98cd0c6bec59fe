"""``foveate bench``: what pruning costs and saves against stock and the bound, or what reading saliency costs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import rich.table
import typer

from foveate.cli.console import (
    load_model,
    note,
    parse_keeps,
    print_json,
    progress_bar,
    split_list,
    stdout,
    warn_when_busy,
    working,
)
from foveate.cli.evaluate import parse_methods
from foveate.cli.tables import print_table
from foveate.crops import Crops
from foveate.resizing import NAME

MISSED = 1
QUESTION = "What color is the card of the cat?"
"""For models that have a processor; what is asked costs nothing but its length."""


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed; None where the default depends on others."""

    tap: bool
    selection: bool
    quick: bool
    check: bool
    model: str | None
    shape: str | None
    methods: str
    keep: str | None
    batch_size: int
    image: str | None
    llm_layers: int | None
    vision_layers: int | None
    device: str
    dtype: str
    attention: str
    clock: str
    repeats: int | None
    max_new_tokens: int
    with_baseline: bool
    accuracy: Path | None
    out: Path
    as_json: bool
    crops: str | None = None


def run(request: Request) -> None:
    """Measures, prints and writes JSON, Markdown and plot; with ``check``, a missed target ends with status 1.

    Raises:
        ValueError: bad input.
    """
    with working("importing torch and transformers"):
        import torch
        from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if request.device == "auto":
        request = replace(request, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(request.device)
    except RuntimeError:
        raise ValueError(f"unknown device {request.device!r}: give cpu, cuda or cuda:1") from None
    if request.crops is not None and (request.tap or request.selection):
        raise ValueError("--crops says what is encoded on the way to the first token: not with --tap or --selection")
    if request.selection:
        from foveate.cli import bench_selection

        bench_selection.run(request)
        return
    (_run_tap if request.tap else _run_prefill)(request)


def _run_tap(request: Request) -> None:
    import torch

    from foveate.benchmarks import report, tap
    from foveate.benchmarks.measure import machine, release

    if request.accuracy is not None:
        raise ValueError(
            "--accuracy goes beside times to the first token, and --tap measures encoders alone: leave it out"
        )
    if request.model is not None:
        raise ValueError("--tap measures the encoders of shapes: name them with --shape, or leave both out for all")
    names = list(tap.ENCODERS) if request.shape is None else split_list(request.shape)
    for name in names:
        _shape(name)
    device = torch.device(request.device)
    facts = {
        **machine(device), "clock": request.clock, "dtype": str(the_dtype(request)).removeprefix("torch."),
        "attention": request.attention, "repeats": request.repeats or 3,
    }  # fmt: skip
    title, file = "Cost of reading saliency", "tap-quick" if request.quick else "tap"
    costs: list[tap.TapCost] = []
    for name in names:
        with progress_bar(name) as progress:
            costs.append(
                tap.measure(
                    name, quick=request.quick, repeats=request.repeats or 3, clock=request.clock,
                    dtype=the_dtype(request), device=device, attention=request.attention,
                    picture=parse_picture(request), progress=progress,
                )
            )  # fmt: skip
        release(device)
        # All of them take long on a CPU: what is done is on record at once.
        found = {**facts, "encoders": [cost.as_dict() for cost in costs]}
        table = report.tap_table(costs)
        files = report.save(request.out, file, found, report.markdown(title, facts, [table], command_line()))
    show(request, found, [(title, table)], files)
    if any(cost.extrapolated for cost in costs):
        note("whole encoders are scaled up from the layers that were run; without --quick, all are run")
    check(request, [f"{c.shape}: {max(c.ratio, c.tap_ratio):.3f} > {c.bound:g}" for c in costs if not c.holds])


def _run_prefill(request: Request) -> None:
    import torch

    from foveate.benchmarks import accuracy, prefill, report
    from foveate.benchmarks.measure import machine

    if request.model is not None and request.shape is not None:
        raise ValueError("--model and --shape are two ways to say what is measured: give one")
    methods = parse_methods(request.methods, resizing=True)
    resizes = NAME in methods
    methods = [name for name in methods if name != NAME]
    typed = request.keep or ("1.0,0.25,0.1" if request.quick else "1.0,0.5,0.25,0.1,0.05")
    keeps = parse_keeps(typed)
    crops = [one for text in split_list(request.crops or "all") if (one := Crops.of(text)) is not None]
    model, inputs, facts, smaller = _subject(request)
    accuracies = None if request.accuracy is None else accuracy.read(request.accuracy, model)
    repeats = request.repeats or (7 if request.quick else 15)
    with progress_bar("measuring") as progress:
        measured = prefill.measure(
            model, inputs, methods=methods, keeps=keeps, new_tokens=request.max_new_tokens, repeats=repeats,
            clock=request.clock, with_baseline=request.with_baseline, crops=crops, progress=progress,
            smaller=smaller if resizes else None,
        )  # fmt: skip
    facts |= {**machine(torch.device(request.device)), "clock": request.clock, "repeats": repeats}
    found = {**facts, **measured.as_dict()}
    if accuracies is not None:
        found["accuracy"] = accuracies.as_dict(measured)
    tables = [
        ("", report.results_table(measured, accuracies)),
        ("", report.stages_table(measured)),
        ("", report.targets_table(measured)),
    ]
    title = f"{facts['subject']}, first token and memory"
    page = report.markdown(title, facts, [table for _, table in tables], command_line())
    name = re.sub(r"[^a-z0-9.-]+", "-", Path(str(facts["subject"])).name.lower())
    files = report.save(request.out, name, found, page, measured, title, accuracies)
    show(request, found, tables, files)
    missed = [f"{one.name}: {one.value:.3f}" for one in measured.targets() if not one.holds]
    check(request, missed)


def _subject(request: Request) -> tuple[Any, dict[str, Any], dict[str, Any], Callable[[float | int], Any]]:
    """The model, its inputs, what they are, and the inputs of smaller pictures by their budget."""
    from foveate.models import family_for
    from foveate.resizing import Counts, Resize

    facts: dict[str, Any]
    make: Callable[[tuple[int, int]], dict[str, Any]]
    if request.shape is not None and request.shape != "bundled":
        shape = _shape(request.shape)
        if shape.encoder_only:
            raise ValueError(f"the shape {request.shape} is of an encoder alone: measure it with --tap")
        with working(f"making {request.shape}"):
            model = shape.build(
                llm_layers=request.llm_layers, vision_layers=request.vision_layers, dtype=the_dtype(request),
                device=request.device, attention=request.attention,
            )  # fmt: skip
        make = partial(shape.inputs, model, request.batch_size)
        height, width = parse_picture(request) or shape.picture
        facts = {
            "subject": request.shape,
            "shape_of": shape.source,
            "llm_layers": f"{request.llm_layers or shape.llm_layers} of {shape.llm_layers}",
            "vision_layers": f"{request.vision_layers or shape.vision_layers} of {shape.vision_layers}",
        }
    else:
        if request.llm_layers is not None or request.vision_layers is not None:
            raise ValueError("--llm-layers and --vision-layers cut shapes; a checkpoint is measured whole")
        from foveate.inputs import process, question_prompt
        from foveate.pixels import resized_to

        source = None if request.shape == "bundled" else request.model
        warn_when_busy()
        model, processor = load_model(source, request.dtype)
        model = model.to(request.device)
        model.set_attn_implementation(request.attention)
        height, width = parse_picture(request) or (224, 224)
        prompts = [question_prompt(processor, QUESTION, 1, model)] * request.batch_size
        picture = _noise(height, width)

        def make(size: tuple[int, int]) -> dict[str, Any]:
            return process(processor, model, prompts, [resized_to(picture, size[::-1])])

        facts = {"subject": request.model or "bundled"}
    family = family_for(model)

    def visual_in(made: dict[str, Any]) -> int:
        return int((made["input_ids"][0] == family.image_token_id).sum())

    # Sizes of pictures are (width, height) with Pillow, (height, width) here.
    counts = Counts(lambda size: visual_in(make(size[::-1])), lambda size: family.newlines(size[::-1]))

    def smaller(keep: float | int) -> dict[str, Any]:
        return make(Resize(keep).size((width, height), counts)[::-1])

    inputs = make((height, width))
    facts |= {
        "dtype": str(model.dtype).removeprefix("torch."), "attention": request.attention,
        "batch": request.batch_size, "picture": f"{height}x{width}",
        "prompt": f"{inputs['input_ids'].shape[1]} tokens, {visual_in(inputs)} visual",
    }  # fmt: skip
    return model, inputs, facts, smaller


def _noise(height: int, width: int) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _shape(name: str) -> Any:
    from foveate.benchmarks.shapes import shape_of

    return shape_of(name)


def the_dtype(request: Request) -> Any:
    import torch

    from foveate.loading import DTYPES

    if request.dtype not in DTYPES:
        raise ValueError(f"unknown dtype {request.dtype!r}; known: {', '.join(DTYPES)}")
    if request.dtype == "auto":
        return torch.float32 if torch.device(request.device).type == "cpu" else torch.bfloat16
    return getattr(torch, request.dtype)


def parse_picture(request: Request) -> tuple[int, int] | None:
    """``--image`` as (height, width); None where it was not given. Raises ValueError for anything else."""
    if request.image is None:
        return None
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", request.image)
    if sides is None:
        raise ValueError(f"--image {request.image!r}: give height and width in pixels, such as 672x672")
    return int(sides[1]), int(sides[2])


def command_line() -> str:
    """What was typed, without where the figures go."""
    words = ["foveate", *sys.argv[1:]]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return shlex.join(words)


def show(request: Request, found: dict[str, Any], tables: list[Any], files: list[Path]) -> None:
    """Prints what was found, as tables or as JSON, and where it is written."""
    if request.as_json:
        print_json({**found, "files": [str(file) for file in files]})
        return
    for title, (heads, rows) in tables:
        table = rich.table.Table(title=title or None, title_justify="left", box=None, pad_edge=False)
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left", header_style="bold")
        for row in rows:
            table.add_row(*row)
        print_table(stdout(), table, labels=2 if "keep" in heads[1:2] else 1)
        stdout().print()
    note(f"written: {', '.join(str(file) for file in files)}")


def check(request: Request, missed: list[str]) -> None:
    """Tells the targets that were missed; with ``--check`` they end the command with status 1."""
    for line in missed:
        note(f"warning: target missed: {line}")
    if request.check and missed:
        raise typer.Exit(MISSED)
