"""What choosing costs: every method on the same tokens, side by side, nothing else running."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from foveate.benchmarks.measure import Clock, ClockName, Task, interleaved, peak_memory
from foveate.models.encoded import grid_geometry
from foveate.pruners import Pruner
from foveate.tokens import TextTokens, VisualTokens

VIEWS, SIDE = 5, 24
"""A base view and four crops of 336 pixels: LLaVA-NeXT's 2880 tokens."""
WIDTH, KEY_WIDTH, WORDS = 4096, 1024, 32
CLUSTERS = 60
"""So many different things the tokens show: were each drawn alone, none would be like another."""
REFERENCE = "cdpruner"
TARGETED = "cover"


@dataclass(frozen=True)
class Cost:
    """One method's figures.

    Args:
        method: its name.
        ms: median of the rounds.
        ratio: median over the rounds of its time over that of ``REFERENCE`` in the same round; NaN without it.
        peak_bytes: tensors at their peak, beyond the tokens themselves.
    """

    method: str
    ms: float
    ratio: float
    peak_bytes: int

    @property
    def missed(self) -> str | None:
        """The target it misses: ``cover`` takes no longer than CDPruner."""
        if self.method != TARGETED or not self.ratio > 1.0:
            return None
        return f"{self.method}: {self.ratio:.3f} times {REFERENCE}'s time > 1"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def picture(device: torch.device, dtype: torch.dtype, seed: int = 0) -> tuple[VisualTokens, TextTokens]:
    """Tokens in clusters with a common part, as projected tokens have, and text of which some tokens lie near them."""
    generator = torch.Generator("cpu").manual_seed(seed)
    grid = [(SIDE, SIDE)] * VIEWS
    boxes = torch.tensor([[0, 0, SIDE, SIDE]], device="cpu").expand(VIEWS, -1)
    where = grid_geometry(grid, boxes, (SIDE, SIDE), device)
    tokens = len(where)
    of = torch.randint(CLUSTERS, (tokens,), generator=generator)

    def clustered(width: int) -> torch.Tensor:
        centres = torch.randn(CLUSTERS, width, generator=generator) + 0.5
        return (centres[of] + 0.8 * torch.randn(tokens, width, generator=generator)).to(device, dtype)

    features, keys, encoded = clustered(WIDTH), clustered(KEY_WIDTH), clustered(KEY_WIDTH)
    saliency = torch.rand(tokens, generator=generator).square()
    words = torch.randn(WORDS, WIDTH, generator=generator).to(device, dtype)
    words[::4] += features[:: tokens // WORDS][: len(words[::4])]
    every = torch.ones(WORDS, dtype=torch.bool, device="cpu")
    visual = VisualTokens(features, where, (saliency / saliency.sum()).to(device), True, keys, encoded)
    return visual, TextTokens(words, every, ~every)


def measure(
    methods: Mapping[str, Pruner],
    *,
    repeats: int = 5,
    clock: ClockName = "wall",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Cost]:
    """Times ``select`` of every method on the same tokens, in turns.

    Args:
        methods: by the names they go by.
        repeats: rounds, >= 1.
        clock: see ``Clock``.
        dtype, device: of the tokens.
        progress: called with the number of runs done and of those there are.

    Raises:
        ValueError: ``repeats`` < 1, or a clock that does not go with the device.
    """
    device = torch.device(device)
    visual, text = picture(device, dtype)

    def choosing(pruner: Pruner) -> Callable[[], Any]:
        return lambda: pruner.select(visual, text)

    with torch.no_grad():
        tasks = {name: Task(choosing(pruner)) for name, pruner in methods.items()}
        times = interleaved(tasks, repeats, Clock(clock, device), progress=progress)
        peaks = {name: peak_memory(task.run, device) for name, task in tasks.items()}
    against = times.get(REFERENCE)
    return [
        Cost(name, statistics.median(own), _ratio(own, against) if against else float("nan"), peaks[name])
        for name, own in times.items()
    ]


def table(costs: Sequence[Cost]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows, the quickest first."""
    heads = ["method", "ms", f"times {REFERENCE}", "peak memory, MiB"]
    rows = [
        [
            one.method,
            f"{one.ms:.1f}",
            "" if one.ratio != one.ratio else f"{one.ratio:.2f}",
            f"{one.peak_bytes / 2**20:.0f}",
        ]
        for one in sorted(costs, key=lambda one: one.ms)
    ]
    return heads, rows


def _ratio(own: Sequence[float], against: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(own, against, strict=True))
