"""What commands do before a model is loaded: options and a file of them become one, and are tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate import bundled, loading
from foveate.config import Config, from_config
from foveate.coverage import SUPPORTED
from foveate.inside.supported import check_inside_type
from foveate.keep import Keep
from foveate.method_names import AUTO
from foveate.options import Options
from foveate.readable import check_readable
from foveate.serving.server import parse_options

ATTACHING = ("positions", "newlines", "layout", "calibrate")
"""Values of a configuration that are of how a pruner is attached, of which some commands have no choice."""


def settled(file: str | None, *, keep: str | None = None, option: Sequence[str] = (), **given: Any) -> Config:
    """The configuration of a command: what its file says, before which what was typed goes.

    Args:
        file: of ``--config``, if any.
        keep: as typed.
        option: ``NAME=VALUE`` of the method.
        given: other values of ``Config``, as typed; None: nothing was.

    Raises:
        TypeError, ValueError, FileNotFoundError, ModuleNotFoundError: as for ``foveate.from_config``.
    """
    kept = keep if keep in (None, AUTO) else Keep.read(keep, "--keep").written
    changes: Mapping[str, Any] = {**given, "keep": kept, "options": parse_options(option) or None}
    return from_config({} if file is None else Path(file), **changes)


def refuse_set(config: Config, file: str | None, names: Sequence[str], why: str) -> None:
    """Raises ValueError where a configuration sets one of some values that a command has no use for.

    Args:
        config: of the command.
        file: where it stands.
        names: of the values.
        why: they are of no use, behind the name.
    """
    for name in names:
        if getattr(config, name) != getattr(Config(), name):
            raise ValueError(f"{name} {why}: leave it out of {file}")


def check_device(device: str | None) -> str | None:
    """A device as typed: None and ``auto`` leave the choice. Raises ValueError for one that is not here."""
    if device in (None, "auto"):
        return None
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: give auto, cpu, cuda or cuda:1") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {device}: torch sees {torch.cuda.device_count()} CUDA devices here")
    return device


def check_source(source: str | None, dtype: str = "auto") -> None:
    """Raises what loading would raise, as far as files tell it: of a folder, what is missing or left out.

    Raises:
        FileNotFoundError: a folder that is not there, or lacks parts.
        ValueError: an unknown dtype.
    """
    if dtype not in loading.DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(loading.DTYPES)}")
    if bundled.shipped(source) is None and loading.is_folder(str(source)):
        loading.check_folder(Path(str(source)).expanduser())


def check_fits(source: str | None, config: Config) -> None:
    """Raises ValueError where a folder's model type says that it cannot be pruned so."""
    if bundled.shipped(source) is not None or not loading.is_folder(str(source)):
        return
    model_type = loading.declared_type(Path(str(source)).expanduser())
    family = SUPPORTED.get(model_type)
    if family is None:
        return  # which loading says better
    # Adapters' own classes: nothing of a model is asked for.
    options = Options(**{**config.attaching, "calibrate": False})
    check_inside_type(family, config.pruner, options)
    check_readable(family, config.pruner, options)  # type: ignore[arg-type]
    options.check(family)  # type: ignore[arg-type]
