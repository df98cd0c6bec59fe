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
FEW = 8
"""How many methods a row goes through whose adapter another row takes through all of them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the matrix, some rows go through every product of its values (``WHOLE``). The others go through every value,
    and through every pair of values where these are told apart most (``PAIRS``); rows that share an adapter with
    another (``KIN``) through every value, and through some of the methods, each through others."""
    if not any(item.nodeid.startswith(MATRIX) for item in items):
        return
    from tests.tiny import KIN, ROWS, WHOLE

    by_test: dict[tuple[str, str], list[pytest.Function]] = {}
    for item in items:
        if item.nodeid.startswith(MATRIX) and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            name = item.callspec.params.get("row", item.callspec.params.get("name"))
            if name in ROWS and name not in WHOLE:
                by_test.setdefault((item.originalname, name), []).append(item)
    dropped: set[pytest.Item] = set()
    places = {name: place for place, name in enumerate(ROWS)}
    for (test, name), ours in by_test.items():
        values = [
            tuple(str(value) for axis, value in sorted(one.callspec.params.items()) if axis not in ("row", "name"))
            for one in ours
        ]
        strength = 2 if test in PAIRS and name not in KIN and len(values[0]) > 1 else 1
        kept = covering(values, strength, places[name])
        if test == "test_methods" and name in KIN:
            kept = [kept[(FEW * places[name] + number) % len(kept)] for number in range(FEW)]
        dropped |= {one for number, one in enumerate(ours) if number not in kept}
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]
