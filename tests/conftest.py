import os

# Before torch: one thread per worker. Models here are tiny, and two workers with two threads each would fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests.pairs import covering

torch.set_num_threads(1)

MATRIX = "tests/test_matrix.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the matrix, rows that share an adapter with another row go through every pair of values, not every product."""
    if not any(item.nodeid.startswith(MATRIX) for item in items):
        return
    from tests.tiny import KIN

    by_test: dict[tuple[str, str], list[pytest.Function]] = {}
    for item in items:
        if item.nodeid.startswith(MATRIX) and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            name = item.callspec.params.get("row", item.callspec.params.get("name"))
            if name in KIN:
                by_test.setdefault((item.originalname, name), []).append(item)
    dropped: set[pytest.Item] = set()
    for tests in by_test.values():
        values = [
            tuple(str(value) for axis, value in sorted(test.callspec.params.items()) if axis not in ("row", "name"))
            for test in tests
        ]
        kept = set(covering(values))
        dropped |= {test for number, test in enumerate(tests) if number not in kept}
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]
