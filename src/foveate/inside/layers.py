"""The LLM's layers under a method that prunes between them: their inputs are shortened at its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.functional import Merge, Weights, attention_of_queries, merged
from foveate.guiding import ImageSpan
from foveate.llm_layers import LayerRun
from foveate.models.encoded import NEWLINE, EncodedImage
from foveate.pruners.base import Choice
from foveate.pruners.inside import InsidePruner
from foveate.stopwatch import stage
from foveate.tokens import Selection


class ImageInLayers:
    """One image on its way through the layers.

    Args:
        image: encoded.
        span: where it stands in the prompt.
        schedule: how many of its patch tokens every layer holds.
        queries: (R,) int64 on the CPU: the columns of the tokens that rate it; None for the prompt's last.
    """

    def __init__(self, image: EncodedImage, span: ImageSpan, schedule: Sequence[int], queries: Tensor | None) -> None:
        assert image.slots is not None
        self.image = image
        self.span = span
        self.schedule = schedule
        device = image.tokens.features.device
        self.places = span.positions[image.slots >= 0]
        self.columns = self.places.to(device)
        self.newlines = span.positions[image.slots == NEWLINE]
        self.queries = None if queries is None else queries.to(device)
        self.alive = torch.arange(len(image.tokens), device=device)
        self.score: Tensor | None = None
        self.scores: dict[str, Tensor] = {}
        self.shares: Mapping[str, Tensor] = {}
        self.weights: Weights | None = None

    @property
    def in_layers(self) -> list[int]:
        """How many of its placeholders every layer holds."""
        total = len(self.image.tokens)
        others = len(self.span.positions) - total
        return [count + others - (len(self.newlines) if count < total else 0) for count in self.schedule]

    def left(self, device: torch.device) -> Tensor:
        """(n,) int64: the columns of the patch tokens that are left."""
        return self.columns.to(device)[self.alive.to(device)]

    def apply(self, choice: Choice, score: Tensor, layer: int) -> None:
        """Takes note of what a stage kept of the tokens that were left."""
        total, device = len(self.image.tokens), self.columns.device
        rated = torch.zeros(total, device=device).scatter(0, self.alive, score.to(device, torch.float32))
        self.scores[f"attention_after_{layer}"] = rated
        indices = choice.indices.to(device)
        if choice.weights is not None:
            before = Merge.picking(self.alive, total) if self.weights is None else self.weights
            self.weights = merged(choice.weights.to(device), before)
        elif self.weights is not None:
            self.weights = self.weights[indices]
        self.alive = self.alive[indices]
        self.shares = choice.shares

    def selection(self) -> Selection:
        """The last stage's."""
        return Selection(self.alive, self.image.tokens.geometry, self.scores, self.shares, self.weights)


@dataclass
class Arrangement:
    """The tokens that a run of layers holds of the prompt.

    Args:
        index: (B, S) int64: their columns in the prompt, ascending, -1 for padding, which stands on the left.
        padded: whether there is any.
    """

    index: Tensor
    padded: bool
    _ready: dict[str, Any] = field(default_factory=dict)

    def inputs(self, given: Mapping[str, Any], hidden: Tensor, steps: int, implementation: str) -> dict[str, Any]:
        """What a layer is called with in place of the whole prompt's mask and positions.

        Args:
            given: what the LLM calls it with.
            hidden: its (B, q, D) hidden states, gathered already.
            steps: tokens generated so far and read again; 0 in the prefill.
            implementation: of attention.
        """
        key = f"{steps} {hidden.device}"
        if key not in self._ready:  # made once for all layers of the run
            self._ready = {key: self._inputs(given, hidden, steps, implementation)}
        made: dict[str, Any] = self._ready[key]
        return {**given, **made}

    def _inputs(self, given: Mapping[str, Any], hidden: Tensor, steps: int, implementation: str) -> dict[str, Any]:
        index = self.index.to(hidden.device)
        made: dict[str, Any] = {"attention_mask": self._mask(index, hidden, steps, implementation)}
        if steps:
            return made
        if given.get("position_embeddings") is None:
            raise RuntimeError("this LLM calls its layers without position_embeddings: it cannot be pruned inside")

        def gathered(values: Tensor) -> Tensor:
            places = index.clamp(min=0).unsqueeze(-1).expand(*values.shape[:-3], *index.shape, values.shape[-1])
            return values.expand(*values.shape[:-3], len(index), *values.shape[-2:]).gather(-2, places)

        made["position_embeddings"] = tuple(gathered(values) for values in given["position_embeddings"])
        if given.get("position_ids") is not None:
            # Read by FlashAttention alone, which takes gaps for borders of packed sequences.
            made["position_ids"] = torch.arange(index.shape[1], device=index.device).expand(index.shape)
        return made

    def _mask(self, index: Tensor, hidden: Tensor, steps: int, implementation: str) -> Tensor | None:
        valid = torch.nn.functional.pad(index >= 0, (0, steps), value=True)
        if implementation != "eager" and not self.padded:
            return None
        if implementation.startswith("flash"):
            return valid
        keys = torch.arange(valid.shape[1], device=index.device)
        queries = keys[len(keys) - hidden.shape[1] :, None]
        # Padding sees itself: a row without any key would be NaN.
        allowed = ((keys <= queries) & valid[:, None] | (keys == queries))[:, None]
        if implementation == "sdpa":
            return allowed
        zero = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        return torch.where(allowed, zero, torch.finfo(hidden.dtype).min)


