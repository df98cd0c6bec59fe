"""Running a stage: learning rate, running averages, log and resumable state."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from training import parallel
from training.presets import Stage

log = logging.getLogger("training")


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine."""
    falling = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    return stage.rate * min(1.0, (step + 1) / stage.warmup) * (stage.floor + (1 - stage.floor) * falling)


class Optimizer:
    """AdamW, which decays matrices only; and Muon for the matrices that it is given.

    Args:
        parameters: all that learn.
        decay: weight decay of matrices.
        hidden: of ``parameters``, matrices inside the layers: what goes in and comes out of them are activations. Muon
            (Jordan et al. 2024) steps in all directions of a matrix equally far, as far as AdamW would on average
            (``match_rms_adamw``), so that one learning rate serves both.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float, hidden: list[nn.Parameter] | None = None) -> None:
        by_muon = {id(matrix) for matrix in hidden or ()}
        rest = [p for p in parameters if id(p) not in by_muon]
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)]
        if hidden:
            self.parts.append(torch.optim.Muon(hidden, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))

    def step(self, rate: float) -> None:
        """One step at a learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])


class Averages:
    """Running averages of what is worth watching."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def update(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.values[name] = 0.97 * self.values.get(name, value) + 0.03 * value

    def __str__(self) -> str:
        return " ".join(f"{name}={value:.3f}" for name, value in sorted(self.values.items()))


class Clock:
    """Seconds of this stage, over all its resumptions."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


class Threads:
    """Chooses how many threads compute: all cores, or one.

    On cores shared with other work every operation waits for the slowest thread, and one thread can be twice as fast
    as two. Both are tried for a few steps now and then. Call ``step`` after every step.
    """

    _TRIAL, _PERIOD = 6, 90

    def __init__(self, device: torch.device) -> None:
        cores = os.cpu_count() or 1
        # Several processes must not come apart, and another number of threads rounds otherwise.
        alone = parallel.size() == 1
        self._choices = [cores, 1] if alone and device.type == "cpu" and cores > 1 else []
        self._steps = 0
        self._times: list[float] = []
        self._last = time.monotonic()

    def step(self) -> None:
        now = time.monotonic()
        if self._choices:
            place = self._steps % self._PERIOD
            if place == 0:
                self._times = []
            if place < self._TRIAL * len(self._choices):
                choice, trial = divmod(place, self._TRIAL)
                if trial == 0:
                    torch.set_num_threads(self._choices[choice])
                    self._times.append(0.0)
                else:
                    self._times[-1] += now - self._last
            elif place == self._TRIAL * len(self._choices):
                torch.set_num_threads(self._choices[self._times.index(min(self._times))])
        self._steps += 1
        self._last = now


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write so that a kill at any moment leaves the old state or the new one. Of several processes the first writes."""
    if parallel.rank():
        return
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """A stage's saved state, if there is one."""
    return torch.load(path, weights_only=False, map_location="cpu") if path.exists() else None


def snapshot(step: int, averages: Averages, clock: Clock, **parts: Any) -> dict[str, Any]:
    """What ``save_state`` writes of a stage: its parts (model, optimizer, ...) by name, and how far it is."""
    states = {name: part.state_dict() for name, part in parts.items()}
    return {**states, "step": step, "averages": averages.values, "seconds": clock.seconds}


def resume(state: Mapping[str, Any], averages: Averages, **parts: Any) -> tuple[int, Clock]:
    """Puts a snapshot back into the parts and the averages; returns the step to go on from and the clock."""
    for name, part in parts.items():
        part.load_state_dict(state[name])
        if hasattr(part, "tie_weights"):
            part.tie_weights()
    averages.values = state["averages"]
    return state["step"], Clock(state["seconds"])


def write_record(path: Path, entry: Mapping[str, Any]) -> None:
    """Merge entries into a JSON record. Of several processes the first writes."""
    if parallel.rank():
        return
    record = json.loads(path.read_text("utf-8")) if path.exists() else {}
    record.update(entry)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class Saving(Protocol):
    """Of a preset: how often a stage tells of itself, and how often it is saved."""

    log_every: int
    save_every: int


Batch = TypeVar("Batch")


def learn(
    name: str,
    stage: Stage,
    saving: Saving,
    out: Path,
    device: torch.device,
    *,
    parts: Mapping[str, nn.Module],
    trained: list[nn.Parameter],
    decay: float,
    batches: Callable[[int], Iterable[Batch]],
    loss_of: Callable[[int, Batch], tuple[Tensor, dict[str, float]]],
    hidden: list[nn.Parameter] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Train a stage, or go on training it, and leave its parts trained.

    Args:
        name: of the stage's state file and record.
        parts: what is saved, by name.
        trained: the parameters that learn, of ``parts``.
        decay: weight decay of matrices.
        hidden: of ``trained``, the matrices that Muon steps.
        batches: those from a step on.
        loss_of: from a step and its batch, the loss and what to watch.
        facts: for the record and the state, beside time and figures.
    """
    optimizer = Optimizer(trained, decay, hidden)
    averages, first, clock = Averages(), 0, Clock()
    threads = Threads(device)
    state = load_state(out / f"{name}.pt")
    facts = dict(facts or {})
    if state is not None:
        first, clock = resume(state, averages, **parts, optimizer=optimizer)
        facts = {key: state[key] for key in state["facts"]}

    def save(step: int) -> None:
        held = snapshot(step, averages, clock, **parts, optimizer=optimizer)
        save_state(out / f"{name}.pt", {**held, **facts, "facts": list(facts)})

    for step, batch in enumerate(batches(first), first):
        loss, seen = loss_of(step, batch)
        optimizer.zero_grad()
        loss.backward()
        parallel.average(trained)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step(learning_rate(stage, step))
        threads.step()
        averages.update(seen)
        if (step + 1) % saving.log_every == 0:
            log.info("%s %d/%d %.0f s %s", name, step + 1, stage.steps, clock.seconds, averages)
        if (step + 1) % saving.save_every == 0:
            save(step + 1)
    if first < stage.steps:
        save(stage.steps)
        write_record(
            out / "training.json", {name: {"seconds": round(clock.seconds), **facts, "figures": averages.values}}
        )
    parallel.meet()
