"""Methods by name: those of this package, and those that other packages bring."""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, TypeVar

from foveate.keep import Keep
from foveate.method_names import AUTO, ENTRY_POINTS, LACKING, NAMES, require_known
from foveate.pruners.base import Method, Pruner
from foveate.pruners.inside import InsidePruner
from foveate.pruners.wrapper import Wrapper

METHODS: dict[str, type[Pruner]] = {}
"""Methods that prune before the LLM, in the order in which they are listed."""

INSIDE_METHODS: dict[str, type[InsidePruner]] = {}
"""Methods that prune inside the LLM, for comparison: some families, greedy decoding and sampling only."""

WRAPPERS: dict[str, type[Wrapper]] = {}
"""Methods that hold a method, whose name stands behind theirs: ``centered:cdpruner``."""

RESERVED = ("all", "none")
"""What stands in a method's place where methods are listed."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_Kind = TypeVar("_Kind", bound=type[Method])
_Method = TypeVar("_Method", bound=Method)


def register(method: _Kind) -> _Kind:
    """Makes a method of your own known by its name, wherever names are taken: commands, evaluation, server.

    As a decorator of its class, or by an entry point in the group ``foveate.methods``, which is looked up when a name
    is first asked for: the way for the command and for the server, whose processes import your package by it.

    Args:
        method: a dataclass derived from ``Pruner``, ``Scorer``, ``Wrapper`` or ``InsidePruner`` with a ``name`` of
            lower-case letters, digits and single hyphens.

    Returns:
        The same class.

    Raises:
        TypeError: no such class, or an option without a default: a method's name alone must make it.
        ValueError: a name of another form, or that another class has, or that stands for something else.
    """
    if not (isinstance(method, type) and issubclass(method, Method) and "__dataclass_params__" in vars(method)):
        raise TypeError(f"register takes a dataclass derived from foveate.Pruner, got {method!r}")
    missing = sorted(getattr(method, "__abstractmethods__", ()))
    if missing:
        raise TypeError(f"{method.__name__} has no {', '.join(missing)}")
    for one in fields(method):
        if one.init and one.name != "method" and one.default is MISSING and one.default_factory is MISSING:
            raise TypeError(f"{method.__name__}.{one.name} has no default, and its name alone must make a method")
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{method.__name__}.name must be of lower-case letters, digits and single hyphens, got {name!r}"
        )
    homes: Any = WRAPPERS if issubclass(method, Wrapper) else METHODS if issubclass(method, Pruner) else INSIDE_METHODS
    other = {**METHODS, **INSIDE_METHODS, **WRAPPERS}.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"{name!r} is taken by {other.__module__}.{other.__qualname__}: choose another name")
    if name in RESERVED:
        raise ValueError(f"{name!r} stands for all methods or for none: choose another name")
    if name in LACKING:
        raise ValueError(f"{name!r} is taken by a method that is not available here: choose another name")
    homes[name] = method
    NAMES.setdefault(name)
    return method


@functools.cache
def load_entry_points() -> None:
    """Registers, once per process, what installed packages name under ``foveate.methods``.

    A package that fails to import or whose method is none is warned about by its name and left out.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            register(point.load())
        except (Exception, SystemExit) as error:  # whatever another package does wrong, the other methods must go on
            warnings.warn(
                f"the method {point.name!r} of {point.value} is left out: {type(error).__name__}: {error}", stacklevel=2
            )


def known_methods() -> dict[str, type[Method]]:
    """Every method by name, those of installed packages and wrappers included."""
    load_entry_points()
    return {**METHODS, **INSIDE_METHODS, **WRAPPERS}


