"""Pictures that came with a UUID, for requests that bring the UUID alone."""

from __future__ import annotations

import threading
from typing import Any

from cachetools import LRUCache


class PictureCache:
    """A least-recently-used cache of pictures by UUID, bounded by their decoded pixels. For any thread.

    Args:
        capacity: bytes. 0: keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pictures: LRUCache[str, Any] = LRUCache(capacity, getsizeof=pixel_bytes)
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes of the pictures that are there."""
        return int(self._pictures.currsize)

    def put(self, uuid: str, picture: Any) -> None:
        """Keeps a picture (Pillow's, an array or a tensor) in place of an earlier one, if it fits at all."""
        with self._lock:
            self._pictures.pop(uuid, None)
            if pixel_bytes(picture) <= self.capacity:
                self._pictures[uuid] = picture

    def get(self, uuid: str) -> Any:
        """The picture, None when it has gone."""
        with self._lock:
            return self._pictures.get(uuid)


def pixel_bytes(picture: Any) -> int:
    """Bytes of a picture's pixels, one for each value of one of Pillow's."""
    if hasattr(picture, "getbands"):
        return int(picture.width * picture.height * len(picture.getbands()))
    return int(picture.nbytes)
