"""A dictionary that forgets what was used longest ago."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any


class Recent:
    """Holds at most ``most`` entries; setting or getting one makes it the newest. For any thread.

    Args:
        most: >= 1.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._entries: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Any, value: Any) -> None:
        """Keeps an entry, in place of the oldest when there are too many."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self.most:
                self._entries.popitem(last=False)

    def get(self, key: Any) -> Any:
        """The entry, None where there is none."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
