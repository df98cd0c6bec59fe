"""One pruned call: encode, select, shorten, the model's own generate or forward, restore."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.arguments import (
    PromptStreamer,
    bind,
    refuse_generation,
    require_arguments,
    restore,
    shift_lengths,
    wanted_logits,
)
from foveate.delivery import Delivery, delivering
from foveate.functional import require_finite
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Kept, Kind, Request, Rope
from foveate.options import Options
from foveate.prompts import (
    CachedPrompt,
    ImageSpan,
    Plan,
    cached_length,
    is_remembered,
    locate_images,
    make_plan,
    recall,
    remember,
    text_after,
    turn_mask,
)
from foveate.pruners.base import Pruner
from foveate.tokens import Selection, TextTokens

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Shortened:
    """A batch of prompts after pruning.

    Args:
        plan: how they were shortened.
        rows: by kind, what was kept of every row's images.
        touched: False when nothing was dropped and the inputs may go on as they came.
    """

    plan: Plan
    rows: Mapping[Kind, Sequence[Sequence[Kept]]]
    touched: bool


class Call:
    """One call of ``generate`` or ``forward`` under a pruner.

    Args:
        family: the model's adapter.
        pruner: which tokens stay; its ``selections`` are those of this call afterwards.
        options: see ``foveate.attach``.
        features: by kind, the model's own ``get_image_features`` and ``get_video_features``.
        images: the call's images when they are encoded already (a session); the pixels are not encoded then.

    After ``generate``, ``prompt_tokens`` is the length of the prompt that reached the LLM (padding included), and
    ``visual_tokens`` how many of every row's were visual.
    """

    # Inputs with one entry per prompt token, and what padding gets in them.
    SEQUENCE_INPUTS: Mapping[str, int] = {
        "token_type_ids": 0,
        "mm_token_type_ids": 0,
        "labels": IGNORED_LABEL,
    }

    def __init__(
        self,
        family: Family,
        pruner: Pruner,
        options: Options,
        features: Mapping[Kind, Callable[..., Any]],
        images: Sequence[EncodedImage] | None = None,
    ) -> None:
        self.family = family
        self.model = family.model
        self.pruner = pruner
        self.options = options
        self.positions = options.positions or family.positions[0]
        self.features = features
        self.images = images
        self.prompt_tokens = 0
        self.visual_tokens: list[int] = []

    @torch.no_grad()
    def generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``model.generate``: the same arguments, the same returns, the prompt as the user knows it in front."""
        arguments = bind(original, args, kwargs)
        key = "inputs" if arguments.get("inputs") is not None else "input_ids"
        if self._is_text_only(arguments, arguments.get(key)):
            return self._bare(original, arguments)
        ids: Tensor = arguments[key]
        refuse_generation(self.model, arguments)
        pad = self._pad_id(arguments.get("generation_config"))
        mask = arguments.get("attention_mask")
        short = self._shorten(arguments, ids, self._infer_mask(ids) if mask is None else mask)
        plan = short.plan
        if short.touched:
            positions = self._positions(arguments, plan, from_mask=True)
            arguments.update(self._short_inputs(arguments, ids, plan, pad, key) | positions)
            dropped = ids.shape[1] - arguments[key].shape[1]
            arguments.update(shift_lengths(self.model.generation_config, arguments, dropped))
        short_ids = arguments[key]
        self.prompt_tokens = short_ids.shape[1]
        self.visual_tokens = [
            sum(len(one.features) for kept in short.rows.values() for one in kept[row]) for row in range(len(ids))
        ]
        if arguments.get("streamer") is not None and short.touched:
            arguments["streamer"] = PromptStreamer(arguments["streamer"], ids)
        with delivering(self._delivery(short, arguments)):
            result = original(**arguments)
        self._remember(arguments.get("past_key_values"), plan)
        if torch.is_tensor(result):
            return restore(result, ids, short_ids)
        self._remember(getattr(result, "past_key_values", None), plan)
        result.sequences = restore(result.sequences, ids, short_ids)
        return result

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``model.forward``: logits are given for every token of the long prompt; a dropped token's are those of the
        nearest kept one before it. Hidden states and attentions are those of the short prompt.
        """
        arguments = bind(original, args, kwargs)
        if self._is_text_only(arguments, arguments.get("input_ids")):
            return self._bare(original, arguments)
        ids: Tensor = arguments["input_ids"]
        mask = arguments.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(ids)
        short = self._shorten(arguments, ids, mask, only_new=cached_length(arguments.get("past_key_values")) > 0)
        plan = short.plan
        if not short.touched:
            with delivering(self._delivery(short, arguments)):
                output = original(**arguments)
            self._remember(getattr(output, "past_key_values", None), plan)
            return output
        wanted_dict = arguments.pop("return_dict", None)
        wanted_dict = self.model.config.return_dict if wanted_dict is None else wanted_dict
        positions = self._positions(arguments, plan, from_mask=False)
        arguments.update(self._short_inputs(arguments, ids, plan, self._pad_id(None), "input_ids") | positions)
        nearest = plan.expand()[:, -ids.shape[1] :]
        nearest, arguments["logits_to_keep"] = wanted_logits(
            nearest, arguments.get("logits_to_keep", 0), arguments["input_ids"].shape[1]
        )
        arguments["return_dict"] = True
        require_arguments(original, arguments)
        with delivering(self._delivery(short, arguments)):
            output = original(**arguments)
        if output.logits.shape[1] != arguments["logits_to_keep"]:
            raise ValueError(
                f"{type(self.model).__name__}.forward gave logits for {output.logits.shape[1]} tokens where "
                f"logits_to_keep={arguments['logits_to_keep']} asked for that many: use generate, or no pruner"
            )
        rows = torch.arange(len(nearest), device=output.logits.device)[:, None]
        output.logits = output.logits[rows, nearest.to(output.logits.device)]
        self._remember(getattr(output, "past_key_values", None), plan)
        return output if wanted_dict else output.to_tuple()

    def _is_text_only(self, arguments: Mapping[str, Any], ids: Tensor | None) -> bool:
        """Whether the bare model answers this call; raises where pruning would silently not happen."""
        if arguments.get("inputs_embeds") is not None:
            raise ValueError(
                "inputs_embeds hide which tokens are visual, so they cannot be pruned: pass input_ids and pixel_values"
            )
        if arguments.get("mm_encoder_outputs"):
            raise ValueError(
                "mm_encoder_outputs bring features without the saliency they were made with: pass pixel_values, or use "
                "foveate.look(...) to encode once and ask often"
            )
        self.family.refuse(arguments)
        if any(self.family.has(arguments, kind) for kind in self.features) or self.images:
            if ids is None:
                raise ValueError("images came without input_ids: pass all that the processor returned")
            return False
        if is_remembered(arguments.get("past_key_values")):
            return False
        if ids is not None:
            for kind, token in self.family.placeholder_ids.items():
                if bool((ids == token).any()):
                    raise ValueError(
                        f"the prompt holds {kind} placeholders, but no {self.family.inputs_of(kind)[0]} came with it, "
                        "and no cache that a pruned call filled: pass all that the processor returned"
                    )
        return True

    def _bare(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        self.pruner.record([])
        with delivering(Delivery(self.family, {}, {})):
            return original(**arguments)

    def _delivery(self, short: Shortened, arguments: Mapping[str, Any]) -> Delivery:
        given = [kind for kind in short.rows if self.family.has(arguments, kind)]
        return Delivery(
            self.family,
            {kind: short.rows[kind] for kind in given},
            {kind: self.family.copies(arguments, kind) for kind in given},
            # Where positions have three dimensions, a row of plain ones goes along for the mask code.
            fill_mask=self.positions == "original" and "compact" in self.family.positions,
        )

    def _shorten(
        self, arguments: Mapping[str, Any], given: Tensor, given_mask: Tensor, only_new: bool = False
    ) -> Shortened:
        """Encodes, selects and plans.

        Args:
            arguments: the call's.
            given: (B, S) its ids; with a cache, the whole prompt or only what is not cached.
            given_mask: (B, S) or, for the whole prompt, wider.
            only_new: ``given`` is never the whole prompt (a bare ``forward`` does not cut it).
        """
        ids, mask, cached = self._long_prompt(arguments, given.cpu(), given_mask, only_new)
        start = 0 if cached is None else cached.long_length
        fresh = mask.clone()
        fresh[:, :start] = False
        located = self._locate(arguments, ids, fresh, cached is not None)
        text = fresh & (ids >= 0) & ~self.family.marks(ids)
        labels = arguments.get("labels")
        answer = torch.zeros_like(text)
        if labels is not None:
            answer[:, -labels.shape[1] :] = labels.cpu() != IGNORED_LABEL
        with torch.no_grad():
            selections = [
                self.pruner.select(image.tokens, self._text_tokens(span, ids, text, answer)) for image, span in located
            ]
        rows: dict[Kind, list[list[Kept]]] = {kind: [[] for _ in range(ids.shape[0])] for kind in self.features}
        repeats = torch.ones_like(ids)
        for (image, span), selection, indices in zip(located, selections, _fetch(selections), strict=True):
            kept = image.keep(selection, indices, self.options.newlines)
            rows[image.kind][span.row].append(kept)
            repeats[span.row, span.positions] = kept.repeats
        self.pruner.record(selections)
        whole = all(selection.weights is None for selection in selections)
        if cached is None and whole and bool((repeats == 1).all()):
            everything = torch.where(mask, torch.arange(ids.shape[1]), -1)
            return Shortened(Plan(everything, ids, mask), rows, touched=False)
        return Shortened(make_plan(ids, mask, repeats, cached), rows, touched=True)

    def _locate(
        self, arguments: Mapping[str, Any], ids: Tensor, fresh: Tensor, continued: bool
    ) -> list[tuple[EncodedImage, ImageSpan]]:
        """Every image and video with its place, in prompt order."""
        images = self._encode(arguments, torch.where(fresh, ids, -1))
        located: list[tuple[EncodedImage, ImageSpan]] = []
        for kind, token in self.family.placeholder_ids.items():
            ours = [image for image in images if image.kind == kind]
            try:
                spans = locate_images(ids, fresh, token, [image.placeholders for image in ours], kind)
            except ValueError as error:
                hint = " With past_key_values, give only the images that are new." if continued else ""
                raise ValueError(f"{error}{hint}") from None
            located += zip(ours, spans, strict=True)
        return sorted(located, key=lambda pair: (pair[1].row, int(pair[1].positions[0])))

    def _encode(self, arguments: Mapping[str, Any], prompt: Tensor) -> list[EncodedImage]:
        if self.images is not None:
            return list(self.images)
        images: list[EncodedImage] = []
        for kind, features in self.features.items():
            if arguments.get(self.family.inputs_of(kind)[0]) is None:
                continue
            encode = self.family.encode if kind == "image" else self.family.encode_videos
            images += encode(
                arguments,
                Request(
                    features,
                    saliency=self.pruner.reads_saliency,
                    keys=self.pruner.reads_keys,
                    layout=self.options.layout,
                    prompt=prompt,
                ),
            )
        return images

    def _long_prompt(
        self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, only_new: bool
    ) -> tuple[Tensor, Tensor, CachedPrompt | None]:
        """The whole prompt as the user knows it, cached part included: ids, mask (both on the CPU), and that part."""
        if mask.ndim != 2 or mask.shape[0] != ids.shape[0] or mask.shape[1] < ids.shape[1]:
            raise ValueError(
                f"attention_mask of shape {tuple(mask.shape)} does not go with input_ids of shape {tuple(ids.shape)}: "
                "pruning needs the plain (batch, tokens) mask of the processor"
            )
        cache = arguments.get("past_key_values")
        cached = recall(cache)
        length = cached_length(cache)
        if not length:
            if mask.shape != ids.shape:
                raise ValueError(
                    f"attention_mask covers {mask.shape[1]} tokens and input_ids {ids.shape[1]}, without a cache "
                    f"between them"
                )
            return ids, mask.cpu().bool(), None
        whole = mask.cpu().bool()
        if mask.shape[1] == ids.shape[1] and only_new:  # no mask was given: everything cached counts
            before = torch.ones(ids.shape[0], cached.long_length if cached else length, dtype=torch.bool)
            if cached is not None:
                before[:, : cached.ids.shape[1]] = cached.mask
            whole = torch.cat([before, whole], dim=1)
        missing = whole.shape[1] - ids.shape[1]
        if cached is None:
            if bool((ids[:, : max(0, length - missing)] == self.family.image_token_id).any()):
                raise ValueError(
                    "past_key_values holds an image that was not pruned by an attached call: fill the cache under "
                    "the pruner too, or start without it"
                )
            index = torch.arange(length).expand(ids.shape[0], -1)
            cached = CachedPrompt(index, index, whole[:, :length], length)
        elif cached.index.shape[0] != ids.shape[0]:
            raise ValueError(
                f"the cache was filled by {cached.index.shape[0]} rows and {ids.shape[0]} came with it: a cache of "
                "beams or of another batch cannot be continued under pruning"
            )
        elif missing == 0 and not torch.equal(ids[:, : cached.ids.shape[1]], cached.ids):
            raise ValueError("these input_ids do not begin with the prompt that filled past_key_values")
        if missing:
            unknown = torch.full((ids.shape[0], missing), -1, dtype=ids.dtype)
            known = min(missing, cached.ids.shape[1])
            unknown[:, :known] = cached.ids[:, :known]
            ids = torch.cat([unknown, ids], dim=1)
        return ids, whole, cached

    def _text_tokens(self, span: ImageSpan, ids: Tensor, text: Tensor, answer: Tensor) -> TextTokens | None:
        if not self.pruner.reads_text:
            return None
        columns = text_after(span, text, answer)
        if not len(columns):
            raise ValueError(
                f"{self.pruner.name} reads the question, and row {span.row} of the batch has no text: add the "
                "question to the prompt, or use a method that does not read it (saliency, uniform, random)"
            )
        if columns[0] < span.positions[-1]:
            warnings.warn(
                f"no text follows the image in row {span.row}: the text before it guides the selection",
                stacklevel=2,
            )
        words = ids[span.row, columns]
        turn = torch.ones(len(words), dtype=torch.bool)
        if self.pruner.text_span == "turn":
            ends = self.options.turn_end or self.family.turn_end_ids
            within = turn_mask(words.tolist(), ends)
            if within is None:
                raise ValueError(
                    f"text_span='turn': none of the turn ends {list(ends)} follows the image in row {span.row}. Give "
                    "the ids that end a user's turn: attach(..., turn_end=foveate.turn_end(processor))"
                )
            turn = torch.tensor(within)
        special = torch.isin(words, torch.tensor(sorted(self.family.special_token_ids), dtype=words.dtype))
        return TextTokens(self.family.embed(words), turn, special)

    def _short_inputs(
        self, arguments: Mapping[str, Any], ids: Tensor, plan: Plan, pad: int, key: str
    ) -> dict[str, Any]:
        mask = arguments.get("attention_mask")
        long_mask = plan.mask.to(ids.device, torch.int64 if mask is None else mask.dtype)
        short: dict[str, Any] = {key: plan.short_ids(ids, pad), "attention_mask": plan.short_mask(long_mask)}
        for name, fill in self.SEQUENCE_INPUTS.items():
            if arguments.get(name) is not None:
                short[name] = plan.short_ids(arguments[name], fill)
        return short

    def _positions(self, arguments: Mapping[str, Any], plan: Plan, *, from_mask: bool) -> dict[str, Any]:
        given = arguments.get("position_ids")
        if self.positions == "compact":
            if given is not None:
                raise ValueError(
                    "position_ids were given, and positions='compact' renumbers the prompt: leave them out, or "
                    "attach with positions='original'"
                )
            return {}
        if given is not None:
            if given.ndim == 3 and given.shape[0] == 4:  # the first of four is for the mask code
                spatial = plan.short_ids(given[1:], 0)
                text = plan.text_positions()[None, :, -spatial.shape[-1] :].to(given)
                return {"position_ids": torch.cat([text, spatial])}
            return {"position_ids": plan.short_ids(given, 0)}
        device = next(arguments[name].device for name in ("inputs", "input_ids") if arguments.get(name) is not None)
        rope = self._rope(arguments, plan)
        if rope is None:
            positions = plan.positions(plan.index.device, from_mask=from_mask)
            if not from_mask:
                positions = positions + self.family.first_position
        else:
            counted = (plan.index >= 0).sum(dim=1)
            self.family.base.rope_deltas = (rope.following - counted)[:, None].to(device)
            positions = torch.cat([plan.text_positions()[None], plan.shorten(rope.positions, 0)])
        return {"position_ids": (positions if from_mask else positions[..., plan.start :]).to(device)}

    def _rope(self, arguments: Mapping[str, Any], plan: Plan) -> Rope | None:
        """Positions of the whole long prompt; those of what a cache holds are not asked for and left 0."""
        types = arguments.get("mm_token_type_ids")
        types = None if types is None else types.cpu()[:, -(plan.length - plan.long_start) :]
        fresh = slice(plan.long_start, None)
        rope = self.family.rope(arguments, plan.ids[:, fresh], plan.mask[:, fresh], types)
        if rope is None or not plan.long_start:
            return rope
        first = (plan.index[:, : plan.start] >= 0).sum(dim=1) if plan.following is None else plan.following
        before = torch.zeros(3, len(plan.ids), plan.long_start, dtype=torch.int64)
        return Rope(torch.cat([before, rope.positions + first[:, None]], dim=-1), rope.following + first)

    def _remember(self, cache: Any, plan: Plan) -> None:
        deltas = getattr(self.family.base, "rope_deltas", None)
        following = None
        if deltas is not None and len(deltas) >= len(plan.ids):  # once per beam, in rows of the batch
            following = (plan.index >= 0).sum(dim=1) + deltas.cpu().flatten()[:: len(deltas) // len(plan.ids)]
        remember(cache, plan, following)

    def _pad_id(self, generation_config: Any) -> int:
        for config in (generation_config, self.model.generation_config, self.model.config.get_text_config()):
            pad = getattr(config, "pad_token_id", None)
            if pad is not None and pad != self.family.image_token_id:
                return int(pad)
        return 0

    def _infer_mask(self, ids: Tensor) -> Tensor:
        """As generate does: padding is what equals a pad token that is no EOS."""
        pad = getattr(self.model.generation_config, "pad_token_id", None)
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        if pad is None or pad in (eos if isinstance(eos, (list, tuple)) else [eos]) or not bool((ids == pad).any()):
            return torch.ones_like(ids)
        return (ids != pad).to(ids.dtype)


def _fetch(selections: Sequence[Selection]) -> list[Tensor]:
    """Every selection's indices on the CPU, in one transfer, after checking that all scores are numbers."""
    if not selections:
        return []
    scores = {f"{name} of image {n}": one.scores[name] for n, one in enumerate(selections) for name in one.scores}
    try:
        require_finite(**scores)
    except ValueError as error:
        raise ValueError(
            f"{error}. The vision tower overflowed or its weights are broken: try dtype=torch.bfloat16 or float32"
        ) from None
    together = torch.cat([selection.indices for selection in selections]).cpu()
    return list(together.split([len(selection) for selection in selections]))
