"""What stands in the file that an object's class is from: transformers' modelling files have much of their own."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any


def beside(thing: Any, name: str) -> Any:
    """What stands under a name in the modelling file of an object's class, or of the class that one derives from."""
    files = [sys.modules[kind.__module__] for kind in type(thing).__mro__]
    return next(getattr(file, name) for file in files if hasattr(file, name))


@functools.cache
def eager_name(kind: Any) -> str:
    """What the eager attention function is called that an attention class's forward falls back to."""
    code = inspect.unwrap(kind.forward).__code__
    named = [name for name in code.co_names if name.endswith("eager_attention_forward")]
    return named[0] if named else "eager_attention_forward"
