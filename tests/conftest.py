import os

# Before torch: one thread per worker. Models here are tiny, and two workers with two threads each would fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests.pairs import covering

torch.set_num_threads(1)

MATRIX = "tests/test_matrix.py"
PAIRS = {"test_generate", "test_positions_and_newlines", "test_second_turn", "test_crops"}
"""Tests whose values are seen in pairs by every family."""
TURNS = {"test_lengths", "test_speculative", "test_scores", "test_eager", "test_streamer"}
"""Tests of what a family has no part in: a row goes through one combination of values, the next through another."""
FEW = 4
"""How many methods a row goes through whose adapter another row takes through all of them."""
PAIRED = ("tests/test_inside.py::test_as_by_hand",)
"""Tests beside the matrix that go through every pair of their values, rows among them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the matrix, some rows go through every product of its values (``WHOLE``). The others go through every value,
    and through every pair of values where these are told apart most (``PAIRS``), or through one in turn (``TURNS``);
    rows that share an adapter with another (``KIN``) through every value, and through some of the methods, each through
    others. Every row with videos goes through the methods that compare frames."""
    dropped: set[pytest.Item] = set()
    for test in PAIRED:
        dropped |= _beside(_parametrised(items, test), 2, 0)
    if any(item.nodeid.startswith(MATRIX) for item in items):
        dropped |= _not_in_the_matrix(items)
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]


def _parametrised(items: list[pytest.Item], test: str) -> list[pytest.Function]:
    found = (item for item in items if item.nodeid.startswith(test))
    return [item for item in found if isinstance(item, pytest.Function) and hasattr(item, "callspec")]


def _values(item: pytest.Function, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The values of a test's parameters, by the parameters' names."""
    return tuple(str(value) for name, value in sorted(item.callspec.params.items()) if name not in without)


def _beside(ours: list[pytest.Function], strength: int, first: int) -> set[pytest.Item]:
    """Those of a test that are not needed to see values in every combination of ``strength``."""
    kept = set(covering([_values(one) for one in ours], strength, first)) if ours else set()
    return {one for number, one in enumerate(ours) if number not in kept}


def _is_for_films(item: pytest.Function) -> bool:
    """Whether a method compares the frames of a video: videos go through all such, pictures through one in turn."""
    from foveate import get_pruner

    return bool(get_pruner(item.callspec.params["method"]).over_time)


def _not_in_the_matrix(items: list[pytest.Item]) -> set[pytest.Item]:
    from tests.tiny import KIN, ROWS, WHOLE

    by_test: dict[tuple[str, str], list[pytest.Function]] = {}
    for item in _parametrised(items, MATRIX):
        name = item.callspec.params.get("row", item.callspec.params.get("name"))
        if name in ROWS and name not in WHOLE:
            by_test.setdefault((item.originalname, name), []).append(item)
    dropped: set[pytest.Item] = set()
    places = {name: place for place, name in enumerate(ROWS)}
    for (test, name), ours in by_test.items():
        if test in TURNS:
            kept = [places[name] % len(ours)]
        else:
            values = [_values(one, ("row", "name")) for one in ours]
            strength = 2 if test in PAIRS and name not in KIN and len(values[0]) > 1 else 1
            kept = covering(values, strength, places[name])
        if test == "test_methods":
            kept = [one for one in kept if not _is_for_films(ours[one])]
            films = [
                number for number, one in enumerate(ours) if _is_for_films(one) and one.callspec.params["keep"] < 1
            ]
            if name in KIN:
                kept = [kept[(FEW * places[name] + number) % len(kept)] for number in range(FEW)]
            if name.endswith("-video"):
                kept += films
            elif films and name not in KIN:
                kept.append(films[places[name] % len(films)])
        dropped |= {one for number, one in enumerate(ours) if number not in kept}
    return dropped
