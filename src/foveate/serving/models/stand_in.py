"""What the classes have in common that vLLM loads in place of its own; with pruning off, they make vLLM's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate.serving import hooks
from foveate.serving.policy import CONFIG_KEY, Policy

# What needs a tested vLLM is imported where pruning is on: with it off, an untested one is served as if this package
# were not there.


def is_on(model_config: Any) -> bool:
    """Whether a model was started with the options."""
    return getattr(model_config.hf_config, CONFIG_KEY, None) is not None


def stands_for(stock: type, batches: str) -> Callable[[type], type]:
    """Registers the processing of a stand-in: the stock one, with the mixins in front when pruning is on.

    Args:
        stock: vLLM's class.
        batches: the class in ``towers`` that knows its arguments.
    """

    def processing_info(ctx: Any) -> Any:
        made = hooks.factories_of(stock).info(ctx)
        if not is_on(ctx.model_config):
            return made
        from foveate.serving import info, processing, towers

        hooks.require_version()
        kind = processing.mixed(info.InfoMixin, made)
        kind.batches = getattr(towers, batches)
        return kind(ctx)

    def processor(info: Any, dummy_inputs: Any) -> Any:
        made = hooks.factories_of(stock).processor(info, dummy_inputs)
        if not is_on(info.ctx.model_config):
            return made
        from foveate.serving import processing, towers

        reason = hooks.unseen(info.ctx.model_config)
        if reason is not None:
            raise ValueError(f"foveate: {reason}")
        kind = processing.mixed(processing.ProcessorMixin, made)
        # What the worker would refuse is refused here, before there is an engine. Not when the info is made: vLLM takes
        # a ValueError from there for a model without pictures, and goes on.
        kind.batches = getattr(towers, batches)(info.family)
        return kind(info, dummy_inputs)

    def dummy_inputs(info: Any) -> Any:
        return hooks.factories_of(stock).dummy_inputs(info)

    def named(stand_in: type) -> type:
        stand_in.stock, stand_in.batches = stock, batches  # type: ignore[attr-defined]
        register = MULTIMODAL_REGISTRY.register_processor
        return register(processor, info=processing_info, dummy_inputs=dummy_inputs)(stand_in)

    return named


class Pruned:
    """In front of a vLLM model: its images come back with the tokens that were chosen.

    Args:
        vllm_config, prefix: as vLLM makes its models.

    Raises:
        ValueError: a configuration that cannot be pruned faithfully; the message says what to change.
        RuntimeError: a vLLM that was not tested.
    """

    stock: ClassVar[Any]
    batches: ClassVar[str]
    rope: ClassVar[bool] = False

    def __new__(cls, *, vllm_config: Any, prefix: str = "") -> Any:
        # A subclass of a stand-in is vLLM's own conversion to another task.
        if "stock" in vars(cls) and not is_on(vllm_config.model_config):
            return cls.stock(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.foveate: Any = None
        policy = Policy.of(vllm_config.model_config.hf_config)
        if policy is None:
            return
        from foveate.serving import embedder, towers

        hooks.require_version()
        reason = hooks.unhonoured(vllm_config, rope=self.rope)
        if reason is not None:
            raise ValueError(f"foveate: {reason}")
        most = hooks.encoder_budget(vllm_config)
        batches = getattr(towers, self.batches)
        self.foveate = embedder.ImageEmbedder(self, policy, batches, most, vllm_config.device_config.device)
        if not hooks.hides_steps(vllm_config):
            self.foveate.counters.times(self, "language_seconds")

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """As the stock model; of images that ask for it, the chosen tokens alone."""
        stock = super().embed_multimodal  # type: ignore[misc]
        return stock(**kwargs) if self.foveate is None else self.foveate.embed(stock, kwargs)

    def load_weights(self, weights: Any) -> Any:
        """As the stock model; what was encoded with other weights is forgotten."""
        if self.foveate is not None:
            self.foveate.forget()
        return super().load_weights(weights)  # type: ignore[misc]


class PrunedRope(Pruned):
    """In front of a model with M-RoPE: kept tokens stay where they were, and so does the text after them."""

    rope: ClassVar[bool] = True

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """(3, S) positions of the shortened prompt, and what generated tokens add to their place in it.

        An image's tokens are chosen here, when its request comes in, since vLLM wants the positions before it encodes.
        The features are in the cache when it does.
        """
        stock = super().get_mrope_input_positions  # type: ignore[misc]
        if self.foveate is None:
            return stock(input_tokens, mm_features)
        from foveate.serving import film_hooks

        features = sorted(mm_features, key=lambda one: one.mm_position.offset)
        layouts = [self._layout(feature) for feature in features]
        positions, _ = stock(*film_hooks.long_prompt(input_tokens, features, layouts))
        stays = np.ones(positions.shape[1], dtype=bool)
        longer = 0
        for feature, layout in zip(features, layouts, strict=True):
            start = feature.mm_position.offset + longer
            longer += len(layout) - feature.mm_position.length
            if feature.mm_position.length < len(layout):
                tokens = np.flatnonzero(np.asarray(layout) == self.foveate.placeholder(feature.modality)) + start
                stays[tokens] = False
                chosen = self.foveate.indices(
                    super().embed_multimodal,  # type: ignore[misc]
                    feature.identifier, feature.data, feature.modality,
                )  # fmt: skip
                stays[tokens[chosen.numpy()]] = True
        kept = positions[:, torch.from_numpy(stays)]
        return kept, int(positions.max()) + 1 - len(input_tokens)

    def _layout(self, feature: Any) -> list[int]:
        """The ids of an image or a video when all of it is kept."""
        from foveate.serving.image_request import LAYOUT, field

        kind = feature.modality
        token = self.foveate.placeholder(kind)
        layout = feature.data[field(LAYOUT, kind)].data.tolist()
        if layout:
            return [token if one < 0 else one for one in layout]
        side = self.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
        return [token] * (int(feature.data[f"{kind}_grid_thw"].data.prod()) // side**2)