class PrunedLayers(LayerRun):
    """One ``generate`` under a method that prunes inside the LLM.

    Args:
        pruner: the method.
        layers: the LLM's.
        implementation: of their attention.
        mask: (B, S) bool on the CPU, the prompt's.
        images: all images of the batch.
    """

    def __init__(
        self,
        pruner: InsidePruner,
        layers: Sequence[Any],
        implementation: str,
        mask: Tensor,
        images: Sequence[ImageInLayers],
    ) -> None:
        super().__init__()
        self.pruner = pruner
        self.layers = layers
        self.implementation = implementation
        self.mask = mask
        self.images = images
        depths = range(1, len(layers))
        self.stages = {n for n in depths if any(one.schedule[n] < one.schedule[n - 1] for one in images)}
        self.prefilling = True
        self.steps = 0
        self.copies = 1
        self.whole: Arrangement | None = None
        self.held: list[Arrangement] = []

    def through(self, number: int, forward: Callable[..., Any], hidden: Tensor, inputs: Mapping[str, Any]) -> Any:
        """One layer's forward, on what it holds."""
        if number == 0:
            self._begin(hidden)
        if self.prefilling:
            assert self.whole is not None
            before = self.held[-1] if self.held else self.whole
            if number in self.stages:
                with stage("selection"):
                    hidden, before = self._cut(number, hidden, before)
            self.held.append(before)
        holds = self.held[number]
        if holds is not self.whole:
            inputs = holds.inputs(inputs, hidden, self.steps, self.implementation)
        if not self.prefilling:
            return forward(hidden, **inputs)
        self.at = self.layers[number].self_attn if number + 1 in self.stages else None
        try:
            output = forward(hidden, **inputs)
        finally:
            self.at = None
        self.prefilling = number + 1 < len(self.layers)
        return output

    def _begin(self, hidden: Tensor) -> None:
        rows, length = self.mask.shape
        if not self.prefilling:
            self.steps += 1
        expected = length if self.prefilling else 1
        if (self.held and self.prefilling) or hidden.shape[1] != expected or hidden.shape[0] % rows:
            raise RuntimeError(
                f"{self.pruner.name} prunes inside the LLM and expected {rows} prompts of {expected} tokens, got "
                f"{tuple(hidden.shape[:2])}: this way to generate is not known to it. Use a method that prunes before "
                "the LLM"
            )
        if self.prefilling:
            self.copies = hidden.shape[0] // rows  # num_return_sequences
            index = torch.where(self.mask, torch.arange(length), -1).to(hidden.device)
            self.whole = Arrangement(index.repeat_interleave(self.copies, dim=0), not bool(self.mask.all()))

    def note(self, query: Tensor, key: Tensor, scaling: float, mask: Tensor | None) -> None:
        """Rates every image's tokens that are left; of several copies of a prompt, the first is read."""
        with stage("selection"):
            self._rate(query, key, scaling)

    def _rate(self, query: Tensor, key: Tensor, scaling: float) -> None:
        index = self.held[-1].index.to(query.device)
        places = torch.arange(index.shape[1], device=index.device)
        for one in self.images:
            row = one.span.row * self.copies
            asked = places[-1:]
            if one.queries is not None:
                asked = torch.searchsorted(index[row], one.queries.to(index.device))
            allowed = (index[row] >= 0) & (places <= asked[:, None])
            rows = attention_of_queries(query[row].index_select(1, asked), key[row], scaling, allowed)
            one.score = rows.mean(dim=0)[torch.searchsorted(index[row], one.left(index.device))]

    def _cut(self, number: int, hidden: Tensor, before: Arrangement) -> tuple[Tensor, Arrangement]:
        """One stage: hidden states of what stays, and which that is."""
        device, index = hidden.device, before.index.to(hidden.device)
        stays = self.mask.clone()
        for one in self.images:
            stays[one.span.row, one.places] = False
            if one.schedule[number] < len(one.image.tokens):
                stays[one.span.row, one.newlines] = False
            if one.schedule[number] == one.schedule[number - 1]:
                continue
            assert one.score is not None  # the layer before was tapped
            row = one.span.row * self.copies
            places = torch.searchsorted(index[row], one.left(device))
            score = one.score.to(device)
            choice = self.pruner.cut(score, hidden[row, places], one.schedule[number])
            if choice.weights is not None:
                hidden = hidden.clone()
                for copy in range(row, row + self.copies):
                    hidden[copy, places[choice.indices]] = merged(choice.weights, hidden[copy, places])
            one.apply(choice, score, number)
        columns = []
        for row in range(len(self.mask)):
            parts = [one.left(device) for one in self.images if one.span.row == row]
            columns.append(torch.cat([stays[row].nonzero()[:, 0].to(device), *parts]).sort().values)
        width = max(map(len, columns))
        rows = [torch.nn.functional.pad(one, (width - len(one), 0), value=-1) for one in columns]
        after = torch.stack(rows).repeat_interleave(self.copies, dim=0)
        source = torch.searchsorted(index.contiguous(), after).clamp(max=index.shape[1] - 1)
        hidden = hidden.gather(1, source.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return hidden, Arrangement(after, any(len(one) < width for one in columns))
