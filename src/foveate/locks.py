"""A lock that may stand in what people copy."""

from __future__ import annotations

import threading
from typing import Any


class OwnLock:
    """A lock; a copy of it, pickled or not, is another one, which nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnLock, ()
