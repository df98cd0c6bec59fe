"""``foveate bench --serve``: what a server does under load, budget by budget."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.cli.bench import Request, check, command_line, parse_picture, show
from foveate.cli.console import parse_keeps, progress_bar, split_list, working
from foveate.cli.evaluate import parse_methods
from foveate.crops import Crops

QUICK_LOAD, LOAD = "8", "1,4,8,16,32"
KEEPS = "1.0,0.25,0.1,0.05"
SHARED = 4
"""Pictures that the server has seen take turns in so many."""


@dataclass(frozen=True)
class Serving:
    """The options of ``--serve``, as typed; None where the default depends on others."""

    url: str | None
    concurrency: str | None
    rate: str | None
    requests: int | None
    vllm_options: Sequence[str]
    crops: str | None = None


def run(serving: Serving, request: Request) -> None:
    """Measures a running server, or one that is started for it, prints and writes JSON, Markdown and plot.

    Raises:
        ValueError: bad input.
        OSError: no such server, or none that could be started; the message says why.
    """
    from foveate.benchmarks import report, serve, serve_figures
    from foveate.benchmarks.serve_process import running, scratch

    _require_honoured(request, serving)
    arms = _arms(request, serving)
    rounds = request.repeats or (3 if request.quick else 5)
    requests = serving.requests or (16 if request.quick else 32)
    size = parse_picture(request) or (224, 224)

    def measure(url: str, spent: Callable[[], float] | None = None) -> list[Any]:
        async def measuring(progress: Callable[[int, int], None]) -> list[Any]:
            async with serve.connect(url) as client:
                return await serve.measure(
                    client, arms, size, rounds=rounds, requests=requests, tokens=request.max_new_tokens,
                    spent=spent, progress=progress,
                )  # fmt: skip

        with progress_bar("sending requests") as progress:
            return asyncio.run(measuring(progress))

    facts: dict[str, Any]
    if serving.url is not None:
        facts, blocks = {"subject": "a running server"}, measure(serving.url)
    else:
        with scratch() as folder, ExitStack() as stack:
            model, options, facts = _started(request, serving, folder)
            with working(f"starting foveate serve {Path(model).name}"):
                server = stack.enter_context(running(model, options, folder / "server.log"))
            facts |= _machine()
            blocks = measure(server.url, server.processor_seconds if facts["device"] == "cpu" else None)
    facts |= {
        "rounds": rounds, "answers": f"{request.max_new_tokens} tokens", "picture": f"{size[0]}x{size[1]}",
        "repeated_pictures": SHARED,
    }  # fmt: skip
    found = serve_figures.summarise(blocks)
    told = {**facts, **found.as_dict()}
    title = f"{facts['subject']}, served"
    tables = [("", serve_figures.table(found)), ("", serve_figures.targets_table(found))]
    errors = serve_figures.errors_table(found)
    tables += [("", errors)] if errors[1] else []
    page = report.markdown(title, facts, [one for _, one in tables], command_line())
    subject = request.shape or Path(str(facts["subject"])).name
    name = "serve-" + re.sub(r"[^a-z0-9.-]+", "-", subject.lower())
    files = report.save(request.out, name, told, page)
    try:
        figure = serve_figures.plot(found, title)
    except ModuleNotFoundError:  # the plot is an extra; the figures are in the JSON
        pass
    else:
        files.append(request.out / f"{name}.png")
        figure.savefig(files[-1], dpi=150)
    show(request, told, tables, files)
    check(request, [f"{one.name}: {one.value:.3g}" for one in found.targets() if not one.holds])


def _require_honoured(request: Request, serving: Serving) -> None:
    """Raises ValueError for options that say nothing about a server, or contradict each other."""
    if request.tap:
        raise ValueError("--tap and --serve measure different things: give one")
    if request.accuracy is not None:
        raise ValueError("--accuracy goes beside times to the first token in this process, not beside --serve")
    if request.model is not None and request.shape is not None:
        raise ValueError("--model and --shape are two ways to say what is measured: give one")
    if serving.url is not None and (
        request.model or request.shape or serving.vllm_options or request.llm_layers or request.vision_layers
    ):
        raise ValueError("--url measures the server that runs there: leave --model, --shape and its options out")
    if request.shape in (None, "bundled") and (request.llm_layers or request.vision_layers):
        raise ValueError("--llm-layers and --vision-layers cut shapes; a checkpoint is served whole")
    if request.batch_size != 1 or request.clock != "wall" or request.attention != "sdpa" or request.device != "auto":
        raise ValueError(
            "--batch-size, --clock, --attention and --device are for models in this process: under --serve say how "
            "many requests come with --concurrency or --rate, and give the server vLLM's own options after --"
        )


def _arms(request: Request, serving: Serving) -> list[Any]:
    from foveate.benchmarks.serve import Arm, Load

    loads = [Load("open", _number(rate, "--rate")) for rate in split_list(serving.rate)] if serving.rate else []
    typed = serving.concurrency or ("" if loads else QUICK_LOAD if request.quick else LOAD)
    loads = [Load("closed", _number(one, "--concurrency")) for one in split_list(typed)] + loads if typed else loads
    methods = parse_methods(request.methods)
    keeps = parse_keeps(request.keep or KEEPS)
    crops = [Crops.of(one) for one in split_list(serving.crops or "all")]
    # All tokens: once, and of all crops.
    ways = [(methods[0], keep, "") for keep in keeps if keep == 1 and isinstance(keep, float)]
    ways += [
        (method, keep, str(some or ""))
        for method in methods
        for keep in keeps
        for some in crops
        if not (keep == 1 and isinstance(keep, float))
    ]
    return [Arm(load, shared, *way) for load in loads for shared in (0, SHARED) for way in ways]


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} {text!r} is no number") from None


def _started(request: Request, serving: Serving, folder: Path) -> tuple[str, list[str], dict[str, Any]]:
    """The model, the options of ``foveate serve``, and what they are."""
    import torch

    from foveate.benchmarks.serve_process import shape_of, write_checkpoint
    from foveate.serving.server import require_vllm

    require_vllm()
    methods = parse_methods(request.methods)
    options = ["--method", methods[0], "--max-keep", "1.0"]
    options += ["--methods", ",".join(methods[1:])] if methods[1:] else []
    facts: dict[str, Any]
    if request.shape is not None and request.shape != "bundled":
        shape = shape_of(request.shape)
        layers = {"llm_layers": request.llm_layers, "vision_layers": request.vision_layers}
        model = str(write_checkpoint(shape, folder / "checkpoint", **layers))
        # Left to itself, vLLM takes half precision for random weights, for which few processors are made.
        dtype = request.dtype
        if dtype == "auto":
            dtype = "bfloat16" if torch.cuda.is_available() else "float32"
        options += ["--load-format", "dummy", "--dtype", dtype]
        facts = {
            "subject": request.shape,
            "shape_of": shape.source,
            "llm_layers": f"{request.llm_layers or shape.llm_layers} of {shape.llm_layers}",
            "vision_layers": f"{request.vision_layers or shape.vision_layers} of {shape.vision_layers}",
            "dtype": dtype,
        }
    else:
        model = request.model or "bundled"
        facts = {"subject": model}
        if request.dtype != "auto":
            options += ["--dtype", request.dtype]
    return model, [*options, *serving.vllm_options], facts


def _machine() -> dict[str, Any]:
    """What the figures of a server of this machine are of, as far as it matters to them."""
    import torch

    from foveate.benchmarks.measure import machine

    found = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    del found["threads"]  # of this process, not of the server
    return found
