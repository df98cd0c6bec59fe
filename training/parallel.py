"""Several processes that train one model: each takes its part of every batch, and all step by the mean gradient.

On a CPU two processes of one thread each do more than one of two: the many small operations of a step scale badly.
Started by ``torchrun --nproc-per-node 2 -m training ...``; without it there is one process and nothing here does
anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import distributed, nn


def begin() -> None:
    """Meets the other processes, if there are any."""
    if size() > 1:
        # Gloo for GPUs as well: what is sent are a few MB a step.
        distributed.init_process_group("gloo")


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is; 0 tells and saves."""
    return int(os.environ.get("RANK", "0"))


def meet() -> None:
    """Waits until all processes are here: what one has saved by then, the others may read."""
    if size() > 1:
        distributed.barrier()


def part(first: int, count: int) -> tuple[int, int]:
    """The first and the number of this process's pictures, of ``count`` that begin with ``first``."""
    ends = [count * number // size() for number in (rank(), rank() + 1)]
    return first + ends[0], ends[1] - ends[0]


def average(parameters: Iterable[nn.Parameter]) -> None:
    """Gives every process the mean of all processes' gradients."""
    if size() == 1:
        return
    learned = [one for one in parameters if one.requires_grad]
    flat = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).flatten().cpu() for one in learned])
    distributed.all_reduce(flat)
    for one, mean in zip(learned, (flat / size()).split([one.numel() for one in learned]), strict=True):
        one.grad = mean.view_as(one).to(one.device)
