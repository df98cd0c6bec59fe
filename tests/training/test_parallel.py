"""Two processes that share a batch do what one does with all of it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from training import parallel
from training.presets import Stage
from training.runs import learn, load_state

STAGE = Stage(steps=5, batch=6, rate=1e-2, warmup=1)


@dataclass
class Often:
    log_every: int = 1
    save_every: int = 2


def train(out: Path) -> None:
    """A small regression; the second half of the batch has another loss than the first, and a weight of its own."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = torch.randn(30, 4, generator=generator), torch.randn(30, 2, generator=generator)
    torch.manual_seed(1)
    model = nn.ModuleDict({"all": nn.Linear(4, 2), "odd": nn.Linear(4, 2), "nobody": nn.Linear(2, 2)})

    def batches(first: int) -> Iterator[range]:
        for step in range(first, STAGE.steps):
            start, count = parallel.part(step * STAGE.batch, STAGE.batch)
            yield range(start, start + count)

    def loss_of(step: int, batch: range) -> tuple[Tensor, dict[str, float]]:
        each = []
        for one in batch:
            told = model["all"](inputs[one])
            if one % STAGE.batch >= STAGE.batch // 2:
                told = told + model["odd"](inputs[one]).tanh()
            each.append(F.mse_loss(told, outputs[one]))
        loss = torch.stack(each).mean()
        return loss, {"loss": float(loss.detach())}

    parts = {"model": model}
    learn(
        "toy", STAGE, Often(), out, torch.device("cpu"),
        parts=parts, trained=list(model.parameters()), decay=0.0, batches=batches, loss_of=loss_of,
    )  # fmt: skip
    torch.save(model.state_dict(), out / f"rank{parallel.rank()}.pt")


def one_of_two(rank: int, port: int, out: Path) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo"
    )
    torch.set_num_threads(1)
    parallel.begin()
    train(out)
    assert (out / "toy.pt").exists()  # whatever comes next may read it, in either process
    torch.distributed.destroy_process_group()


def test_two_processes_step_as_one(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    train(alone)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("spawn")
    processes = [context.Process(target=one_of_two, args=(rank, port, together)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    wanted = torch.load(alone / "rank0.pt")
    for rank in range(2):
        found = torch.load(together / f"rank{rank}.pt")
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)
    first, second = (torch.load(together / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in wanted)
    state = load_state(together / "toy.pt")
    assert state is not None and state["step"] == STAGE.steps


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_are_a_whole(count: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(size))
    taken: list[int] = []
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        first, own = parallel.part(100, count)
        taken += range(first, first + own)
    assert taken == list(range(100, 100 + count))
