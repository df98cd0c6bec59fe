"""What attention inside the language model says of the visual tokens: one query's row of one layer, nothing more.

The layer keeps its own kernel (SDPA, flash): its queries and keys are seen on their way there, and one row is worked
out beside it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.functional import attention_of_queries


def row_attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, back: int) -> Tensor:
    """The attention that one token of every row pays to all others, averaged over heads; later ones get none.

    Args:
        query: (B, H, S, d), after rotary positions.
        key: (B, G, S, d), G dividing H (grouped queries).
        scaling: factor on the dot products.
        mask: what the layer was given: bool (True counts) or additive, (B, 1, S, S) or (B, S) of padding, or None.
            Additive ones may only say what counts.
        back: how many tokens before the last one the query stands.

    Returns:
        (B, S) float32, each row summing to 1.
    """
    rows, _, length, _ = key.shape
    place = length - 1 - back
    allowed = (torch.arange(length, device=key.device) <= place).expand(rows, 1, length)
    if mask is not None:
        given = mask[:, None, :length] if mask.ndim == 2 else mask[:, 0, place : place + 1, :length]
        counts = (
            given > torch.finfo(given.dtype).min / 2 if mask.ndim == 4 and mask.is_floating_point() else given.bool()
        )
        allowed = allowed & counts
    asked = query[:, :, place : place + 1]
    return torch.cat([attention_of_queries(asked[n], key[n], scaling, allowed[n]) for n in range(rows)])


def language_layers(model: Any) -> Any:
    """The layers of a model's language model.

    Raises:
        ValueError: the model does not say which they are.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None or not hasattr(layers[0], "self_attn"):
        raise ValueError(f"the language model of {type(model).__name__} has no layers with a self_attn to read")
    return layers


@contextmanager
def reading_row(model: Any, layer: int, back: int) -> Iterator[list[Tensor]]:
    """Collects, for every prefill inside the block, one query's attention in one layer of the language model.

    Args:
        model: a stock transformers model.
        layer: which, from 0; negative ones count from the last.
        back: how many tokens before the prompt's last one the query stands.

    Yields:
        A list to which each prefill adds (B, S) float32: see ``row_attention``.

    Raises:
        ValueError: there is no such layer.
    """
    layers = language_layers(model)
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"layer {layer} is not one of the {len(layers)} layers of the language model, counted from 0")
    attention: nn.Module = layers[layer].self_attn
    rows: list[Tensor] = []
    config: Any = attention.config
    implementation = config._attn_implementation or "sdpa"

    def tapped(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> Any:
        if query.shape[2] == key.shape[2] > 1:  # a prefill, and no step of decoding
            scaling = options.get("scaling")
            with torch.no_grad():
                scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
                rows.append(row_attention(query, key, scaling, mask, back))
        if implementation == "eager":  # each modelling file has its own
            real = sys.modules[type(module).__module__].eager_attention_forward
        else:
            real = ALL_ATTENTION_FUNCTIONS[implementation]
        return real(module, query, key, value, mask, **options)

    name = f"{implementation}_row"  # modelling code asks the name's beginning whether it is flash
    ALL_ATTENTION_FUNCTIONS.register(name, tapped)
    routed: Any = copy.copy(config)
    routed._attn_implementation_internal = name
    attention.config = routed
    try:
        yield rows
    finally:
        attention.config = config
