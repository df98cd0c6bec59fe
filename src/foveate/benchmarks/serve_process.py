"""A server of one's own, for as long as it is measured; and checkpoints of a shape that it can be started with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from foveate.benchmarks.shapes import SHAPES, TEXT, Shape
from foveate.benchmarks.shapes import shape_of as narrowed

STARTING = 900.0
"""Seconds that a server has to start in."""
STOPPING = 30.0
TOLD = 15
"""Lines of a server's log that an error quotes."""
SERVED = ("llava", "llava_next")
"""Model types whose processor can be made of the bundled one's parts."""


def shape_of(name: str) -> Shape:
    """A shape that can be served, by its name; see ``foveate.benchmarks.shapes.shape_of``."""
    return narrowed(
        name, [one for one, shape in SHAPES.items() if shape.model_type in SERVED and not shape.encoder_only]
    )


def write_checkpoint(
    shape: Shape, folder: Path, *, llm_layers: int | None = None, vision_layers: int | None = None
) -> Path:
    """Writes a folder that vLLM takes with ``--load-format dummy``: the shape's config, no weights, and the bundled
    model's tokenizer and chat template with a processor for the shape's pictures.

    Args:
        shape: of a LLaVA-1.5 or LLaVA-NeXT.
        folder: made if it is not there.
        llm_layers, vision_layers: fewer than the shape has.

    Returns:
        The folder.

    Raises:
        ValueError: layers that the shape does not have.
    """
    from transformers import AutoConfig

    from foveate import bundled

    layers, depth = llm_layers or shape.llm_layers, vision_layers or shape.vision_layers
    if layers > shape.llm_layers or not 2 <= depth <= shape.vision_layers:
        raise ValueError(
            f"{shape.source} has {shape.llm_layers} language model layers and {shape.vision_layers} encoder layers, of "
            f"which the last but one is read; asked for {layers} and {depth}"
        )
    source = bundled.path()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)
    small = json.loads((source / "config.json").read_text(encoding="utf-8"))
    image_token = small["image_token_index"]
    ends = {name: small["text_config"][name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**TEXT, **shape.text, **ends, "num_hidden_layers": layers}
    vision = {**shape.vision, shape.depth_name: depth}
    config = AutoConfig.for_model(shape.model_type, vision_config=vision, text_config=text, **shape.top)
    found = {
        **config.to_dict(),
        **dict.fromkeys(("image_token_index", "image_token_id"), image_token),
        "architectures": [
            {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}[
                shape.model_type
            ]
        ],
        "dtype": "float32",
    }
    _write(folder / "config.json", found)
    _write(folder / "generation_config.json", {"bos_token_id": ends["bos_token_id"]})
    side, patch = vision["image_size"], vision["patch_size"]
    processor = json.loads((source / "processor_config.json").read_text(encoding="utf-8"))
    processor["patch_size"] = patch
    images = processor["image_processor"]
    images |= {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    if shape.model_type == "llava_next":
        images["image_grid_pinpoints"] = found["image_grid_pinpoints"]
    else:
        del images["image_grid_pinpoints"], images["do_pad"]
        images["image_processor_type"] = "CLIPImageProcessor"
        processor["processor_class"] = "LlavaProcessor"
    _write(folder / "processor_config.json", processor)
    return folder


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        url: where it answers.
        pid: of its first process, the API server; the others descend from it.
    """

    url: str
    pid: int

    def processor_seconds(self) -> float:
        """Processor time that all of its processes have taken: on a busy machine without a GPU it says what a request
        costs, whatever other programs take meanwhile.

        Raises:
            ModuleNotFoundError: psutil, which vLLM needs, is not installed.
        """
        psutil: Any = import_module("psutil")
        first = psutil.Process(self.pid)
        total = 0.0
        for process in [first, *first.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


@contextmanager
def running(model: str, options: Sequence[str], log: Path) -> Iterator[Server]:
    """Runs ``foveate serve`` on a free port of this machine, and stops it at the end.

    Args:
        model: a folder, a hub id, or "bundled".
        options: of ``foveate serve`` and of vLLM.
        log: file that takes what the server says.

    Yields:
        It, when it is ready.

    Raises:
        ChildProcessError: it ended, or did not become ready in time; the message quotes the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "foveate", "serve", model, *options, "--host", "127.0.0.1", "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        # A session of its own: its workers end with it, and an interrupt from the terminal comes here alone.
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        with _ended_by_term():
            _wait(process, url, log)
            yield Server(url, process.pid)
    finally:
        _stop(process)


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """Lets SIGTERM end this process by an exception, so that the server is stopped first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    from foveate.benchmarks.serve import http

    library = http()
    until = time.monotonic() + STARTING
    with library.Client(base_url=url, timeout=5.0, trust_env=False) as client:
        while time.monotonic() < until:
            if process.poll() is not None:
                raise ChildProcessError(f"foveate serve ended with status {process.returncode}:\n{_tail(log)}")
            try:
                if client.get("/health").status_code == 200:
                    return
            except library.HTTPError:
                pass  # nobody listens yet
            time.sleep(0.5)
    raise ChildProcessError(f"foveate serve was not ready after {STARTING:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TOLD:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOPPING)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever of its workers is left
    process.wait()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="foveate-bench-") as folder:
        yield Path(folder)
