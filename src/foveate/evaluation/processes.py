"""Which of several processes this is, as ``accelerate launch`` and ``torchrun`` say it in the environment."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the others at the end: their shares of a long evaluation may differ by hours."""


@dataclass(frozen=True)
class Processes:
    """One of ``size`` processes that share a piece of work.

    Args:
        rank: this one's number, from 0.
        size: how many there are.
        local_rank: this one's number on its machine, which is its GPU's.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def wait(self) -> None:
        """Returns when every process has come here. A launcher ends the others when one fails.

        Raises:
            ValueError: there are several, and the environment does not say where they meet.
        """
        if self.size == 1:
            return
        from torch import distributed

        if not distributed.is_initialized():
            if not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
                raise ValueError(
                    f"WORLD_SIZE is {self.size}, but MASTER_ADDR and MASTER_PORT do not say where the processes meet: "
                    "start them with accelerate launch or torchrun"
                )
            # Nothing but waiting is shared, so gloo serves on GPUs as well, and its patience can be chosen.
            distributed.init_process_group("gloo", rank=self.rank, world_size=self.size, timeout=PATIENCE)
        distributed.barrier()

    def file(self, name: str) -> str:
        """This process's own file: ``rows.jsonl`` for the first, ``rows-1.jsonl`` for the next."""
        path = Path(name)
        return f"{path.stem}-{self.rank}{path.suffix}" if self.rank else name


ALONE = Processes()


# torch's launchers, which accelerate starts on GPUs, and the MPI ones, which it starts on CPUs.
_VARIABLES = (
    ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)


def from_environment() -> Processes:
    """Rank, size and local rank as the environment has them; a single process where it does not.

    Where there are GPUs, this process's becomes torch's current one.

    Raises:
        ValueError: they are no numbers, or do not go together.
    """
    found = Processes(*(_number(names, default) for names, default in zip(_VARIABLES, (0, 1, 0), strict=True)))
    if not 0 <= found.rank < found.size or found.local_rank < 0:
        raise ValueError(f"the environment says RANK {found.rank} of WORLD_SIZE {found.size}: that cannot be")
    if found.size > 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(found.local_rank)
    return found


def _number(names: tuple[str, ...], default: int) -> int:
    for name in names:
        if name in os.environ:
            try:
                return int(os.environ[name])
            except ValueError:
                raise ValueError(f"{name} in the environment must be a number, got {os.environ[name]!r}") from None
    return default
