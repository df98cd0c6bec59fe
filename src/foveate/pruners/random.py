"""The blind control: tokens drawn at random."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.pruners.base import Choice, Pruner
from foveate.tokens import TextTokens, VisualTokens


@dataclass
class Random(Pruner):
    """Tokens drawn uniformly, without replacement.

    The draw depends on ``seed`` and on the image's number of tokens N alone: the same on every device, alone
    or in a batch, in every turn and at every call, and a smaller ``keep`` keeps part of what a larger one
    keeps. Images of equal N therefore share their draw; to measure the method, average over several seeds.

    Args:
        keep: as for ``Pruner``.
        seed: any int. Default 0.

    Raises:
        TypeError: ``seed`` is no int.
    """

    seed: int = 0

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an int, got {self.seed!r} ({type(self.seed).__name__})")

    def choose(self, visual: VisualTokens, text: TextTokens | None, budget: int) -> Choice:
        """The first ``budget`` of a permutation drawn on the CPU."""
        # torch seeds its CPU generator with 32 bits only, so seed and N are hashed into those.
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{self.seed} {len(visual)}".encode()))
        drawn = torch.randperm(len(visual), generator=generator, device="cpu")[:budget].sort().values
        return Choice(drawn.to(visual.features.device, non_blocking=True))
