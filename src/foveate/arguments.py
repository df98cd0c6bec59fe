"""The arguments of ``generate`` and ``forward``: which are refused, which go by the prompt, what comes back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.prompts import Plan

CACHES = ("cache", "past_key_values")
"""What the KV cache is called: until transformers 5.23 the latter, from 5.24 the former, which takes both."""
IGNORED = -100
"""The label of a token that is not to be learned."""
PER_TOKEN: Mapping[str, int] = {"token_type_ids": 0, "mm_token_type_ids": 0, "labels": IGNORED}
"""Inputs with one entry per prompt token that are shortened with it, and what padding gets in them."""
POSITIONED = ("attention_mask", "position_ids")
"""The same, shortened in a way of their own."""


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among a call's arguments or in what it gave, whatever it is called; None without."""
    return next((arguments[name] for name in CACHES if arguments.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """The same in an output object, a dictionary of its fields; None without, and in a plain tensor."""
    return cache_in(output) if isinstance(output, Mapping) else None


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
    if not args:
        return dict(kwargs)
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


def infer_mask(model: Any, arguments: Mapping[str, Any], ids: Tensor) -> Tensor:
    """The (B, S) mask that ``generate`` makes where none is given: padding equals a pad token that is no EOS."""
    pad, eos = (setting(model, arguments, name) for name in ("pad_token_id", "eos_token_id"))
    ends = [] if eos is None else torch.as_tensor(eos, device="cpu").flatten().tolist()
    if pad is None or int(pad) in ends or not bool((ids == int(pad)).any()):
        return torch.ones_like(ids)
    return (ids != int(pad)).to(ids.dtype)


def shorten_per_token(
    arguments: Mapping[str, Any], plan: Plan, ids: Tensor, pixels: Iterable[str], own: Mapping[str, int]
) -> dict[str, Tensor]:
    """What else has one entry per prompt token, shortened like it.

    Args:
        arguments: the call's.
        plan: how the prompt was shortened.
        ids: (B, S) the call's ids; S entries per row are what is looked for.
        pixels: arguments that describe images, whatever their shape.
        own: the family's own inputs with an entry per token; see ``Family.per_token``.

    Raises:
        ValueError: an argument that has one entry per token, and nobody knows what shortening would mean to it.
    """
    entries = {**PER_TOKEN, **own}
    short = {
        name: plan.short_ids(arguments[name], fill) for name, fill in entries.items() if arguments.get(name) is not None
    }
    shifted = arguments.get("shift_labels")
    if shifted is not None:
        if shifted.shape != ids.shape:
            raise ValueError(
                f"shift_labels of shape {tuple(shifted.shape)} do not go with input_ids of shape {tuple(ids.shape)}"
            )
        # As labels are: what a kept token is to foretell is the next kept one.
        labels = plan.short_ids(unshifted(shifted), IGNORED)
        short["shift_labels"] = torch.cat([labels[:, 1:], shifted[:, -1:]], dim=1)
    known = {"inputs", "input_ids", "shift_labels", *entries, *POSITIONED, *pixels}
    for name, value in arguments.items():
        if name in known or not torch.is_tensor(value) or not value.ndim:
            continue
        if (
            tuple(value.shape[:2]) == tuple(ids.shape)
            or tuple(value.shape[-2:]) == tuple(ids.shape)
            or (value.ndim == 1 and len(value) == ids.shape[1] > 1)
        ):
            raise ValueError(
                f"{name} of shape {tuple(value.shape)} has an entry for each of the {ids.shape[1]} prompt tokens, and "
                "what it should be for a shortened prompt is not known: leave it out, or call without pruner"
            )
    return short


def unshifted(shifted: Tensor) -> Tensor:
    """(B, S) ``labels`` of what is given as ``shift_labels``: those stand at the token that foretells theirs."""
    return torch.nn.functional.pad(shifted[:, :-1], (1, 0), value=IGNORED)


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
