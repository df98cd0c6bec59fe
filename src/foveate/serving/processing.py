"""In the API server: what a request keeps, the identity that follows from it, and the shorter prompt.

The mixins go in front of whatever vLLM uses for a model (``mixed``), and call it for all that is not theirs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from cachetools import LRUCache
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from foveate import __version__
from foveate.models.base import Family
from foveate.options import Options
from foveate.pixels import Pixels, resized
from foveate.serving import hooks
from foveate.serving.family import family_of
from foveate.serving.image_request import FIELDS, LAYOUT, ImageRequest, pack
from foveate.serving.metrics import Metrics
from foveate.serving.picture_cache import PictureCache
from foveate.serving.policy import AS_IT_IS, CONFIG_KEY, Policy, Wish
from foveate.serving.requests import guiding_texts, refuse_unserved, require_encoded
from foveate.serving.towers import Batches
from foveate.tokens import Keep
from foveate.turns import Turns, turns_of

REQUESTS = "_foveate_requests"
"""Where a request's ``ImageRequest``s travel through vLLM's processing, which hands keyword arguments along."""
PROFILE = "_foveate_profile"
"""Marks the inputs that vLLM measures its memory with."""
SIZES = 1 << 16
"""Images whose number of tokens before pruning is known."""


def mixed(mixin: type, made: object) -> Any:
    """The class of something that vLLM made, with a mixin in front of it."""
    return type(f"Foveate{type(made).__name__}", (mixin, type(made)), {})


class InfoMixin:
    """What vLLM asks about a model before there is any input."""

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

    def get_supported_mm_limits(self: Any) -> Mapping[str, int | None]:
        """Images only: a video would go through unpruned. Named with none allowed, as Qwen3-VL's code needs it."""
        stock = super().get_supported_mm_limits()  # type: ignore[misc]
        return {name: limit if name == "image" else 0 for name, limit in stock.items()}

    def get_mm_max_tokens_per_item(self: Any, seq_len: int, mm_counts: Mapping[str, int]) -> Any:
        """What an image holds at most: at the largest budget that a request may ask for."""
        found = super().get_mm_max_tokens_per_item(seq_len, mm_counts)  # type: ignore[misc]
        if found is None:
            return None  # vLLM counts the tokens of a dummy image, which the processor has shortened
        most = Keep(self.foveate.max_keep)
        return {name: most.budget(tokens) for name, tokens in found.items() if name == "image"}


