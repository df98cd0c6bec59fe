"""Merged tokens count for as many as they were put together from: a bias on attention logits, as RESTORE adds it.

A token that stands for n others gets one n-th of the attention that they would have got. Where n of them are alike,
``log(n)`` added to its logit, in every layer and for every query that sees it, gives all of it back: softmax sums n
equal terms. (RESTORE, ICML 2026, around any selector; proportional attention, ToMe, arXiv 2210.09461, equation 1.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.arguments import cache_in
from foveate.functional import sizes
from foveate.guiding import ImageSpan
from foveate.llm_layers import LayerRun, language_model, takes
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage
from foveate.prompts import Plan, Prompt
from foveate.tokens import Selection

IMPLEMENTATIONS = ("eager", "sdpa")
KINDS = {"full_attention", "sliding_attention", "chunked_attention"}


def check_calibrated(family: Family) -> None:
    """Raises ValueError where this model's LLM takes no bias on its attention logits."""
    model = language_model(family)
    implementation = model.config._attn_implementation or "sdpa"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"calibrate adds to attention logits, and attn_implementation={implementation!r} takes no such mask: load "
            'the model with attn_implementation="sdpa", or call model.set_attn_implementation("sdpa")'
        )
    others = set(getattr(model.config, "layer_types", None) or ()) - KINDS
    if others or not all(takes(layer, "attention_mask") for layer in model.layers):
        raise ValueError(
            f"calibrate adds to attention logits, and the LLM of this {family.title} has layers without them"
            + (f" ({', '.join(sorted(others))})" if others else "")
            + ": leave it out"
        )


def bias_of(
    located: Sequence[tuple[EncodedImage, ImageSpan]],
    selections: Sequence[Selection],
    kept: Sequence[Tensor],
    prompt: Prompt,
    plan: Plan,
    strength: float,
) -> Tensor | None:
    """(B, S') float32: what is added to the logits of every token of the shortened prompt; None where nothing is.

    Args:
        located: every image with its place.
        selections: what was chosen of each.
        kept: their indices on the CPU.
        prompt: the long one. What a cache holds keeps the bias that it was filled with.
        plan: how it was shortened.
        strength: by which the logarithm of a token's size is multiplied; 0: nothing is added to new tokens.
    """
    before = None if prompt.cached is None else prompt.cached.bias
    merged = [number for number, one in enumerate(selections) if one.weights is not None] if strength else []
    if before is None and not merged:
        return None
    devices = [selections[number].indices.device for number in merged] if before is None else [before.device]
    whole = torch.zeros(prompt.ids.shape, device=devices[0])
    for number in merged:
        (image, span), weights = located[number], selections[number].weights
        assert image.slots is not None and weights is not None  # only layouts that are refused have none
        columns = span.positions[image.slots >= 0][kept[number]].to(whole.device)
        whole[span.row, columns] = strength * sizes(weights).clamp(min=1).log().to(whole.device)
    bias = plan.shorten(whole, 0.0)
    return bias if before is None else torch.cat([before, bias[:, before.shape[1] :]], dim=1)


