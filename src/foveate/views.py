"""What the caller's criteria, processors and streamers see while the model reads a shortened prompt: their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True, eq=False)
class PromptView:
    """Shows sequences that begin with the shortened prompt as if they began with the one that the caller passed.

    Args:
        ids: (B, S) int64, the prompt as the caller passed it.
        short_ids: (B, S') int64, the one that the model reads; ``ids`` itself where nothing is dropped.
        outside: what the caller's code runs in: its own calls of the model are no part of the running one.
    """

    ids: Tensor
    short_ids: Tensor
    outside: Callable[[], AbstractContextManager[None]]

    @property
    def dropped(self) -> int:
        """S - S'."""
        return self.ids.shape[1] - self.short_ids.shape[1]

    def long(self, sequences: Tensor) -> Tensor:
        """(R, s) to (R, s + dropped); R is a multiple of B, a prompt's beams or returns stand together."""
        if self.short_ids is self.ids:
            return sequences
        prompt = self.ids.to(sequences.device, sequences.dtype)
        if len(sequences) != len(prompt):
            prompt = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0)
        return torch.cat([prompt, sequences[:, self.short_ids.shape[1] :]], dim=1)

    def lengthened(self, config: Any) -> Any:
        """A generation config whose lengths count the long prompt."""
        config = copy.copy(config)
        for name in ("max_length", "min_length"):
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name) + self.dropped)
        return config

    def processors(self, made: Callable[..., LogitsProcessorList], arguments: dict[str, Any]) -> LogitsProcessorList:
        """All logits processors of a call, those that ``generate`` makes among them: made for the long prompt and
        shown it.

        Args:
            made: the model's own ``_get_logits_processor``.
            arguments: what ``generate`` calls it with.
        """
        arguments["generation_config"] = self.lengthened(arguments["generation_config"])
        if arguments.get("input_ids_seq_length") is not None:
            arguments["input_ids_seq_length"] += self.dropped
        if arguments.get("encoder_input_ids") is not None:
            arguments["encoder_input_ids"] = self.ids
        return SeeingProcessors(made(**arguments), self)

    def criteria(self, made: Callable[..., StoppingCriteriaList], arguments: dict[str, Any]) -> StoppingCriteriaList:
        """All stopping criteria of a call, likewise; ``made`` is the model's own ``_get_stopping_criteria``."""
        arguments["generation_config"] = self.lengthened(arguments["generation_config"])
        return SeeingCriteria(made(**arguments), self)


class SeeingProcessor(LogitsProcessor):
    """All logits processors of a call as one, shown the long prompt."""

    def __init__(self, processors: LogitsProcessorList, view: PromptView) -> None:
        self.processors = processors
        self.view = view

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.all(input_ids, scores)

    def all(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Likewise, with what else a decoding loop hands to its processors."""
        with self.view.outside():
            long: Any = self.view.long(input_ids)
            return self.processors(long, scores, **kwargs)


class SeeingProcessors(LogitsProcessorList):
    """The same as a list: of one, so that whoever takes its members to hand them on (to an assistant) takes the view
    along."""

    def __init__(self, processors: LogitsProcessorList, view: PromptView) -> None:
        self.whole = SeeingProcessor(processors, view)
        super().__init__([self.whole] if processors else [])

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return self.whole.all(input_ids, scores, **kwargs) if self else scores


class SeeingCriteria(StoppingCriteriaList):
    """Stopping criteria that are shown the long prompt."""

    def __init__(self, criteria: StoppingCriteriaList, view: PromptView) -> None:
        super().__init__(criteria)
        self.view = view

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        with self.view.outside():
            return super().__call__(self.view.long(input_ids), scores, **kwargs)

    @property
    def max_length(self) -> int | None:
        """Of the sequences that ``generate`` itself works on."""
        length = super().max_length
        return None if length is None else length - self.view.dropped


class SeeingStreamer(BaseStreamer):
    """Passes a streamer on, with the prompt that the caller passed in place of the shortened one."""

    def __init__(self, streamer: BaseStreamer, view: PromptView) -> None:
        self.streamer = streamer
        self.view = view
        self.begun = False

    def put(self, value: Tensor) -> None:
        if not self.begun and self.view.short_ids is not self.view.ids:
            value = self.view.ids.cpu()
        self.begun = True
        with self.view.outside():
            self.streamer.put(value)

    def end(self) -> None:
        with self.view.outside():
            self.streamer.end()
