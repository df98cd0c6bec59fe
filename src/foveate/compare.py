"""The same question with all visual tokens and with the kept ones, measured side by side on the caller's machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image

from foveate.crops import Crops, encoded_tokens
from foveate.inputs import process
from foveate.models import family_for
from foveate.pruners import Method
from foveate.tokens import Selection


@dataclass(frozen=True)
class Side:
    """One way of answering.

    Args:
        answer: the model's, greedy.
        encoded_tokens: patch tokens that the vision tower encoded: all, or with ``crops`` those of the base views and
            of the crops that were chosen.
        visual_tokens: visual tokens that reached the LLM, newlines included.
        prompt_tokens: length of the prompt that reached the LLM.
        new_tokens: length of the answer, tokens, the end token included.
        prefill_ms: time to the first token: vision tower, selection, prefill. Median.
        total_ms: time to the whole answer. Median.
        kv_cache_mib: size of the KV cache after prefill, measured on its tensors, MiB.
    """

    answer: str
    encoded_tokens: int
    visual_tokens: int
    prompt_tokens: int
    new_tokens: int
    prefill_ms: float
    total_ms: float
    kv_cache_mib: float


@dataclass(frozen=True)
class Comparison:
    """All tokens beside the kept ones.

    Args:
        full: the stock model with nothing attached.
        kept: the same model under the pruner.
        selections: one per image.
        repeats: how many timings each median is of.
        crops: how the kept side chose the crops that it encoded; None: all were.
    """

    full: Side
    kept: Side
    selections: Sequence[Selection] = field(repr=False)
    repeats: int
    crops: Crops | None = None

    @property
    def prefill_speedup(self) -> float:
        """How many times faster the first token comes."""
        return self.full.prefill_ms / self.kept.prefill_ms

    @property
    def total_speedup(self) -> float:
        """How many times faster the whole answer comes."""
        return self.full.total_ms / self.kept.total_ms


def compare(
    model: Any,
    processor: Any,
    images: Sequence[Image],
    prompt: str,
    pruner: Method,
    *,
    max_new_tokens: int = 32,
    repeats: int = 3,
    crops: Crops | float | int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Comparison:
    """Answers with the stock model and with the pruned one, and measures both.

    Each repeat times both sides one after the other, so that a machine that grows slower or faster meanwhile treats
    them alike; one round before them warms up and gives the answers. Loading and the processor's work are not timed.

    Args:
        model, processor: a stock transformers model of a known family, and its processor.
        images: PIL images, in the order of the prompt's image marks.
        prompt: for the processor, with one image mark per image.
        pruner: which tokens stay.
        max_new_tokens: longest answer, tokens.
        repeats: timings per side, >= 1.
        crops: of the pruned side, see ``foveate.attach``; the stock model encodes all.
        progress: called with the number of timed rounds done and of those there are.
        options: the others of ``foveate.attach``, of the pruned side.

    Raises:
        ValueError: ``repeats`` < 1, or what the model or the pruner refuses.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    image_token = family_for(model).image_token_id
    inputs = process(processor, model, [prompt], images)
    length = inputs["input_ids"].shape[1]
    visual = int((inputs["input_ids"] == image_token).sum())

    def run(limit: int, attached: Method | None) -> tuple[float, Any]:
        with nullcontext() if attached is None else attached(model, crops=crops, **options):
            _settle(model)
            start = time.perf_counter()
            output = model.generate(
                **inputs, max_new_tokens=limit, do_sample=False, num_beams=1, return_dict_in_generate=True
            )
            _settle(model)
            return (time.perf_counter() - start) * 1e3, output

    sides = (None, pruner)
    answers, caches = [], []
    for side in sides:
        _, output = run(max_new_tokens, side)
        answers.append(output.sequences[0, length:])
        caches.append(run(1, side)[1].past_key_values)
    selections = list(pruner.selections)
    encoded = sum(one.total for one in selections), sum(map(encoded_tokens, selections))
    timings: list[list[tuple[float, float]]] = [[], []]
    for done in range(repeats):
        for number, side in enumerate(sides):
            timings[number].append((run(1, side)[0], run(max_new_tokens, side)[0]))
        if progress is not None:
            progress(done + 1, repeats)

    def measured(number: int) -> Side:
        prompt_tokens = int(caches[number].get_seq_length())
        return Side(
            answer=processor.tokenizer.decode(answers[number], skip_special_tokens=True).strip(),
            encoded_tokens=encoded[number],
            visual_tokens=visual - (length - prompt_tokens),
            prompt_tokens=prompt_tokens,
            new_tokens=len(answers[number]),
            prefill_ms=statistics.median(prefill for prefill, _ in timings[number]),
            total_ms=statistics.median(total for _, total in timings[number]),
            kv_cache_mib=cache_bytes(caches[number]) / 2**20,
        )

    return Comparison(measured(0), measured(1), selections, repeats, Crops.of(crops))


def cache_bytes(cache: Any) -> int:
    """Bytes of a KV cache's key and value tensors, as they are in memory."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))


def _settle(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
