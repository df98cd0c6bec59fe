"""What measures: order of the rounds, bytes and operations that can be counted by hand. Never a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from foveate.benchmarks.measure import Clock, Task, count_flops, interleaved, paired, peak_memory

CPU = torch.device("cpu")


def test_every_round_runs_every_task_and_begins_with_another() -> None:
    ran: list[str] = []
    told: list[tuple[int, int]] = []
    tasks = {name: Task(lambda name=name: ran.append(name)) for name in "abc"}
    times = interleaved(tasks, 3, Clock("process", CPU), warmups=1, progress=lambda *now: told.append(now))
    assert "".join(ran) == "cababcbcacab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert told[-1] == (12, 12)


def test_what_is_around_a_task_is_not_timed() -> None:
    class Ticking(Clock):
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Ticking("wall", CPU)

    class Around:
        def __enter__(self) -> None:
            clock.now += 100

        def __exit__(self, *error: object) -> None:
            clock.now += 100

    def run() -> None:
        clock.now += 5

    assert interleaved({"only": Task(run, Around)}, 2, clock) == {"only": [5.0, 5.0]}


def test_bad_clocks_and_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown clock 'sun'; known: wall, process"):
        Clock("sun", CPU)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use wall"):
        Clock("process", torch.device("cuda"))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        interleaved({"a": Task(int)}, 0, Clock("wall", CPU))


def test_paired_differences_ignore_a_drift_they_share() -> None:
    assert paired([11.0, 102.0, 1001.0], [10.0, 100.0, 1000.0]) == 1.0


def test_peak_memory_is_the_most_that_lives_at_once() -> None:
    size = 1 << 20

    def run() -> None:
        first = torch.empty(size, dtype=torch.uint8)
        second = torch.empty(2 * size, dtype=torch.uint8)
        del first
        third = torch.empty(size // 2, dtype=torch.uint8)
        del second, third

    assert peak_memory(run, CPU) == 3 * size


def test_flops_of_a_product_and_of_attention() -> None:
    one, other = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops(lambda: one @ other) == 2 * 3 * 5 * 7
    query = torch.ones(2, 4, 6, 8)  # two products of (6, 8) by (8, 6) and back
    assert count_flops(lambda: scaled_dot_product_attention(query, query, query)) == 2 * 4 * 2 * 2 * 6 * 6 * 8
