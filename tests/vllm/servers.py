"""``foveate serve`` in a child process, and what clients send it."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

MEMORY = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Has glibc give freed memory back to the system, tensors at once, so that what a server holds is what it uses."""
START = 300
"""Seconds that a server may take to start on two busy cores."""


class Server:
    """A server on a free port, until ``close``.

    Args:
        log: file for what it prints.
        options: of ``foveate serve``, the model first.
        space: GiB for the KV cache; None: what ``foveate serve`` chooses.
    """

    def __init__(self, log: Path, *options: str, space: int | None = 1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        environment = {
            **os.environ, **MEMORY, "VLLM_CPU_KVCACHE_SPACE": "" if space is None else str(space),
            "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "foveate", "serve", *options, "--port", str(self.port), "--host", "127.0.0.1"]
        self.process = subprocess.Popen(command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT)
        until = time.monotonic() + START
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > until:
                self.close()
                raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")
            time.sleep(0.5)

    def healthy(self) -> bool:
        """Whether it answers, its engine included."""
        try:
            return httpx.get(f"{self.url}/health", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def metrics(self) -> dict[str, float]:
        """Every metric of its page, summed over labels."""
        found: dict[str, float] = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.split("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def resident(self) -> dict[str, int]:
        """MiB of memory of their own that its processes hold, by their names: not what they map of files, whose share
        depends on who else maps it."""
        top = psutil.Process(self.process.pid)
        found: dict[str, int] = {}
        for number, one in enumerate([top, *top.children(recursive=True)]):
            status = Path(f"/proc/{one.pid}/status").read_text(encoding="utf-8").splitlines()
            kinds = dict(line.split(":", 1) for line in status)
            kib = sum(int(kinds[kind].split()[0]) for kind in ("RssAnon", "RssShmem"))
            found[f"{number} {kinds['Name'].strip()}"] = kib >> 10
        return found

    def close(self) -> None:
        """Stops it as Ctrl-C would, and its children."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def data_url(picture: Image.Image) -> str:
    """A picture as chat clients send it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def chat(
    urls: Sequence[str | None],
    question: str,
    asks: dict[str, Any] | None = None,
    *,
    uuid: str | None = None,
    tokens: int = 8,
    first: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """The body of a chat completion about pictures, greedy; ``first``: with the question before them."""
    content: list[dict[str, Any]] = []
    for url in urls:
        part: dict[str, Any] = {"type": "image_url", "image_url": None if url is None else {"url": url}}
        content.append(part if uuid is None else {**part, "uuid": uuid})
    content.insert(0 if first else len(content), {"type": "text", "text": question})
    body = {
        "model": "bundled", "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0,
        **more,
    }  # fmt: skip
    return body if asks is None else {**body, "mm_processor_kwargs": {"foveate": asks}}
