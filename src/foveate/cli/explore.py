"""``foveate app``: the explorer, in the browser of this machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from foveate.cli.console import load_model, note, stdout, working
from foveate.crops import Crops
from foveate.pixels import Pixels

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


def run(request: Request) -> None:
    """Serves the page until it is stopped.

    Raises:
        ValueError: options that are wrong, or a model that cannot be loaded.
        OSError: the port is taken.
        ModuleNotFoundError: Gradio is not installed.
    """
    Crops.of(request.crops)
    pixels = None if request.pixels is None else Pixels.parse(request.pixels).value
    # Before Gradio is imported: it asks its makers nothing and tells them nothing.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with working("importing gradio"):
        from foveate.app.engine import Explorer
        from foveate.app.page import launch
    model, processor = load_model(request.model, request.dtype)
    explorer = Explorer(
        model,
        processor,
        name=request.model or "bundled",
        crops=request.crops,
        pixels=pixels,
        max_new_tokens=request.max_new_tokens,
        dtype=request.dtype,
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
