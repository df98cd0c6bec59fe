"""Locks: one that may stand in what people copy, and one for every object that several threads share."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_rest = threading.RLock()


def lock_of(owner: Any) -> threading.RLock:
    """The lock of an object, the same for all who ask: under a model's, patches are put on it and taken off; under a
    tokenizer's, it is called. A fast tokenizer is told how to pad before it reads: another thread that it reads for
    meanwhile makes it raise "Already borrowed", or pads for both.

    What has no hash or cannot be referred to weakly (stand-ins of people's own) shares one lock.
    """
    try:
        return _locks.setdefault(owner, threading.RLock())
    except TypeError:
        return _rest


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
