"""An answer while it comes: its words, and what was measured on the way."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import TextStreamer

from foveate.compare import cache_bytes
from foveate.looking_ahead import Pointing
from foveate.tokens import Selection


@dataclass(frozen=True, eq=False)
class Chosen:
    """What would be kept, before anything is asked.

    Args:
        selections: one per picture; none where the method chooses within the language model.
        pointings: one per picture, where there are selections.
    """

    selections: Sequence[Selection] = ()
    pointings: Sequence[Pointing] = ()


@dataclass(frozen=True, eq=False)
class Told:
    """An answer as far as it has come.

    Args:
        text: so far.
        tokens: of the answer, so far.
        prefill_ms: from the question to the first token: tokenizing, selection and prefill; None: not yet.
        total_ms: to the last token so far.
        cache_mib: the KV cache after prefill; None: not yet, or it cannot be told.
        done: whether this is all.
        visual_tokens, prompt_tokens: that reached the language model, known when it is done.
        chosen: what was kept, known when it is done.
    """

    text: str = ""
    tokens: int = 0
    prefill_ms: float | None = None
    total_ms: float = 0.0
    cache_mib: float | None = None
    done: bool = False
    visual_tokens: int = 0
    prompt_tokens: int = 0
    chosen: Chosen = field(default_factory=Chosen)


class Stop(StoppingCriteria):
    """Ends decoding once nobody waits for the answer."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device, dtype=torch.bool)


class Streamer(TextStreamer):
    """Tells the answer word by word, with what was measured on the way."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.told: queue.Queue[Told | BaseException] = queue.Queue()
        self.so_far = Told()
        self.began = 0.0

    def begin(self) -> None:
        """The clock runs."""
        self.began = time.perf_counter()

    def newest(self) -> Told | BaseException:
        """Waits for something to be told, and gives the last of it: a page that draws slower than the model writes does
        not fall behind."""
        told = self.told.get()
        while not self.told.empty():
            told = self.told.get()
        return told

    def see_cache(self, module: Any, inputs: Any, output: Any) -> None:
        """A forward hook: measures the first cache that there is."""
        cache = getattr(output, "past_key_values", None)
        if self.so_far.cache_mib is None and cache is not None:
            try:
                self.so_far = replace(self.so_far, cache_mib=cache_bytes(cache) / 2**20)
            except AttributeError:  # of a kind that holds something else than keys and values
                return

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            spent = (time.perf_counter() - self.began) * 1e3
            first = spent if self.so_far.prefill_ms is None else self.so_far.prefill_ms
            self.so_far = replace(self.so_far, tokens=self.so_far.tokens + 1, prefill_ms=first, total_ms=spent)
            self.told.put(self.so_far)
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.so_far = replace(self.so_far, text=self.so_far.text + text)
        self.told.put(self.so_far)
