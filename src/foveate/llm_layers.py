"""Hooks on every layer of the LLM, for calls that change what its layers are called with."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from foveate.attention import Recorder, open_recorder, tapped_config, untraced
from foveate.models.base import Family
from foveate.patches import Patch, Patches, held

_NAME = "_foveate_layers"
LANGUAGE_MODELS = ("language_model", "text_model", "model")


class LayerRun(Recorder):
    """A recorder that every layer of the LLM is run through, while it is open and the layers are watched."""

    layers: Sequence[Any] = ()

    @abstractmethod
    def through(self, number: int, forward: Callable[..., Any], hidden: Tensor, inputs: Mapping[str, Any]) -> Any:
        """One layer's forward.

        Args:
            number: of the layer, from 0.
            forward: its own.
            hidden: (B, q, D) what it is called with.
            inputs: by name, the rest of that.
        """


def language_model(family: Family) -> Any:
    """The LLM of a family, with ``layers`` and ``config``.

    Raises:
        ValueError: there is none where it is looked for.
    """
    base: Any = family.base
    for name in LANGUAGE_MODELS:
        found = getattr(base, name, None)
        if not hasattr(found, "layers"):  # the LLM with its head
            found = getattr(found, "model", None)
        if getattr(found, "layers", None) and hasattr(found, "config"):
            return found
    raise ValueError(f"{type(base).__name__} has no LLM with layers under {' or '.join(LANGUAGE_MODELS)}")


def takes(layer: nn.Module, *names: str) -> bool:
    """Whether a layer's forward names all of these arguments."""
    return set(names) <= inspect.signature(layer.forward).parameters.keys()


def watching(model: Any, layers: Sequence[Any]) -> AbstractContextManager[None]:
    """Hooks on every layer of the LLM, shared by all calls that run at once; inert outside of a ``LayerRun``."""
    return held(model, lambda: getattr(model, _NAME, None) or _hooks(model, layers))


def _hooks(model: Any, layers: Sequence[Any]) -> Patches:
    patches = Patches(Patch(layer, "forward", _through(layer, number)) for number, layer in enumerate(layers))
    for layer in layers:
        attention = getattr(layer, "self_attn", None)
        if hasattr(getattr(attention, "config", None), "_attn_implementation"):
            patches.add(Patch(attention, "config", tapped_config(attention)))
    patches.add(Patch(model, _NAME, patches))
    return patches


def _through(layer: nn.Module, number: int) -> Callable[..., Any]:
    forward = layer.forward
    names = list(inspect.signature(forward).parameters)[1:]

    @functools.wraps(forward)
    def through(hidden_states: Tensor, *others: Any, **inputs: Any) -> Any:
        run = open_recorder()
        if not isinstance(run, LayerRun) or run.layers[number] is not layer:
            return forward(hidden_states, *others, **inputs)
        return run.through(number, forward, hidden_states, {**dict(zip(names, others, strict=False)), **inputs})

    return untraced(through)