class Calibration(LayerRun):
    """One call whose LLM adds a bias to the logits of merged tokens.

    Args:
        family: the model's adapter.
        bias: (B, S') float32, one for every token of the shortened prompt, what a cache holds included. What is
            generated after it has none.

    Raises:
        ValueError: see ``check_calibrated``.
    """

    def __init__(self, family: Family, bias: Tensor) -> None:
        super().__init__()
        check_calibrated(family)
        model = language_model(family)
        self.layers = model.layers
        self.bias = bias
        self._sources = _sources(self.layers, getattr(model.config, "layer_types", None) or ())
        self._ends: dict[int, tuple[int, int]] = {}
        self._made: list[tuple[Any, tuple[int, int, int], Tensor]] = []

    def through(self, number: int, forward: Callable[..., Any], hidden: Tensor, inputs: Mapping[str, Any]) -> Any:
        """One layer's forward, with the bias in its mask."""
        if number == 0:
            self._made.clear()
            self._ends.clear()
            self._require_known(hidden, inputs)
        mask, queries = inputs.get("attention_mask"), hidden.shape[-2]
        seen, first = self._reach(number, cache_in(inputs), queries)
        place = (seen, first, queries)
        for known, where, made in self._made:  # the layers of a kind share their mask
            if known is mask and where == place and made.device == hidden.device:
                return forward(hidden, **{**inputs, "attention_mask": made})
        made = self._mask(mask, hidden, seen, first)
        self._made.append((mask, place, made))
        return forward(hidden, **{**inputs, "attention_mask": made})

    def _reach(self, number: int, cache: Any, queries: int) -> tuple[int, int]:
        """How many tokens came before the queries of a layer, and the column of the first whose key it reads.

        A layer that reads another's keys sees all of them, also where stock gives it the last queries alone
        (Gemma 4 since some transformers after 5.19); the cache knows nothing of it.
        """
        source = self._sources[number]
        if source == number:
            seen, first = _extent(cache, number, queries)
            self._ends[number] = seen + queries, first
        end, first = self._ends[source]
        whole = self._ends[0][0]
        if end != whole:
            raise RuntimeError(
                f"calibrate expected all layers of the LLM to see {whole} tokens as the first does, and layer {number} "
                f"sees {end}: such layers are not known to it. Leave it out"
            )
        return end - queries, first

    def _require_known(self, hidden: Tensor, inputs: Mapping[str, Any]) -> None:
        rows = hidden.shape[-3]
        if rows % len(self.bias):
            raise RuntimeError(
                f"calibrate expected the {len(self.bias)} prompts of the call, got {rows} rows: this way to generate "
                "is not known to it. Leave it out"
            )
        if getattr(cache_in(inputs), "is_compileable", False):
            raise ValueError(
                "calibrate works with dynamic caches, not with static ones: leave cache_implementation out, or "
                "calibrate"
            )
        layer = self.layers[0]
        if getattr(layer, "gradient_checkpointing", False) and layer.training and torch.is_grad_enabled():
            raise ValueError(
                "calibrate does not go with gradient checkpointing, which runs the layers once more when the call is "
                "over: model.gradient_checkpointing_disable(), or leave calibrate out"
            )

    def _mask(self, mask: Tensor | None, hidden: Tensor, seen: int, first: int) -> Tensor:
        """(B, 1, q, k) to be added to the logits of k keys, the first of which is the prompt's column ``first``.

        Args:
            mask: what the layer is called with.
            hidden: (..., B, q, D); Gemma 3n has several streams of them.
            seen: how many tokens came before these q.
            first: see above.
        """
        rows, queries = hidden.shape[-3:-1]
        keys = seen + queries - first
        if mask is None:  # the kernel would see to it itself
            place = torch.arange(keys, device=hidden.device) + first
            mask = (place <= torch.arange(queries, device=hidden.device)[:, None] + seen)[None, None]
        if mask.ndim != 4 or mask.shape[-1] != keys:
            raise RuntimeError(
                f"calibrate expected a mask over {keys} keys, got {tuple(mask.shape)}: this way to generate is not "
                "known to it. Leave it out"
            )
        bias = self.bias.to(hidden.device)
        bias = pad(bias, (0, max(0, first + keys - bias.shape[1])))[:, first : first + keys]
        bias = bias.repeat_interleave(rows // len(bias), dim=0)[:, None, None].to(hidden.dtype)
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, torch.finfo(hidden.dtype).min)
        return mask + bias


def _sources(layers: Sequence[Any], kinds: Sequence[str]) -> list[int]:
    """Of every layer, the number of that whose keys and values it reads: its own, or, where the last layers share what
    earlier ones give (``num_kv_shared_layers``), the last one of its kind that has its own."""
    own: dict[str, int] = {}
    found = []
    for number, layer in enumerate(layers):
        kind = kinds[number] if kinds else ""
        if not getattr(getattr(layer, "self_attn", None), "is_kv_shared_layer", False):
            own[kind] = number
        found.append(own[kind])
    return found


def _extent(cache: Any, layer: int, queries: int) -> tuple[int, int]:
    """How many tokens a layer has seen before these, and the column of the first that it still holds."""
    if cache is None:
        return 0, 0
    sizes_of = cache.get_mask_sizes
    # Until 5.6 it is told which places the queries have, of which it counts how many there are.
    counted = "query_length" in inspect.signature(sizes_of).parameters
    keys, first = sizes_of(queries if counted else torch.arange(queries, device="cpu"), layer)
    return int(keys) + int(first) - queries, int(first)
