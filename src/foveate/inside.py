"""Calls under a method that prunes inside the LLM: layers are watched, and their inputs shortened at its stages.

Elsewhere the prompt is shortened before ``generate``, which is right in every mode. Here the layers themselves must be
hooked, and from within them a prefill cannot be told from a chunk, a candidate or a beam: only greedy decoding and
sampling with a dynamic cache are taken, and every other mode is refused.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from foveate.arguments import bind, refuse_generation, setting
from foveate.attention import Recorder, open_recorder, recording, tapped_config, untraced
from foveate.call import Call, Shortened
from foveate.delivery import Delivery, delivering
from foveate.functional import Merge, Weights, attention_of_queries, merged, require_finite
from foveate.models.base import Family
from foveate.models.encoded import NEWLINE, EncodedImage, Kept, Kind
from foveate.options import Options
from foveate.patches import Patch, Patches, lock_of
from foveate.prompts import ImageSpan, Plan, cached_length, mark_uneven, text_after
from foveate.pruners.base import Choice, Method
from foveate.pruners.inside import InsidePruner
from foveate.tokens import Selection

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl")
"""Families whose tests these methods pass."""
IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
_WATCHED = "_foveate_watched"


def make_call(
    family: Family,
    pruner: Method,
    options: Options,
    features: Mapping[Kind, Callable[..., Any]],
    images: Sequence[EncodedImage] | None = None,
) -> Call:
    """The call that fits the method; arguments as for ``Call``."""
    kind = InsideCall if isinstance(pruner, InsidePruner) else Call
    return kind(family, pruner, options, features, images)  # type: ignore[arg-type]


def check_inside(family: Family, pruner: Method, options: Options) -> None:
    """Raises ValueError where ``pruner`` prunes inside the LLM and this model or these options do not allow it."""
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
    for option, refused in asked.items():
        if refused:
            raise ValueError(
                f"{name} prunes inside the LLM and has no {option}={getattr(options, option)!r}: its first layers read "
                "the stock prompt, and tokens keep their positions. Leave the option out"
            )
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
    cache = arguments.get("past_key_values")
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


class InsideCall(Call):
    """One call under a method that prunes inside the LLM. Arguments as for ``Call``."""

    pruner: InsidePruner  # type: ignore[assignment]

    @torch.no_grad()
    def generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``model.generate``: the same arguments, the same returns. The prompt is the stock one.

        A returned cache holds fewer tokens the deeper the layer and cannot be continued.
        """
        check_inside(self.family, self.pruner, self.options)
        arguments = bind(original, args, kwargs)
        key = "inputs" if arguments.get("inputs") is not None else "input_ids"
        if self._is_text_only(arguments, arguments.get(key)):
            return self._bare(original, arguments)
        ids: Tensor = arguments[key]
        refuse_generation(self.model, arguments)
        mask = arguments.get("attention_mask")
        mask = self._infer_mask(ids) if mask is None else mask
        long_ids, long_mask, _ = self._long_prompt(arguments, ids.cpu(), mask, only_new=False)
        refuse_modes(self.model, arguments, self.pruner.name)
        if bool((long_mask[:, :-1] & ~long_mask[:, 1:]).any()):
            raise ValueError(
                f"{self.pruner.name} reads the attention of the prompt's last token, and here padding stands behind "
                "or within a prompt: pad on the left (padding_side='left')"
            )
        located = self._locate(arguments, long_ids, long_mask, False)
        watched = [self._watch(image, span, long_ids, long_mask) for image, span in located]
        implementation = self.family.base.language_model.config._attn_implementation or "sdpa"
        run = Run(self.pruner, language_layers(self.family), implementation, long_mask, watched)
        self.prompt_tokens = ids.shape[1]
        self.visual_tokens = [
            sum(len(one.span.positions) for one in watched if one.span.row == row) for row in range(len(ids))
        ]
        with (
            watching(self.model, run.layers),
            recording(run),
            delivering(self._whole(arguments, located, long_ids, long_mask)),
        ):
            result = original(**arguments)
        selections = [one.selection() for one in watched]
        finite = {f"{name} of image {n}": one.scores[name] for n, one in enumerate(selections) for name in one.scores}
        require_finite(**finite)
        self.pruner.record(selections, [one.in_layers for one in watched])
        for cache in (arguments.get("past_key_values"), getattr(result, "past_key_values", None)):
            mark_uneven(cache, self.pruner.name)
        return result

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``model.forward``, for text alone.

        Raises:
            ValueError: the prompt has images.
        """
        arguments = bind(original, args, kwargs)
        if self._is_text_only(arguments, arguments.get("input_ids")):
            return self._bare(original, arguments)
        raise ValueError(
            f"{self.pruner.name} prunes inside the LLM and works with model.generate only: a direct forward wants "
            "logits, and with labels a loss, of tokens that are gone. Use generate, or a method that prunes before the "
            "LLM"
        )

    def _watch(self, image: EncodedImage, span: ImageSpan, ids: Tensor, mask: Tensor) -> Watched:
        assert image.slots is not None  # only layouts that are refused have none
        schedule = self.pruner.schedule(len(image.tokens), len(language_layers(self.family)))
        queries = None
        if self.pruner.reads_text and schedule[-1] < len(image.tokens):
            text, none = mask & ~self.family.marks(ids), torch.zeros_like(mask)
            columns = text_after(span, text, none)
            if not len(columns) or columns[0] < span.positions[-1]:
                raise ValueError(
                    f"{self.pruner.name} reads what the text after an image attends to, and none follows the image in "
                    f"row {span.row} of the batch: put the question behind it, or use another method"
                )
            tokens = self._text_tokens(span, ids, text, none)
            assert tokens is not None  # the method reads text
            queries = columns[self.pruner.raters(image.tokens, tokens).cpu()]
        return Watched(image, span, schedule, queries)

    def _whole(
        self,
        arguments: Mapping[str, Any],
        located: Sequence[tuple[EncodedImage, ImageSpan]],
        ids: Tensor,
        mask: Tensor,
    ) -> Delivery:
        """All features, delivered as the model's own, so that the vision tower does not run again."""
        rows: dict[Kind, list[list[Kept]]] = {kind: [[] for _ in range(len(ids))] for kind in self.features}
        for image, span in located:
            every = torch.arange(len(image.tokens))
            rows[image.kind][span.row].append(image.keep(Selection(every, image.tokens.geometry), every, "drop"))
        index = torch.where(mask, torch.arange(ids.shape[1]), -1)
        return self._delivery(Shortened(Plan(index, ids, mask), rows, touched=False), arguments)


