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

START = 300
"""Seconds that a server may take to start on two busy cores."""


class Server:
    """A server on a free port, until ``close``.

    Args:
        log: file for what it prints.
        options: of ``foveate serve``, the model first.
    """

    def __init__(self, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
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

    def resident(self) -> int:
        """Bytes of memory that its processes hold, counted by how many share a page."""
        top = psutil.Process(self.process.pid)
        return sum(one.memory_full_info().pss for one in [top, *top.children(recursive=True)])

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
    **more: Any,
) -> dict[str, Any]:
    """The body of a chat completion about pictures, greedy."""
    content: list[dict[str, Any]] = []
    for url in urls:
        part: dict[str, Any] = {"type": "image_url", "image_url": None if url is None else {"url": url}}
        content.append(part if uuid is None else {**part, "uuid": uuid})
    content.append({"type": "text", "text": question})
    body = {
        "model": "bundled", "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0,
        **more,
    }  # fmt: skip
    return body if asks is None else {**body, "mm_processor_kwargs": {"foveate": asks}}
