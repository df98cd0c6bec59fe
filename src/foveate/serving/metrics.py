"""What a server counts: kept and dropped tokens in the API server, encoded pictures in the workers.

The API server's ``/metrics`` page shows all of it. Workers are other processes: they write their counters into small
files of a folder on the same machine, or log them where there is none.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.serving.policy import Policy

WORKER = {
    "feature_cache_hits": "Pictures, and pieces of videos, whose features were still there from an earlier question.",
    "feature_cache_misses": "Pictures, and pieces of videos, that the vision tower encoded.",
    "feature_cache_bytes": "Bytes of the feature cache in use.",
    "encode_seconds": "Seconds in the vision tower and projector.",
    "select_seconds": "Seconds in choosing tokens.",
    "views_encoded": "Base views and crops that the vision tower encoded for requests that choose among crops.",
    "views_cached": "Base views and crops that such requests found encoded already.",
    "language_seconds": "Seconds in the language model; 0 where CUDA graphs hide some of its steps.",
}
"""Counters of a worker, in the order of its file, and what they say; only the bytes can fall."""
GAUGES = ("feature_cache_bytes",)
INTERVAL = 60.0
"""Seconds between two log lines of a worker that shares no file."""

logger = logging.getLogger("vllm.foveate")


class Counters:
    """A worker's counters.

    Args:
        file: where they are shared with the API server; None: they are logged.
        device: on an accelerator durations come from events, which nobody waits for.
    """

    def __init__(self, file: Path | None, device: torch.device) -> None:
        shape = (len(WORKER),)
        self.values: Any = np.zeros(shape)
        if file is not None:
            self.values = np.memmap(file, np.float64, "w+", shape=shape)
        self._logs = file is None
        self._logged = time.monotonic()
        self._device = device
        self._pending: deque[tuple[int, Any, Any]] = deque()

    @classmethod
    def of_worker(cls, policy: Policy, device: torch.device, rank: int) -> Counters:
        """Those of this process; only the first rank shares or logs them, since all do the same."""
        if rank != 0 or policy.stats is None or not os.path.isdir(policy.stats):
            counters = cls(None, device)
            counters._logs = rank == 0
            return counters
        return cls(Path(policy.stats) / f"worker-{os.getpid()}.f64", device)

    def count_pictures(self, hits: int, misses: int, used: int) -> None:
        """Counts pictures that the feature cache had, those that it had not, and notes its bytes in use."""
        self.values[0] += hits
        self.values[1] += misses
        self.values[2] = used
        if self._logs and time.monotonic() - self._logged > INTERVAL:
            self._logged = time.monotonic()
            told = ", ".join(f"{name} {value:.6g}" for name, value in zip(WORKER, self.values.tolist(), strict=True))
            logger.info("foveate: %s", told)

    def count(self, name: str, more: int) -> None:
        """Adds to one of the counters."""
        self.values[list(WORKER).index(name)] += more

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds what the block takes to one of the durations."""
        place = list(WORKER).index(name)
        if self._device.type == "cpu":
            began = time.perf_counter()
            yield
            self.values[place] += time.perf_counter() - began
            return
        began_at, ended_at = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        began_at.record()
        yield
        ended_at.record()
        self._pending.append((place, began_at, ended_at))
        while self._pending and self._pending[0][2].query():
            where, first, last = self._pending.popleft()
            self.values[where] += first.elapsed_time(last) / 1e3

    def times(self, module: torch.nn.Module, name: str) -> None:
        """Adds what every call of a module takes to one of the durations."""
        running: list[AbstractContextManager[None]] = []

        def begin(*_: Any) -> None:
            running[:] = [self.timed(name)]  # what an earlier call that failed has left is dropped
            running[0].__enter__()

        def end(*_: Any) -> None:
            running.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)


class Metrics:
    """The API server's counters, as Prometheus metrics of the process.

    Args:
        stats: folder of the workers' files, or None.
    """

    def __init__(self, stats: str | None) -> None:
        from prometheus_client import REGISTRY, Counter

        self.items = {
            "image": Counter("foveate_images", "Images of requests."),
            "video": Counter("foveate_videos", "Videos of requests."),
        }
        self.kept = Counter("foveate_visual_tokens_kept", "Visual tokens that reached the language model.")
        self.dropped = Counter("foveate_visual_tokens_dropped", "Visual tokens that were dropped before it.")
        if stats is not None:
            REGISTRY.register(_Workers(Path(stats)))  # type: ignore[arg-type]

    @classmethod
    def of_process(cls, policy: Policy) -> Metrics:
        """The one there is; vLLM may make several processors in a process."""
        return _metrics(policy.stats)

    def count(self, images: Sequence[tuple[int, int]], kind: str = "image") -> None:
        """Counts images or videos, each by its visual tokens before and after pruning."""
        self.items[kind].inc(len(images))
        self.kept.inc(sum(kept for _, kept in images))
        self.dropped.inc(sum(total - kept for total, kept in images))


@functools.cache
def _metrics(stats: str | None) -> Metrics:
    return Metrics(stats)


class _Workers:
    """Reads the workers' files when Prometheus asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        total = np.zeros(len(WORKER))
        for file in sorted(self.folder.glob("worker-*.f64")):
            values = np.fromfile(file, np.float64)
            if len(values) == len(total):
                total += values
        for (name, text), value in zip(WORKER.items(), total.tolist(), strict=True):
            family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            yield family(f"foveate_{name}", text, value=value)
