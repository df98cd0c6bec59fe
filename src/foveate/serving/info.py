"""In the API server: what vLLM asks about a model before there is any input. The mixin goes in front of vLLM's own."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from foveate.models.base import Family
from foveate.serving import hooks
from foveate.serving.family import family_of
from foveate.serving.image_request import KINDS
from foveate.serving.policy import Policy
from foveate.serving.requests import unserved
from foveate.serving.towers import Batches, Films
from foveate.tokens import Keep
from foveate.turns import Turns, turns_of


class InfoMixin:
    """What vLLM asks about a model before there is any input."""

    batches: ClassVar[type[Batches]]

    @functools.cached_property
    def foveate(self: Any) -> Policy:
        """How this server prunes."""
        policy = hooks.policy_of(self.ctx.model_config)
        assert policy is not None  # or the stock info would have been made
        return policy

    @functools.cached_property
    def family(self: Any) -> Family:
        """The adapter that knows the model's prompts; the same one as with transformers, of a model without weights."""
        return family_of(self.get_hf_config())

    @functools.cached_property
    def turns(self: Any) -> Turns:
        """How user turns are written, as the chat template says; without one, they end with the model's end tokens."""
        processor = self.get_hf_processor()
        if self.foveate.chat_template is not None:
            processor = copy.copy(processor)  # vLLM has one for all
            processor.chat_template = self.foveate.chat_template
        try:
            turns = turns_of(processor)
        except ValueError:
            turns = Turns(ends=self.family.turn_end_ids)
        return dataclasses.replace(turns, special=turns.special | self.family.special_token_ids)

    @functools.cached_property
    def films(self: Any) -> Films | None:
        """How the family's videos are laid out; None where they are not served."""
        return None if self.batches.films is None else self.batches.films(self.family)

    def get_supported_mm_limits(self: Any) -> Mapping[str, int | None]:
        """What is pruned; of what would go through unpruned there may be none. Named, as Qwen3-VL's code needs it."""
        stock = super().get_supported_mm_limits()  # type: ignore[misc]
        served = {"image"} if self.batches.films is None else {"image", "video"}
        return {name: limit if name in served else 0 for name, limit in stock.items()}

    def validate_num_items(self: Any, modality: str, num_items: int) -> None:
        """As vLLM's own; of videos that are not served it says why, and what to do."""
        if modality == "video" and num_items and self.films is None:
            raise ValueError(unserved("video", ("image",)))
        super().validate_num_items(modality, num_items)  # type: ignore[misc]

    def get_mm_max_tokens_per_item(self: Any, seq_len: int, mm_counts: Mapping[str, int]) -> Any:
        """What an image or a video holds at most: at the largest budget that a request may ask for."""
        found = super().get_mm_max_tokens_per_item(seq_len, mm_counts)  # type: ignore[misc]
        if found is None:
            return None  # vLLM counts the tokens of a dummy image, which the processor has shortened
        most = Keep(self.foveate.max_keep)
        most_of = {name: most.budget(tokens) for name, tokens in found.items() if name in KINDS}
        if self.films is None:
            most_of.pop("video", None)
        elif "video" in most_of:  # what is written between its frames comes back among its features
            most_of["video"] += min(self.films.labels(self), seq_len)
        return most_of
