"""A dictionary that forgets what was used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class Recent(OrderedDict[Any, Any]):
    """Holds at most ``most`` entries; setting or getting one makes it the newest.

    Args:
        most: >= 1.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.most:
            self.popitem(last=False)

    def get(self, key: Any, default: Any = None) -> Any:
        """The entry, which becomes the newest; the default where there is none."""
        if key not in self:
            return default
        self.move_to_end(key)
        return self[key]
