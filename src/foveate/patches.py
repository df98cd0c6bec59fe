"""Attributes put on a model's modules for a while: all of them or none, and off again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from foveate.locks import lock_of


class Patch(NamedTuple):
    """An attribute to put on an object."""

    owner: Any
    name: str
    value: Any


class _Before(NamedTuple):
    """What an object itself had under a name."""

    patch: Patch
    there: bool
    value: Any

    def restore(self) -> None:
        if self.there:
            _set(self.patch.owner, self.patch.name, self.value)
        elif self.patch.name in vars(self.patch.owner):
            _delete(self.patch.owner, self.patch.name)


def _set(owner: Any, name: str, value: Any) -> None:
    """``setattr``, past torch's, which looks through parameters, buffers and modules first."""
    kind: Any = type(owner)
    if kind.__setattr__ is nn.Module.__setattr__ and not issubclass(type(value), (nn.Module, torch.Tensor)):
        object.__setattr__(owner, name, value)
    else:
        setattr(owner, name, value)


def _delete(owner: Any, name: str) -> None:
    """``delattr`` of what is in ``vars``, likewise."""
    kind: Any = type(owner)
    if kind.__delattr__ is nn.Module.__delattr__:
        object.__delattr__(owner, name)
    else:
        delattr(owner, name)


# By (id of an owner, name): the group that has it. Groups hold their owners, so no id is used twice meanwhile. Both are
# changed by single operations that no thread can come between, since an interrupt could leave a lock of theirs closed.
_taken: dict[tuple[int, str], Patches] = {}


@contextmanager
def held(model: Any, find: Callable[[], Patches]) -> Iterator[None]:
    """Keeps patches on a model for the time of a block.

    Args:
        model: whose lock is taken to put them on and off.
        find: what gives them, called under the lock.
    """
    user, patches = object(), None
    try:
        try:
            with lock_of(model):
                patches = find()
                patches.acquire(user)
            yield
        finally:
            _leave(model, patches, user)
    except BaseException:
        _leave(model, patches, user)  # once more: that may have been interrupted
        raise


def _leave(model: Any, patches: Patches | None, user: Hashable) -> None:
    if patches is not None:
        with lock_of(model):
            patches.release(user)


class Patches:
    """Patches that belong together: whoever comes first puts them on, whoever leaves last takes them off.

    Not for several threads by itself: hold the model's lock, ``foveate.locks.lock_of``.

    Args:
        patches: what to put on, in this order.
    """

    def __init__(self, patches: Iterable[Patch]) -> None:
        self._patches = list(patches)
        self._before: list[_Before] = []
        self.users: set[Hashable] = set()

    def add(self, patch: Patch) -> None:
        """One patch more, while nobody uses them: one that leads back to the group, say."""
        self._patches.append(patch)

    def acquire(self, user: Hashable) -> None:
        """One user more. After an error or interrupt there is none more, and nothing is left behind.

        Raises:
            RuntimeError: a module is patched already on behalf of another model that shares it.
        """
        try:
            self.users.add(user)
            if not self._before:
                for patch in self._patches:
                    self._put(patch)
        except BaseException:
            self.release(user)
            raise

    def release(self, user: Hashable) -> None:
        """One user less; nothing where it is none (any more)."""
        self.users.discard(user)
        if self.users:
            return
        try:
            self._take_off()
        except BaseException:  # an interrupt: what is half done is finished first
            self._take_off()
            raise

    def __enter__(self) -> Patches:
        self.acquire(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.release(self)

    def state_without(self, owner: Any) -> dict[str, Any]:
        """What an owner's ``vars`` would be without them."""
        state = dict(vars(owner))
        for before in reversed(self._before):
            if before.patch.owner is owner:
                state[before.patch.name] = before.value
                if not before.there:
                    del state[before.patch.name]
        return state

    def _put(self, patch: Patch) -> None:
        own = vars(patch.owner)
        holder = _taken.setdefault((id(patch.owner), patch.name), self)
        if holder is not self:
            raise RuntimeError(
                f"{type(patch.owner).__name__}.{patch.name} carries a patch already, put there for another model that "
                "shares this module: take the pruner off that one first"
            )
        # Written down first: were the next line interrupted, undoing would still find it.
        self._before.append(_Before(patch, patch.name in own, own.get(patch.name)))
        _set(patch.owner, patch.name, patch.value)

    def _take_off(self) -> None:
        while self._before:
            before = self._before[-1]
            before.restore()
            self._before.pop()
        for patch in self._patches:
            key = (id(patch.owner), patch.name)
            if _taken.get(key) is self:
                del _taken[key]
