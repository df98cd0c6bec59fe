"""``foveate bench --selection``: what choosing costs, method by method."""

from __future__ import annotations

import math
from typing import Any

from foveate.cli.bench import Request, check, command_line, show, the_dtype
from foveate.cli.console import note, parse_keep, progress_bar, split_list
from foveate.cli.evaluate import parse_methods

DEFAULT_KEEP = "0.1"


def run(request: Request) -> None:
    """Measures, prints and writes JSON and Markdown; with ``check``, a missed target ends with status 1.

    Raises:
        ValueError: bad input; a method that prunes inside the LLM.
    """
    import torch

    from foveate.benchmarks import report, selection
    from foveate.benchmarks.measure import machine
    from foveate.pruners import Pruner, get_pruner

    if request.model is not None or request.shape is not None or request.accuracy is not None:
        raise ValueError("--selection measures methods on drawn tokens: leave --model, --shape and --accuracy out")
    keeps = split_list(request.keep or DEFAULT_KEEP)
    if len(keeps) > 1:
        raise ValueError("--selection measures one budget at a time")
    keep = parse_keep(keeps[0])
    methods: dict[str, Pruner] = {}
    for name in parse_methods(request.methods):
        pruner = get_pruner(name, keep=keep)
        if not isinstance(pruner, Pruner):
            raise ValueError(f"{name} prunes inside the LLM, and chooses nothing before it: leave it out")
        methods[name] = pruner
    device = torch.device(request.device)
    repeats = request.repeats or (3 if request.quick else 5)
    with progress_bar("choosing") as progress:
        costs = selection.measure(
            methods, repeats=repeats, clock=request.clock, dtype=the_dtype(request), device=device,  # type: ignore[arg-type]
            progress=progress,
        )  # fmt: skip
    facts: dict[str, Any] = {
        **machine(device), "clock": request.clock, "dtype": str(the_dtype(request)).removeprefix("torch."),
        "tokens": selection.VIEWS * selection.SIDE**2, "width": selection.WIDTH, "words": selection.WORDS,
        "keep": keep, "repeats": repeats,
    }  # fmt: skip
    title, heads = "Time of the choice", selection.table(costs)
    found = {**facts, "methods": [_plain(cost.as_dict()) for cost in costs]}
    files = report.save(request.out, "selection", found, report.markdown(title, facts, [heads], command_line()))
    show(request, found, [(title, heads)], files)
    if selection.REFERENCE not in methods:
        note(f"no target: {selection.REFERENCE} is not among the methods, beside which times are judged")
    check(request, [cost.missed for cost in costs if cost.missed is not None])


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
