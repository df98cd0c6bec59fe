"""One step of a greedy choice, many times over.

The steps of a greedy method are a few small tensor operations each, which an accelerator does faster than they can be
launched. On a CUDA device some of them are recorded once and replayed from then on, each time in one launch.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_FEWEST = 24  # steps worth a recording, which takes a few milliseconds
_FIRST = 2  # steps at least that are done before it: libraries start up in them, which cannot be recorded
_TOGETHER = 8  # steps that are replayed in one launch
_AHEAD = 1 << 26  # cells of a table that is held on an accelerator (256 MiB)
_BLOCK = 1 << 22  # cells of it that are made at a time


class _Recording(Protocol):
    def replay(self) -> None: ...


_lock = threading.Lock()  # of what follows
_side: dict[torch.device, torch.cuda.Stream] = {}
"""By device: where steps are recorded, as that cannot be done on the stream that is mostly used."""
_latest: dict[tuple[torch.device, int], torch.cuda.CUDAGraph] = {}
"""By device and stream: the recording last made, never replayed again. The next one takes over its memory; were it
dropped before, torch would keep that memory and take new one for each recording."""
_failed = False  # once, and no recording is made any more


def may_look(tensor: Tensor) -> bool:
    """Whether nobody waits when its values are read."""
    return tensor.device.type == "cpu"


def is_tabled(unit: Tensor) -> bool:
    """Whether :func:`rows_of` makes a table of (N, D) tokens: on an accelerator, up to N = 8192."""
    return not may_look(unit) and len(unit) ** 2 <= _AHEAD


def rows_of(
    unit: Tensor, made: Callable[[Tensor, Tensor], Tensor], cosines: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """What a step asks of one token and all tokens, made of their cosines.

    A CPU makes a row when it is asked for. An accelerator, which reads a row in a fraction of the time of making one,
    makes all at once where they are a table of a size to hold (:func:`is_tabled`).

    Args:
        unit: (N, D) unit vectors.
        made: takes (n,) int64 tokens and their (n, N) cosines to all tokens, which it may write into; returns (n, N).
        cosines: (N, N) where they are there already; they may be written into.

    Returns:
        a function of one token, (1,) int64, that returns (N,), not to be written into.
    """
    if not is_tabled(unit):
        return lambda token: made(token, (unit @ unit.index_select(0, token)[0]).unsqueeze(0))[0]
    here = torch.arange(len(unit), device=unit.device)
    if cosines is None:
        height = max(1, _BLOCK // len(unit))
        blocks = zip(torch.split(here, height), torch.split(unit, height), strict=True)
        table = torch.cat([made(some, vectors @ unit.T) for some, vectors in blocks])
    else:
        table = made(here, cosines)
    return lambda token: table.index_select(0, token)[0]


def repeat(step: Callable[..., bool | None], times: int, *records: Tensor) -> int:
    """Calls ``step`` with the first row of every record, then with the second, and so on: ``times`` times.

    Nothing but tensors may change from step to step. They are changed in place, and a step writes what it has found
    into the rows it is given. Gradients are not recorded. On a CUDA device with enough steps the first ones are done as
    anywhere, then some are recorded as a CUDA graph, which is replayed for the rest. Then a step must not wait for the
    device, and must not make tensors of the host's values. Where nothing can be recorded, within another recording,
    under ``torch.compile``, or after an attempt failed (a warning says so, once), all steps are done as anywhere.

    Args:
        step: takes a (1, ...) view for each record. Where values may be looked at, True says that it has done nothing,
            and that there is no more to be done.
        times: how many steps at most.
        records: at least one, (``times``, ...) each, on the device of all tensors.

    Returns:
        How many steps were done; on an accelerator all.
    """
    device, done = records[0].device, 0

    def run(start: int, end: int, into: tuple[Tensor, ...]) -> int:
        for number in range(start, end):
            if step(*(record[number : number + 1] for record in into)):
                return number
        return end

    with torch.no_grad():
        if _records(device, times):
            first = _FIRST + (times - _FIRST) % _TOGETHER
            rows = tuple(record.new_empty((_TOGETHER, *record.shape[1:])) for record in records)
            done = first
            recording = _recorded(lambda: run(0, first, records), lambda: run(0, _TOGETHER, rows), device)
            while recording is not None and done < times:
                recording.replay()
                for record, some in zip(records, rows, strict=True):
                    record[done : done + _TOGETHER].copy_(some)
                done += _TOGETHER
        return run(done, times, records)


def _records(device: torch.device, times: int) -> bool:
    return (
        device.type == "cuda"
        and times >= _FEWEST
        and not _failed
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()
    )


def _recorded(first: Callable[[], object], again: Callable[[], object], device: torch.device) -> _Recording | None:
    """Does the one, and records the other without doing it; None where that fails.

    The memory that is needed meanwhile is that of the recording before, on the same stream: the device is done with it
    whenever it begins with this one. Other threads may use the device as they like.
    """
    global _failed
    with _lock, torch.cuda.device(device):
        current = torch.cuda.current_stream()
        key = (current.device, current.cuda_stream)
        if current.device not in _side:
            _side[current.device] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side, before = _side[current.device], _latest.get(key)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            first()
            current.wait_stream(side)
            try:
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(None if before is None else before.pool(), capture_error_mode="thread_local")
                try:
                    again()
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                _failed = True
                warnings.warn(
                    f"steps of a greedy choice cannot be recorded as a CUDA graph, and are launched one by one, which "
                    f"is slower; the choice is the same. The reason: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return None
        _latest[key] = graph
        return graph
