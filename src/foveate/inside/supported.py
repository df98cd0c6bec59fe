"""What methods that prune inside the LLM work with, and what they refuse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import DynamicCache

from foveate.arguments import cache_in, setting
from foveate.models.base import Family
from foveate.options import Options
from foveate.prompts import cached_length
from foveate.pruners.base import Method
from foveate.pruners.inside import InsidePruner

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl")
"""Families whose tests these methods pass."""
IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def check_inside(family: Family, pruner: Method, options: Options) -> None:
    """Raises ValueError where ``pruner`` prunes inside the LLM and this model or these options do not allow it."""
    check_inside_type(family, pruner, options)
    if not isinstance(pruner, InsidePruner):
        return
    name = pruner.name
    layers = language_layers(family)
    config = family.base.language_model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        raise ValueError(
            f"{name} prunes inside the LLM, and this one has layers that see a window only, where dropped tokens would "
            "move the others: use a method that prunes before it"
        )
    if getattr(config, "attn_logit_softcapping", None):
        raise ValueError(
            f"{name} reads attention as softmax(q k), and this LLM caps it: use a method that prunes before it"
        )
    implementation = config._attn_implementation or "sdpa"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"{name} prunes inside the LLM and knows the masks of {', '.join(IMPLEMENTATIONS)}, not of "
            f"{implementation!r}: call model.set_attn_implementation('sdpa')"
        )
    pruner.layers(len(layers))


def check_inside_type(family: Family | type[Family], pruner: Method, options: Options) -> None:
    """The same, as far as the family and the options tell, without a model."""
    if not isinstance(pruner, InsidePruner):
        return
    name = pruner.name
    if not set(family.model_types) & set(FAMILIES):
        raise ValueError(
            f"{name} prunes inside the LLM, which works with {', '.join(FAMILIES)} and not with {family.title}: use a "
            "method that prunes before it (`foveate methods` lists both kinds)"
        )
    asked = {"positions": options.positions == "compact", "newlines": options.newlines != "drop"}
    asked["layout"] = options.layout != "stock"
    asked["calibrate"] = bool(options.calibrate)
    asked["crops"] = options.routed is not None
    for option, refused in asked.items():
        if refused:
            spelled = str(options.routed) if option == "crops" else getattr(options, option)
            raise ValueError(
                f"{name} prunes inside the LLM and has no {option}={spelled!r}: its first layers read "
                "the stock prompt, and tokens keep their positions. Leave the option out"
            )


def language_layers(family: Family) -> Sequence[Any]:
    """The decoder layers of a family's LLM.

    Raises:
        ValueError: they are not stock ones.
    """
    layers: Sequence[Any] = getattr(family.base.language_model, "layers", ())
    known = [
        hasattr(layer, "self_attn") and "position_embeddings" in inspect.signature(layer.forward).parameters
        for layer in layers
    ]
    if not known or not all(known):
        raise ValueError(
            f"the LLM of this {family.title} has no stock decoder layers to prune between: use a method that prunes "
            "before it"
        )
    return layers


def refuse_modes(model: Any, arguments: Mapping[str, Any], name: str) -> None:
    """Raises ValueError for ways to generate in which layers are called with other than a prompt and single tokens."""
    value = functools.partial(setting, model, arguments)
    implementation = value("cache_implementation")
    cache = cache_in(arguments)
    plain = cache is None or (type(cache) is DynamicCache and not any(getattr(cache, "is_sliding", [])))
    beams = (value("num_beams") or 1) > 1
    refused = {
        "use_cache=False": value("use_cache") is False,
        f"cache_implementation={implementation!r}": implementation not in (None, "dynamic", "dynamic_full"),
        f"past_key_values of type {type(cache).__name__}": not plain,
        f"num_beams={value('num_beams')}": beams,
        "custom_generate": arguments.get("custom_generate") is not None,
        **{
            option: bool(value(option))
            for option in (
                "assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "penalty_alpha",
                "dola_layers",
            )
        },
        "guidance_scale": value("guidance_scale") not in (None, 1, 1.0),
    }  # fmt: skip
    for mode, there in refused.items():
        if there:
            raise ValueError(
                f"{name} prunes inside the LLM, which works with greedy decoding and sampling, one token at a time, "
                f"with a DynamicCache; not with {mode}. Leave it out, or use a method that prunes before the LLM"
            )
    if cached_length(cache):
        raise ValueError(
            f"{name} prunes inside the LLM and cannot go on from past_key_values that hold something: give the whole "
            "conversation without it, or use a method that prunes before the LLM"
        )
