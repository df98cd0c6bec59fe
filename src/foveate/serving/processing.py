"""In the API server: what a request keeps, the identity that follows from it, and the shorter prompt.

The mixins go in front of whatever vLLM uses for a model (``mixed``), and call it for all that is not theirs.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from foveate import __version__
from foveate.models.base import Family
from foveate.prompts import ImageSpan, text_after, turn_end, turn_mask
from foveate.pruners import Pruner
from foveate.serving import hooks
from foveate.serving.fields import FIELDS, Ask, pack
from foveate.serving.metrics import Metrics
from foveate.serving.outline import outline
from foveate.serving.policy import CONFIG_KEY, Policy, Wish
from foveate.serving.recent import Recent
from foveate.tokens import Keep

ASKS = "_foveate_asks"
"""Where the asks of a request's images travel through vLLM's processing, which hands keyword arguments along."""
PROFILE = "_foveate_profile"
"""Marks the inputs that vLLM measures its memory with."""


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
        return outline(self.get_hf_config())

    @functools.cached_property
    def turn_ends(self: Any) -> tuple[tuple[int, ...], ...]:
        """Token ids that end a user's turn: from the chat template, else the model's own end tokens."""
        try:
            return turn_end(self.get_hf_processor())
        except ValueError:
            return self.family.turn_end_ids

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


class Remembered:
    """Pictures that came with a UUID, for requests that bring the UUID alone; the oldest go first. For any thread.

    Args:
        capacity: bytes of decoded pixels.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._pictures: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, uuid: str, picture: Any) -> None:
        """Keeps a picture (Pillow's, an array or a tensor) if it fits at all."""
        size = _pixel_bytes(picture)
        with self._lock:
            self.used -= self._pictures.pop(uuid, (None, 0))[1]
            if size > self.capacity:
                return
            self._pictures[uuid] = (picture, size)
            self.used += size
            while self.used > self.capacity:
                self.used -= self._pictures.popitem(last=False)[1][1]

    def get(self, uuid: str) -> Any:
        """The picture, None when it has gone."""
        with self._lock:
            if uuid not in self._pictures:
                return None
            self._pictures.move_to_end(uuid)
            return self._pictures[uuid][0]


def _pixel_bytes(picture: Any) -> int:
    if hasattr(picture, "getbands"):
        return int(picture.width * picture.height * len(picture.getbands()))
    return int(picture.nbytes)