def parse_method(text: str) -> tuple[type[Method], Mapping[str, Any]]:
    """What a method's name stands for: its class, and options that stand behind the name.

    Args:
        text: ``"adafv"``, or with options ``"fastv:layer=1:budget=final"``. A value is read as Python writes it, where
            it is a literal (``3``, ``0.5``, ``True``, ``(0.25, 0.5)``), else as text; one that is a budget, as for
            ``Keep.read``. Behind a wrapper's name and options stands the method it holds, with its own:
            ``"centered:cdpruner:words=max"``; that one is among the options, as ``method``.

    Raises:
        ValueError: no such method; the message names those known, or says what a method lacks. An option the method
            does not have, that stands there twice, or that is ``keep``, which is said elsewhere. A wrapper without a
            method, or one it refuses.
        TypeError: ``text`` is no text, or an option is of another type than the method's.
    """
    if not isinstance(text, str):
        what = text.__name__ if isinstance(text, type) else type(text).__name__
        raise TypeError(f"a method's name is a text such as 'cover', got {what}")
    name, *given = text.split(":")
    known = known_methods()
    require_known(name, known)
    kind = known[name]
    options: dict[str, Any] = {}
    if issubclass(kind, Wrapper):
        own = next((place for place, one in enumerate(given) if "=" not in one), None)
        if own is None or not given[own]:
            raise ValueError(f"{name} holds another method, whose name stands behind: {name}:{kind.example}")
        held = ":".join(given[own:])
        given = given[:own]
        try:
            options["method"] = get_pruner(held)
            kind(options["method"])
        except TypeError as error:
            raise ValueError(f"{text!r}: {error}") from None
    names = [field.name for field in fields(kind) if field.init and field.name not in ("keep", "method")]
    for one in given:
        option, equals, value = one.partition("=")
        if option not in names or not equals:
            meant = f" (did you mean {near[0]!r}?)" if (near := get_close_matches(option, names, 1)) else ""
            shown = option if equals else one
            raise ValueError(
                f"{text!r}: {name} has no option {shown!r}{meant}; known, as in {name}:option=value: {names}"
            )
        if option in options:
            raise ValueError(f"{text!r}: {name} is given {option} twice")
        if option in kind.budgets:
            options[option] = Keep.read(value, f"{text!r}: {option}").value
            continue
        try:
            options[option] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[option] = value
    return kind, options


def get_pruner(name: str, **options: Any) -> Method:
    """The pruner of that name, with its options (``keep`` among them).

    Args:
        name: as for ``parse_method``.
        options: of the method; they go before those behind the name. Those that a wrapper does not have are of the
            method it holds. ``keep="auto"`` is ``Auto(method)``, and of an ``adaptive`` method its own default.

    Raises:
        ValueError: as for ``parse_method``, or a value the method refuses.
        TypeError: as for ``parse_method``, or an option the method does not have.
    """
    kind, own = parse_method(name)
    keep = {"keep": options.pop("keep")} if "keep" in options else {}
    named = {one.name for one in fields(kind) if one.init}
    others = {option: options.pop(option) for option in list(options) if option not in named and "method" in own}
    if others:
        own = {**own, "method": replaced(own["method"], **others)}
    if isinstance(keep.get("keep"), str) and keep["keep"] == AUTO:
        held = kind(**{**own, **options})
        if held.adaptive:
            return held
        try:
            return WRAPPERS[AUTO](held)
        except (TypeError, ValueError) as error:
            raise ValueError(f"keep='auto': {error}") from None
    return kind(**{**own, **options, **keep})


def replaced(pruner: _Method, **options: Any) -> _Method:
    """The same method with other options; those that a wrapper does not have are of the method it holds.

    Raises:
        TypeError: an option that none of them has.
        ValueError: a value that its method refuses.
    """
    own = {one.name for one in fields(pruner) if one.init}
    mine = {name: value for name, value in options.items() if name in own}
    others = {name: value for name, value in options.items() if name not in own}
    if others and isinstance(pruner, Wrapper):
        mine["method"] = replaced(pruner.method, **others)
        others = {}
    return replace(pruner, **mine, **others)


def takes(name: str, option: str) -> bool:
    """Whether a method, or the one it holds, has an option that does not stand behind its name.

    Raises:
        ValueError: as for ``parse_method``.
    """
    *_, last = re.split(r":(?!\w+=)", name)  # the innermost with its options
    return option in get_pruner(name, keep=1.0).options and f":{option}=" not in f":{last}"