class Watched:
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


class Run(Recorder):
    """One ``generate`` under a method that prunes inside the LLM.

    Args:
        pruner: the method.
        layers: the LLM's.
        implementation: of their attention.
        mask: (B, S) bool on the CPU, the prompt's.
        images: all images of the batch.
    """

    def __init__(
        self, pruner: InsidePruner, layers: Sequence[Any], implementation: str, mask: Tensor, images: Sequence[Watched]
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


@contextmanager
def watching(model: Any, layers: Sequence[Any]) -> Iterator[None]:
    """Hooks on every layer of the LLM, shared by all calls that run at once; inert in threads without a ``Run``."""
    with lock_of(model):
        patches: Patches | None = getattr(model, _WATCHED, None)
        if patches is None:
            hooks = [
                patch
                for number, layer in enumerate(layers)
                for patch in (
                    Patch(layer, "forward", _through(layer, number)),
                    Patch(layer.self_attn, "config", tapped_config(layer.self_attn)),
                )
            ]
            patches = Patches(hooks)
            patches.add(Patch(model, _WATCHED, patches))
        patches.acquire()
    try:
        yield
    finally:
        with lock_of(model):
            patches.release()


def _through(layer: nn.Module, number: int) -> Callable[..., Any]:
    forward = layer.forward

    @functools.wraps(forward)
    def through(hidden_states: Tensor, **inputs: Any) -> Any:
        run = open_recorder()
        if not isinstance(run, Run) or run.layers[number] is not layer:
            return forward(hidden_states, **inputs)
        return run.through(number, forward, hidden_states, inputs)

    return untraced(through)