class ProcessorMixin:
    """Gives every image of a request what is asked about it, an identity that covers it, and fewer placeholders."""

    info: Any
    batches: ClassVar[Batches]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        policy: Policy = self.info.foveate
        self.pictures = PictureCache(policy.image_cache_mib << 20)
        self.metrics = Metrics.of_process(policy)
        # Tokens of an image before pruning and after, by identity: vLLM's processor cache keeps the prompt alone.
        self._sizes: LRUCache[str, tuple[int, int]] = LRUCache(SIZES)
        self._lock = threading.Lock()

    def get_dummy_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The worst case to measure memory with: the largest budget, a long question, nothing remembered."""
        inputs = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        length = kwargs.get("seq_len", args[0] if args else 1)
        return dataclasses.replace(
            inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, PROFILE: int(length)}
        )

    def apply(self: Any, inputs: Any, timing_ctx: Any) -> Any:
        """vLLM's whole processing of one request.

        Raises:
            ValueError: what is asked for cannot be done; vLLM's server answers it with status 400.
        """
        policy: Policy = self.info.foveate
        profile = inputs.hf_processor_mm_kwargs.get(PROFILE)
        wish = policy.wish(inputs.hf_processor_mm_kwargs.get(CONFIG_KEY))
        inputs = hooks.without(inputs, CONFIG_KEY, PROFILE)
        if profile is None:
            refuse_unserved(inputs, policy, self.info.ctx.get_mm_config().media_io_kwargs)
        images = inputs.mm_data_items.get("image")
        if not images:
            return super().apply(inputs, timing_ctx)  # type: ignore[misc]
        inputs, gone = self._recall(inputs)
        count = len(images)
        if profile is not None:
            wish = Wish(wish.method, Keep(policy.max_keep))
        crops = wish.crops
        Options(crops=crops).check(self.info.family)
        pruner = policy.pruner(wish.method, wish.keep.value)
        if not pruner.reads_text and (crops is None or not crops.reads_text):
            texts: Sequence[tuple[int, ...]] = [()] * count
        elif profile is not None:
            texts = [(0,) * profile] * count
        else:
            prompt = self.batches.written(self, inputs.prompt, count)
            texts = guiding_texts(prompt, count, pruner, self.info.family, self.info.turns, required=pruner.reads_text)
        hashes = [""] * count if profile is not None else super()._get_mm_hashes(inputs)["image"]  # type: ignore[misc]
        if profile is None and wish.pixels != AS_IT_IS:
            # A UUID says nothing of the size, and features are cached by this name too.
            hashes = [hooks.digest(image=base, pixels=wish.pixels.value) for base in hashes]
            inputs = self._resized(inputs, wish.pixels)
        method = policy.names.index(wish.method)
        requests = [
            ImageRequest(text, wish.keep, method, base, crops) for text, base in zip(texts, hashes, strict=True)
        ]
        inputs = dataclasses.replace(
            inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, REQUESTS: requests}
        )
        try:
            result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        except ValueError as error:
            if not gone:
                raise
            raise ValueError(
                f"image {', '.join(map(repr, gone))} came as a UUID alone, and this server does not remember the "
                f"picture (it keeps {self.pictures.capacity >> 20} MiB of them in each API server process): send the "
                "picture again with its UUID. Under pruning a new question about a picture needs its pixels once more"
            ) from error
        if profile is None:
            with self._lock:
                counted = [self._sizes.get(identity) for identity in result["mm_hashes"]["image"]]
            self.metrics.count([one for one in counted if one is not None])
        return result

    def _recall(self: Any, inputs: Any) -> tuple[Any, list[str]]:
        """Puts remembered pictures in place of those that came as a UUID alone, and remembers new ones.

        Returns:
            The inputs, and the UUIDs whose pictures are gone: vLLM may still know the answer to an equal request.
        """
        uuids = (inputs.mm_uuid_items or {}).get("image")
        if uuids is None or all(uuid is None for uuid in uuids):
            return inputs, []
        images = inputs.mm_data_items["image"]
        pictures = [images.get(place) for place in range(len(images))]
        gone = []
        for place, (uuid, picture) in enumerate(zip(uuids, pictures, strict=True)):
            if picture is None and uuid is not None:
                pictures[place] = self.pictures.get(uuid)
                if pictures[place] is None:
                    gone.append(uuid)
            elif uuid is not None:
                self.pictures.put(uuid, picture)
        items = self.info.parse_mm_data({"image": pictures}, validate=False)
        return dataclasses.replace(inputs, mm_data_items=items), gone

    def _resized(self: Any, inputs: Any, pixels: Pixels) -> Any:
        """The same with every picture that is there at its size."""
        images = inputs.mm_data_items["image"]
        pictures = [images.get(place) for place in range(len(images))]
        found = [None if picture is None else resized(picture, pixels) for picture in pictures]
        items = self.info.parse_mm_data({"image": found}, validate=False)
        return dataclasses.replace(inputs, mm_data_items=items)

    def _get_mm_hashes(self: Any, inputs: Any) -> Any:
        """One string is an image's identity in vLLM's processor cache, encoder cache and KV blocks."""
        requests: Sequence[ImageRequest] | None = inputs.hf_processor_mm_kwargs.get(REQUESTS)
        if requests is None:
            return super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {"image": [self._identity(one) for one in requests]}

    def _identity(self: Any, request: ImageRequest) -> str:
        policy: Policy = self.info.foveate
        pruner = policy.pruner(policy.names[request.method], request.keep.value)
        crops = {} if request.crops is None else {"crops": str(request.crops)}
        return hooks.digest(
            **crops,
            foveate=__version__,
            image=request.picture,
            text=list(request.text),
            method=pruner.name,
            options=repr(pruner),  # a dataclass: all of its options, keep among them
        )

    def _get_cache_missing_processor_kwargs(self: Any, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        kwargs = dict(super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached))  # type: ignore[misc]
        if REQUESTS in kwargs:
            known = zip(kwargs[REQUESTS], mm_is_cached["image"], strict=True)
            kwargs[REQUESTS] = [request for request, is_known in known if not is_known]
        return kwargs

    def _apply_hf_processor_main(self: Any, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        requests, left = _split(hf_kwargs)
        found = super()._apply_hf_processor_main(mm_items, left)  # type: ignore[misc]
        if requests:
            # A UUID stands in place of the hash where one came with the picture: any text.
            hashed = [one.picture and hooks.digest(image=one.picture) for one in requests]
            packed = [dataclasses.replace(one, picture=name) for one, name in zip(requests, hashed, strict=True)]
            found.update(pack(packed))
        return found

    def _get_mm_fields_config(self: Any, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        requests, left = _split(hf_processor_mm_kwargs)
        found = dict(super()._get_mm_fields_config(hf_inputs, left))  # type: ignore[misc]
        if requests:
            found.update({name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in FIELDS})
        return found

    def _get_prompt_updates(
        self: Any, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        requests, left = _split(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, left, out_mm_kwargs)  # type: ignore[misc]
        if not requests:
            return updates
        told = mm_items, requests, out_mm_kwargs
        return [self._shortened(one, *told) if one.modality == "image" else one for one in updates]

    def _shortened(self: Any, update: Any, mm_items: Any, requests: Sequence[ImageRequest], out: Any) -> Any:
        if not isinstance(update, PromptReplacement):
            raise RuntimeError(f"foveate cannot shorten a {type(update).__name__} of this model's processor")
        stock = update.replacement

        def replacement(place: int) -> Any:
            details = stock(place) if callable(stock) else stock
            if not isinstance(details, PromptUpdateDetails):
                details = PromptUpdateDetails.from_seq(list(details))
            if details.is_embed is None:
                mask = torch.ones(len(details.full), dtype=torch.bool, device="cpu")
            else:
                mask = details.is_embed(details.full)
            woven = self.batches.woven
            if not woven and int((mask.int().diff(prepend=mask.new_zeros(1).int()) == 1).sum()) > 1:
                raise ValueError(
                    "a picture was written into the prompt as several (pan and scan), which are not pruned each by "
                    "itself here: leave do_pan_and_scan off, or send the crops as pictures"
                )
            size = mm_items["image"].get_image_size(place)
            total = int(mask.sum())
            patches = total - self.info.family.newlines((size.height, size.width))
            keep = requests[place].keep
            self.info.foveate.require_allowed(keep, patches)
            kept = keep.budget(patches)
            require_encoded(requests[place], self.info.family, (size.height, size.width), patches)
            kept = total if kept == patches else kept
            with self._lock:
                self._sizes[self._identity(requests[place])] = (total, kept)
            if woven:
                ids = torch.tensor(details.full, dtype=torch.int64, device="cpu")
                out["image"][place][LAYOUT].data = ids.masked_fill(mask, -1)
            stays = (~mask | (mask.cumsum(0) <= kept)).tolist()
            full = [token for token, stay in zip(details.full, stays, strict=True) if stay]
            # Marks that come back among the features are embeddings like these.
            return dataclasses.replace(details, full=full, is_embed=None if woven else details.is_embed)

        return dataclasses.replace(update, replacement=replacement)


def _split(kwargs: Mapping[str, object]) -> tuple[Sequence[ImageRequest], dict[str, object]]:
    left = dict(kwargs)
    requests: Any = left.pop(REQUESTS, ())
    return requests, left
