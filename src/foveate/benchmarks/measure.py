"""How things are measured: interleaved repeats on one clock, the allocator's peak, FLOPs counted on the operators."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ClockName = Literal["wall", "process"]


class Clock:
    """Milliseconds of one kind.

    Args:
        name: ``"wall"``: elapsed time, the accelerator's queue emptied first. ``"process"``: processor time of this
            process, all its threads summed; what other programs take meanwhile does not count, so it is the one to
            use on a busy machine, with one thread and without an accelerator.
        device: where the measured work runs.

    Raises:
        ValueError: an unknown name, or processor time for work that an accelerator does.
    """

    def __init__(self, name: ClockName, device: torch.device) -> None:
        if name not in get_args(ClockName):
            raise ValueError(f"unknown clock {name!r}; known: {', '.join(get_args(ClockName))}")
        if name == "process" and device.type != "cpu":
            raise ValueError(f"clock 'process' counts the processor's time only, and the work is on {device}: use wall")
        self.name = name
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return (time.process_time() if self.name == "process" else time.perf_counter()) * 1e3


@dataclass(frozen=True)
class Task:
    """One of the things that are measured side by side.

    Args:
        run: what is timed.
        around: opened before every run and closed after it, outside the timing.
    """

    run: Callable[[], Any]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def interleaved(
    tasks: Mapping[str, Task],
    repeats: int,
    clock: Clock,
    warmups: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Times every task once per round, each round beginning with another one, so that drift treats all alike.

    Args:
        tasks: by name.
        repeats: rounds that count, >= 1.
        clock: what times them.
        warmups: rounds before them that do not.
        progress: called with the number of runs done and of those there are.

    Returns:
        By name, ms of every round that counts.

    Raises:
        ValueError: ``repeats`` < 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    names = list(tasks)
    times: dict[str, list[float]] = {name: [] for name in names}
    done = 0
    for number in range(-warmups, repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            task = tasks[name]
            with task.around():
                start = clock()
                task.run()
                taken = clock() - start
            if number >= 0:
                times[name].append(taken)
            done += 1
            if progress is not None:
                progress(done, len(names) * (repeats + warmups))
    return times


def paired(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the differences within rounds: what is common to a round drops out."""
    return statistics.median(a - b for a, b in zip(one, other, strict=True))


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors at their peak during a run, beyond what there was before it.

    On CUDA the caching allocator's own peak. On the CPU the sum over every allocation and release that torch's CPU
    allocator records (scratch space inside operators that goes through it included): other than the process' size, it
    does not depend on what the C library keeps for later.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # else what others have left would be freed during the run, and be taken off its peak
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def release(device: torch.device) -> None:
    """Gives back what the last model held, before the next one is made."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _silent() -> Iterator[None]:
    """Some builds of torch write a line to the error stream whenever a profiler starts or stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def count_flops(run: Callable[[], Any]) -> int:
    """Floating point operations of matrix products, convolutions and attention (a multiply-add is two).

    Attention goes through plain products meanwhile, since torch counts none for its fused CPU kernel; causal attention
    counts as if no half of it were masked, as torch does everywhere.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of, as far as it matters to them."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
