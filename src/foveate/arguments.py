"""The arguments of ``generate`` and ``forward``: which are refused, which count the prompt, what comes back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer


class PromptStreamer(BaseStreamer):
    """Passes a streamer on, with the prompt as the user knows it in place of the shortened one."""

    def __init__(self, streamer: BaseStreamer, ids: Tensor) -> None:
        self._streamer = streamer
        self._prompt: Tensor | None = ids

    def put(self, value: Tensor) -> None:
        if self._prompt is not None:
            value, self._prompt = self._prompt.cpu(), None
        self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()


def setting(model: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """A generation setting as ``generate`` will find it: in the call, its ``generation_config``, or the model's."""
    for value in (arguments.get(name), getattr(arguments.get("generation_config"), name, None)):
        if value is not None:
            return value
    return getattr(model.generation_config, name, None)


def refuse_generation(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for what stock transformers itself gets wrong with images."""
    if setting(model, arguments, "prefill_chunk_size") is not None:
        raise ValueError(
            "prefill_chunk_size: stock transformers hands all image features to every chunk of the prompt, which "
            "fails or misplaces them. Leave it out: a pruned prompt is short."
        )
    if setting(model, arguments, "token_healing"):
        raise ValueError(
            "token_healing: stock transformers decodes the prompt without its image placeholders and loses them. "
            "Leave it out."
        )
    if setting(model, arguments, "cache_implementation") == "paged":
        raise ValueError(
            "cache_implementation='paged' (continuous batching) takes text only in stock transformers. Use "
            "another cache."
        )
    if isinstance(arguments.get("custom_generate"), str):
        raise ValueError(
            "custom_generate from a repository replaces generate as a whole and cannot be pruned. Pass a "
            "callable, or none."
        )


def bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(args) > len(names):
        raise TypeError(f"{function.__name__} takes at most {len(names)} positional arguments, got {len(args)}")
    named = dict(zip(names, args, strict=False))
    twice = named.keys() & kwargs.keys()
    if twice:
        raise TypeError(f"{function.__name__} got several values for {', '.join(sorted(twice))}")
    return {**named, **kwargs}


def require_arguments(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Raises ValueError when a forward (one that a checkpoint's repository brought) takes not all that is passed."""
    known = inspect.signature(function).parameters
    missing = [name for name in names if name not in known]
    if missing and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise ValueError(
            f"this model's forward takes no {', '.join(missing)}, which a pruned call passes: use generate, or give it "
            "**kwargs and hand them on to transformers' own forward"
        )


def restore(sequences: Tensor, ids: Tensor, short_ids: Tensor) -> Tensor:
    """Puts the long prompt back in front of what was generated; rows repeat for beams and several returns."""
    if short_ids is ids:
        return sequences
    prompt = ids.to(sequences.device).repeat_interleave(sequences.shape[0] // ids.shape[0], dim=0)
    return torch.cat([prompt, sequences[:, short_ids.shape[1] :]], dim=1)


def shift_lengths(config: Any, arguments: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    """``max_length`` and ``min_length`` count the prompt, which is shorter by ``dropped`` now."""
    given = arguments.get("generation_config")
    changed: dict[str, Any] = {}
    for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if any(value is not None for value in (arguments.get(instead), getattr(given, instead, None))):
            continue
        if arguments.get(name) is not None:
            changed[name] = max(0, arguments[name] - dropped)
            continue
        total = getattr(given, name, None)
        if total is None and getattr(config, instead, None) is None:
            total = getattr(config, name, None)
        if total is None:
            continue
        if given is None:
            changed[name] = max(0, total - dropped)
        else:
            given = changed["generation_config"] = copy.deepcopy(given)
            setattr(given, name, max(0, total - dropped))
    return changed


def wanted_logits(nearest: Tensor, keep: int | Tensor, short_length: int) -> tuple[Tensor, int]:
    """Which of the short prompt's logits to compute, and where each wanted one is among them.

    Args:
        nearest: (B, S) int64: for every long column the short one that speaks for it.
        keep: ``logits_to_keep`` as the user gave it, over the long prompt.
        short_length: S'.

    Returns:
        (B, k) indices into the logits that will be computed, and ``logits_to_keep`` for the short prompt.
    """
    if torch.is_tensor(keep):
        nearest = nearest[:, keep.cpu()]
    elif keep:
        nearest = nearest[:, -keep:]
    first = int(nearest.min())
    return nearest - first, short_length - first