class ProcessorMixin:
    """Gives every image of a request what is asked about it, an identity that covers it, and fewer placeholders."""

    info: Any

    @functools.cached_property
    def remembered(self) -> Remembered:
        """Pictures by UUID, of this process."""
        return Remembered(self.info.foveate.image_cache_mib << 20)

    @functools.cached_property
    def metrics(self) -> Metrics:
        """Counters on the server's own metrics page."""
        return Metrics.of_process(self.info.foveate)

    @functools.cached_property
    def _sizes(self) -> Recent:
        """Tokens of an image before pruning, by identity: vLLM's processor cache keeps the shortened prompt alone."""
        return Recent(1 << 16)

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
            self._refuse(inputs)
        images = inputs.mm_data_items.get("image")
        if not images:
            return super().apply(inputs, timing_ctx)  # type: ignore[misc]
        inputs, gone = self._recall(inputs)
        count = len(images)
        if profile is not None:
            wish = Wish(wish.method, Keep(policy.max_keep))
        pruner = policy.pruner(wish.method, wish.keep.value)
        if not pruner.reads_text:
            texts: Sequence[tuple[int, ...]] = [()] * count
        elif profile is not None:
            texts = [(0,) * profile] * count
        else:
            texts = self._texts(inputs.prompt, count, pruner)
        hashes = [""] * count if profile is not None else super()._get_mm_hashes(inputs)["image"]  # type: ignore[misc]
        method = policy.names.index(wish.method)
        asks = [Ask(text, wish.keep, method, base) for text, base in zip(texts, hashes, strict=True)]
        inputs = dataclasses.replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, ASKS: asks})
        try:
            result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        except ValueError as error:
            if not gone:
                raise
            raise ValueError(
                f"image {', '.join(map(repr, gone))} came as a UUID alone, and this server does not remember the "
                f"picture (it keeps {self.remembered.capacity >> 20} MiB of them in each API server process): send the "
                "picture again with its UUID. Under pruning a new question about a picture needs its pixels once more"
            ) from error
        if profile is None:
            ranges = zip(result["mm_hashes"]["image"], result["mm_placeholders"]["image"], strict=True)
            counted = [(self._sizes.get(identity), place.get_num_embeds()) for identity, place in ranges]
            self.metrics.count([(total, kept) for total, kept in counted if total is not None])
        return result

    def _refuse(self: Any, inputs: Any) -> None:
        policy: Policy = self.info.foveate
        if not policy.trust_request_mm_kwargs:
            if inputs.hf_processor_mm_kwargs:
                raise ValueError(
                    f"a request may set {CONFIG_KEY!r} in mm_processor_kwargs, not "
                    f"{', '.join(map(str, inputs.hf_processor_mm_kwargs))}: this server was started without "
                    "--trust-request-mm-kwargs (in Python: trust_request_mm_kwargs=True)"
                )
            own = self.info.ctx.get_mm_config().media_io_kwargs
            if any(value and value != own.get(name) for name, value in (inputs.media_io_kwargs or {}).items()):
                raise ValueError(
                    "media_io_kwargs of a request are not taken: this server was started without "
                    "--trust-request-mm-kwargs"
                )
        others = [name for name, items in inputs.mm_data_items.items() if items and name != "image"]
        if others:
            raise ValueError(
                f"this server prunes images, and would send {' and '.join(others)} through unpruned: send frames as "
                "images, or use a server without foveate"
            )
        images = inputs.mm_data_items.get("image")
        if images and images.get_passthrough_data():
            raise ValueError(
                "image embeddings say nothing of saliency or of where their tokens lie: send pictures, or use a server "
                "without foveate"
            )

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
                pictures[place] = self.remembered.get(uuid)
                if pictures[place] is None:
                    gone.append(uuid)
            elif uuid is not None:
                self.remembered.put(uuid, picture)
        items = self.info.parse_mm_data({"image": pictures}, validate=False)
        return dataclasses.replace(inputs, mm_data_items=items), gone

    def _texts(self: Any, prompt: Sequence[int], count: int, pruner: Pruner) -> list[tuple[int, ...]]:
        """For every image the ids of the text that guides its selection, by the same rules as with transformers."""
        family: Family = self.info.family
        ids = torch.tensor([list(prompt)], dtype=torch.int64)
        spots = (ids[0] == family.image_token_id).nonzero()[:, 0]
        if len(spots) != count:
            raise ValueError(
                f"the prompt holds {len(spots)} image placeholders for {count} image(s): put one image token into it "
                "for each image, or use the chat template"
            )
        # Not the family's own ``marks``: that reads expanded prompts, where each image's marks stand beside its tokens.
        text = ~Family.marks(family, ids)
        special = torch.tensor(sorted(family.special_token_ids), dtype=torch.int64)
        found = []
        for spot in spots:
            columns = text_after(ImageSpan(0, spot[None]), text, torch.zeros_like(text))
            words = ids[0, columns]
            if pruner.text_span == "turn" and len(words):
                within = turn_mask(words.tolist(), self.info.turn_ends)
                if within is None:
                    raise ValueError(
                        f"text_span='turn': none of the turn ends {list(self.info.turn_ends)} follows the image in the "
                        "prompt. Write the prompt with the model's chat template, or start with text_span='prompt'"
                    )
                words = words[torch.tensor(within)]
            if not getattr(pruner, "special_tokens", True):
                words = words[~torch.isin(words, special)]
            if not len(words):
                raise ValueError(
                    f"{pruner.name} reads the question, and there is no text for an image of this prompt: add one, or "
                    "use a method that does not read it (saliency, uniform, random)"
                )
            found.append(tuple(words.tolist()))
        return found

    def _get_mm_hashes(self: Any, inputs: Any) -> Any:
        """One string is an image's identity in vLLM's processor cache, encoder cache and KV blocks."""
        asks: Sequence[Ask] | None = inputs.hf_processor_mm_kwargs.get(ASKS)
        if asks is None:
            return super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {"image": [self._identity(ask) for ask in asks]}

    def _identity(self: Any, ask: Ask) -> str:
        policy: Policy = self.info.foveate
        pruner = policy.pruner(policy.names[ask.method], ask.keep.value)
        return hooks.digest(
            foveate=__version__,
            image=ask.image,
            text=list(ask.text),
            method=pruner.name,
            options=repr(pruner),  # a dataclass: all of its options, keep among them
        )

    def _get_cache_missing_processor_kwargs(self: Any, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        kwargs = dict(super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached))  # type: ignore[misc]
        if ASKS in kwargs:
            kwargs[ASKS] = [ask for ask, known in zip(kwargs[ASKS], mm_is_cached["image"], strict=True) if not known]
        return kwargs

    def _apply_hf_processor_main(self: Any, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        asks, left = _split(hf_kwargs)
        found = super()._apply_hf_processor_main(mm_items, left)  # type: ignore[misc]
        if asks:
            found.update(
                pack([dataclasses.replace(ask, image=ask.image and hooks.digest(image=ask.image)) for ask in asks])
            )
        return found

    def _get_mm_fields_config(self: Any, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        asks, left = _split(hf_processor_mm_kwargs)
        found = dict(super()._get_mm_fields_config(hf_inputs, left))  # type: ignore[misc]
        if asks:
            found.update({name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in FIELDS})
        return found

    def _get_prompt_updates(
        self: Any, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        asks, left = _split(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, left, out_mm_kwargs)  # type: ignore[misc]
        if not asks:
            return updates
        return [self._shortened(one, mm_items, asks) if one.modality == "image" else one for one in updates]

    def _shortened(self: Any, update: Any, mm_items: Any, asks: Sequence[Ask]) -> Any:
        if not isinstance(update, PromptReplacement):
            raise RuntimeError(f"foveate cannot shorten a {type(update).__name__} of this model's processor")
        stock = update.replacement

        def replacement(place: int) -> Any:
            details = stock(place) if callable(stock) else stock
            if not isinstance(details, PromptUpdateDetails):
                details = PromptUpdateDetails.from_seq(list(details))
            carries = details.is_embed
            mask = torch.ones(len(details.full), dtype=torch.bool) if carries is None else carries(details.full)
            size = mm_items["image"].get_image_size(place)
            total = int(mask.sum())
            patches = total - self.info.family.newlines((size.height, size.width))
            keep = asks[place].keep
            self.info.foveate.require_allowed(keep, patches)
            kept = keep.budget(patches)
            kept = total if kept == patches else kept
            self._sizes.put(self._identity(asks[place]), total)
            stays = (~mask | (mask.cumsum(0) <= kept)).tolist()
            return dataclasses.replace(
                details, full=[token for token, stay in zip(details.full, stays, strict=True) if stay]
            )

        return dataclasses.replace(update, replacement=replacement)


def _split(kwargs: Mapping[str, object]) -> tuple[Sequence[Ask], dict[str, object]]:
    left = dict(kwargs)
    asks: Any = left.pop(ASKS, ())
    return asks, left
