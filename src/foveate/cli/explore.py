"""``foveate app``: the explorer, in the browser of this machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.cli.console import load_model, note, stdout, working
from foveate.cli.settling import ATTACHING, check_fits, check_source, refuse_set, settled
from foveate.config import Config
from foveate.keep import keep_label

if TYPE_CHECKING:
    from foveate.app.engine import Side

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Request:
    """The command's arguments, as typed."""

    model: str | None
    host: str
    port: int | None
    share: bool
    max_new_tokens: int
    dtype: str
    pixels: str | None = None
    crops: str | None = None
    config: str | None = None


def run(request: Request) -> None:
    """Serves the page until it is stopped.

    Raises:
        ValueError, TypeError, FileNotFoundError: options, or a configuration, that are wrong or have no place on the
            page; a model that cannot be loaded.
        OSError: the port is taken.
        ModuleNotFoundError: Gradio is not installed.
    """
    config = settled(request.config, crops=request.crops, pixels=request.pixels)
    refuse_set(config, request.config, ATTACHING, "has no place in the explorer")
    right = side_of(config)
    check_source(request.model, request.dtype)
    check_fits(request.model, config)
    # Before Gradio is imported: it asks its makers nothing and tells them nothing.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with working("importing gradio"):
        from foveate.app.engine import START, Explorer
        from foveate.app.page import launch
    model, processor = load_model(request.model, request.dtype)
    explorer = Explorer(
        model,
        processor,
        name=request.model or "bundled",
        crops=None if config.crops is None else str(config.crops),
        pixels=config.pixels,
        max_new_tokens=request.max_new_tokens,
        dtype=request.dtype,
        start=(START[0], right),
    )
    with working("warming up"):
        explorer.warm()
    if request.host not in LOOPBACK:
        note(f"warning: listening on {request.host}: whoever reaches this machine can use the model")
    if request.share:
        note("warning: --share opens a tunnel: whoever has the address below can use the model, from anywhere")
    blocks, address = launch(explorer, host=request.host, port=request.port, share=request.share)
    stdout().print(f"Foveate is at {blocks.share_url or address}  (Ctrl+C stops it)", markup=False, soft_wrap=True)
    try:
        while True:
            time.sleep(1)
    finally:
        blocks.close()


def side_of(config: Config) -> Side:
    """The side of the page that answers as a configuration says.

    Raises:
        ValueError: a budget that its slider does not have, or options that cannot stand behind the method's name.
    """
    from foveate.app.engine import STEPS, Side

    keep = config.pruner.keep  # of one that chooses its own number, the most
    if isinstance(keep, int):
        raise ValueError(
            f"keep {keep_label(keep)}: a side of the explorer keeps a part of each picture's tokens: give one, such as "
            "10%"
        )
    side = Side(config.name, round(100 * keep, 6))
    if side.percent < side.step or round(side.percent / side.step, 6) % 1:
        raise ValueError(
            f"keep {keep_label(keep)}: the slider of the explorer has steps of {STEPS[-1]} % at the finest"
        )
    return side
