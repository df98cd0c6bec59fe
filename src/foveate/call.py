"""One pruned call: encode, select, shorten, the model's own generate or forward, restore."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.arguments import (
    bind,
    cache_in,
    cache_of,
    require_arguments,
    setting,
    shift_lengths,
    shorten_per_token,
    wanted_logits,
)
from foveate.attention import recording
from foveate.calibration import Calibration, bias_of
from foveate.delivery import Delivery, delivering
from foveate.llm_layers import watching
from foveate.models.stock import is_stock
from foveate.positions import following, position_ids
from foveate.prompts import Plan, Prompt, cached_length, make_plan, remember, whole_plan
from foveate.pruned_call import PrunedCall, Rows, require_scores_finite
from foveate.pruners.base import Pruner
from foveate.stopwatch import stage
from foveate.tokens import Selection
from foveate.views import PromptView


@dataclass(frozen=True, eq=False)
class Shortened:
    """A batch of prompts after pruning.

    Args:
        plan: how they were shortened.
        rows: what was kept.
        touched: False when nothing was dropped and the inputs may go on as they came.
        bias: (B, S') float32: what is added to the attention logits of every token; None: nothing.
    """

    plan: Plan
    rows: Rows
    touched: bool
    bias: Tensor | None = None


class Call(PrunedCall[Pruner]):
    """A call under a method that prunes before the LLM: the model's own code runs on a shorter prompt."""

    def run(self, original: Callable[..., Any], arguments: dict[str, Any], key: str, prompt: Prompt) -> Any:
        """``generate`` on the shortened prompt; what comes back has the prompt as the user knows it in front."""
        ids: Tensor = arguments[key]
        with stage("selection"):
            short = self._shorten(arguments, prompt)
            plan = short.plan
            self._spend(arguments)
            if short.touched:
                arguments.update(self._short_arguments(arguments, ids, plan, key, from_mask=True))
                dropped = ids.shape[1] - arguments[key].shape[1]
                arguments.update(shift_lengths(self.model.generation_config, arguments, dropped))
        short_ids = arguments[key]
        self.prompt_tokens = short_ids.shape[1]
        self.visual_tokens = [
            sum(len(one.features) for kept in short.rows.values() for one in kept[row]) for row in range(len(ids))
        ]
        view = self.view(arguments, ids, short_ids)
        with delivering(self._delivery(arguments, short, view)), self._calibrating(short), stage("prefill"):
            result = original(**arguments)
        for cache in (cache_in(arguments), cache_of(result)):
            remember(cache, plan, following(self.family, plan), short.bias)
        if torch.is_tensor(result):
            return view.long(result)
        if hasattr(result, "sequences"):  # a custom_generate may return what it likes
            result.sequences = view.long(result.sequences)
        return result

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``model.forward``: logits are given for every token of the long prompt; a dropped token's are those of the
        nearest kept one before it. Hidden states and attentions are those of the short prompt; of what the vision tower
        gave, there are the features alone.
        """
        arguments = self.family.named(bind(original, args, kwargs))
        if self.is_text_only(arguments, arguments.get("input_ids")):
            return self.bare(original, arguments)
        ids: Tensor = arguments["input_ids"]
        mask = arguments.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        only_new = cached_length(cache_in(arguments)) > 0
        short = self._shorten(arguments, self.whole_prompt(arguments, ids, mask, only_new))
        plan = short.plan
        self._spend(arguments)
        if not short.touched:
            with delivering(self._delivery(arguments, short, None)):
                output = original(**arguments)
            remember(cache_of(output), plan, following(self.family, plan))
            return output
        wanted_dict = arguments.pop("return_dict", None)
        wanted_dict = self.model.config.return_dict if wanted_dict is None else wanted_dict
        arguments.update(self._short_arguments(arguments, ids, plan, "input_ids", from_mask=False))
        nearest = plan.expand()[:, -ids.shape[1] :]
        count = arguments["input_ids"].shape[1]
        if is_stock(original) and "logits_to_keep" not in inspect.signature(original).parameters:
            arguments.pop("logits_to_keep", None)  # it would pass over it, and gives all of them
        else:
            nearest, count = wanted_logits(nearest, arguments.get("logits_to_keep", 0), count)
            arguments["logits_to_keep"] = count
        arguments["return_dict"] = True
        require_arguments(original, arguments)
        with delivering(self._delivery(arguments, short, None)), self._calibrating(short):
            output = original(**arguments)
        if output.logits.shape[1] != count:
            raise ValueError(
                f"{type(self.model).__name__}.forward gave logits for {output.logits.shape[1]} tokens where "
                f"logits_to_keep={count} asked for that many: use generate, or no pruner"
            )
        where = output.logits.device
        output.logits = output.logits[torch.arange(len(nearest), device=where)[:, None], nearest.to(where)]
        remember(cache_of(output), plan, following(self.family, plan), short.bias)
        return output if wanted_dict else output.to_tuple()

    def choose(self, arguments: Mapping[str, Any], prompt: Prompt) -> list[Selection]:
        """What would be kept of every image, and nothing else done."""
        self._shorten(arguments, prompt)
        return self.selections

    def _shorten(self, arguments: Mapping[str, Any], prompt: Prompt) -> Shortened:
        """Encodes, selects and plans."""
        located = self.locate(arguments, prompt)
        routed = self.options.routed
        reads = self.pruner.reads_text or (routed is not None and routed.reads_text)
        guide = self.guide(arguments, prompt) if reads else None
        located = self.route(located, guide)
        with torch.no_grad():
            chosen = [
                self.pruner.select(
                    image.tokens,
                    self.text_tokens(guide, image, span) if guide is not None and self.pruner.reads_text else None,
                )
                for image, span in located
            ]
        repeats = torch.ones_like(prompt.ids)
        found, fetched = [], _fetch(chosen)
        self.selections = [image.in_whole(one) for (image, _), one in zip(located, chosen, strict=True)]
        for (image, span), selection, indices in zip(located, chosen, fetched, strict=True):
            found.append(image.keep(selection, indices, self.options.newlines))
            repeats[span.row, span.positions] = found[-1].repeats
        rows = self.rows_of(located, found, len(prompt.ids))
        whole = all(selection.weights is None for selection in chosen)
        whole = whole and not (self._apart and len(prompt.ids) > 1)
        if prompt.cached is None and whole and bool((repeats == 1).all()):
            return Shortened(whole_plan(prompt), rows, touched=False)
        plan = make_plan(prompt, repeats)
        bias = bias_of(located, chosen, fetched, prompt, plan, float(self.options.calibrate))
        return Shortened(plan, rows, touched=True, bias=bias)

    def _spend(self, arguments: dict[str, Any]) -> None:
        """Takes out of a call what encoding its images has done already; stock's output, where it is not, goes too."""
        for name in self.family.spent:
            if arguments.get(name) is not None:
                arguments[name] = None
                self.stock.clear()

    @contextmanager
    def _calibrating(self, short: Shortened) -> Iterator[None]:
        if short.bias is None:
            yield
            return
        run = Calibration(self.family, short.bias)
        with watching(self.model, run.layers), recording(run):
            yield

    def _delivery(self, arguments: Mapping[str, Any], short: Shortened, view: PromptView | None) -> Delivery:
        # Where positions have three dimensions, a row of plain ones goes along for the mask code.
        fill_mask = self._positions == "original" and "compact" in self.family.positions
        return self.delivery(arguments, short.rows, view, whole=not short.touched, fill_mask=fill_mask)

    @property
    def _positions(self) -> Any:
        return self.options.positions or self.family.positions[0]

    @property
    def _apart(self) -> bool:
        """Whether prompts are numbered otherwise than stock does: each of a session's is answered as if alone."""
        return self.views is not None and self.family.numbers_through

    def _short_arguments(
        self, arguments: Mapping[str, Any], ids: Tensor, plan: Plan, key: str, *, from_mask: bool
    ) -> dict[str, Any]:
        """What of a call's arguments goes by the prompt, for the short one."""
        mask = arguments.get("attention_mask")
        long_mask = plan.mask.to(ids.device, torch.int64 if mask is None else mask.dtype)
        pixels = [name for kind in self.features for name in self.family.inputs_of(kind)]
        short: dict[str, Any] = shorten_per_token(arguments, plan, ids, pixels, self.family.per_token)
        short |= {key: plan.short_ids(ids, self._pad_id(arguments)), "attention_mask": plan.short_mask(long_mask)}
        positions = position_ids(
            self.family, self._positions, arguments, plan, ids.device, from_mask=from_mask, apart=self._apart
        )
        return short if positions is None else short | {"position_ids": positions}

    def _pad_id(self, arguments: Mapping[str, Any]) -> int:
        text = self.model.config.get_text_config()
        for pad in (setting(self.model, arguments, "pad_token_id"), getattr(text, "pad_token_id", None)):
            if pad is not None and pad != self.family.image_token_id:
                return int(pad)
        return 0


def _fetch(selections: Sequence[Selection]) -> list[Tensor]:
    """Every selection's indices on the CPU, in one transfer, after checking that all scores are numbers."""
    if not selections:
        return []
    require_scores_finite(selections)
    together = torch.cat([selection.indices for selection in selections]).cpu()
    return list(together.split([len(selection) for selection in selections]))
