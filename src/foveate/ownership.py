"""Which attachments belong to the running thread or asyncio task: those it made, and those it was started with."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

_Attachment = TypeVar("_Attachment")

# The newest last. What has come off is dropped when the next one is added or dropped.
_made: ContextVar[tuple[weakref.ref[Any], ...]] = ContextVar("foveate_attachments", default=())


def add(attachment: Any) -> None:
    """The running thread or task has made it."""
    _made.set((*_others(attachment), weakref.ref(attachment)))


def drop(attachment: Any) -> None:
    """It has come off."""
    _made.set(_others(attachment))


def own(attachments: Sequence[_Attachment]) -> _Attachment | None:
    """Of some attachments the newest that is the running thread's or task's; None where none is."""
    for one in reversed(_made.get()):
        found = one()
        for attachment in attachments:
            if attachment is found:
                return attachment
    return None


def owner() -> Any:
    """The running asyncio task, else the running thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.current_thread() if task is None else task


def _others(attachment: Any) -> tuple[weakref.ref[Any], ...]:
    known = ((one, one()) for one in _made.get())
    return tuple(one for one, found in known if found is not None and found is not attachment and found.active)
