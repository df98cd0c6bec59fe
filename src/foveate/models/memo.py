"""What a picture's size and a model's config alone decide is worked out once, and kept while the model lives."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

MOST = 64
"""Results that are kept per model, the newest ones; of LLaVA-NeXT's largest pictures some 0.3 MiB each."""

_Found = TypeVar("_Found")
_known: WeakKeyDictionary[nn.Module, dict[Hashable, Any]] = WeakKeyDictionary()


def once(module: nn.Module, key: Hashable, make: Callable[[], _Found]) -> _Found:
    """What ``make`` gives, made once for every key.

    Args:
        module: whose it is. It is not kept alive, so what is made must not hold it.
        key: all that it depends on.
        make: gives something that nobody will change, and never None.
    """
    known = _known.setdefault(module, {})
    found: _Found | None = known.get(key)
    if found is None:
        with torch.inference_mode(False):  # tensors of an inference mode could not be used for training later
            found = make()
        while len(known) >= MOST:
            known.pop(next(iter(known), None), None)
        known[key] = found
    return found
