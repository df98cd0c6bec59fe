"""In the API server: what a request keeps, the identity that follows from it, and the shorter prompt.

The mixins go in front of whatever vLLM uses for a model (``mixed``), and call it for all that is not theirs.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from cachetools import LRUCache
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from foveate import __version__
from foveate.models.encoded import Kind
from foveate.options import Options
from foveate.pixels import Pixels, resized
from foveate.serving import hooks
from foveate.serving.image_request import FIELDS, KINDS, LAYOUT, ImageRequest, field, pack
from foveate.serving.metrics import Metrics
from foveate.serving.picture_cache import PictureCache
from foveate.serving.policy import AS_IT_IS, CONFIG_KEY, Policy, Wish
from foveate.serving.requests import guiding_texts, refuse_for_videos, refuse_unserved, require_encoded, with_videos
from foveate.serving.towers import Batches
from foveate.tokens import Keep

REQUESTS = "_foveate_requests"
"""Where a request's ``ImageRequest``s travel through vLLM's processing, which hands keyword arguments along."""
PROFILE = "_foveate_profile"
"""Marks the inputs that vLLM measures its memory with."""
SIZES = 1 << 16
"""Images and videos whose number of tokens before pruning is known."""


def mixed(mixin: type, made: object) -> Any:
    """The class of something that vLLM made, with a mixin in front of it."""
    return type(f"Foveate{type(made).__name__}", (mixin, type(made)), {})


class ProcessorMixin:
    """Gives every image and video of a request what is asked about it, an identity that covers it, and fewer
    placeholders."""

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
        asks = inputs.hf_processor_mm_kwargs.get(CONFIG_KEY)
        wish = policy.wish(asks)
        inputs = hooks.without(inputs, CONFIG_KEY, PROFILE)
        if profile is None:
            refuse_unserved(inputs, policy, self.info.ctx.get_mm_config().media_io_kwargs, self.info.films is not None)
        counts: dict[Kind, int] = {kind: len(inputs.mm_data_items.get(kind) or ()) for kind in KINDS}
        if not any(counts.values()):
            return super().apply(inputs, timing_ctx)  # type: ignore[misc]
        if not counts["image"]:
            refuse_for_videos(asks)
        inputs, gone = self._recall(inputs)
        if profile is not None:
            wish = Wish(wish.method, Keep(policy.max_keep))
        crops = wish.crops if counts["image"] else None
        Options(crops=crops).check(self.info.family)
        pruner = policy.pruner(wish.method, wish.keep.value)
        if not pruner.reads_text and (crops is None or not crops.reads_text):
            texts: Sequence[tuple[int, ...]] = [()] * sum(counts.values())
        elif profile is not None:
            texts = [(0,) * profile] * sum(counts.values())
        else:
            prompt = self.batches.written(self, inputs.prompt, counts["image"])
            shown = self.info.films.shown(self, inputs) if counts["video"] else []
            prompt, runs = with_videos(prompt, shown, self.info.family)
            texts = guiding_texts(
                prompt, counts["image"], pruner, self.info.family, self.info.turns, runs, required=pruner.reads_text
            )
        hashes = {"image": [""] * counts["image"], "video": [""] * counts["video"]}
        if profile is None:
            hashes.update(super()._get_mm_hashes(inputs))  # type: ignore[misc]
        if profile is None and counts["image"] and wish.pixels != AS_IT_IS:
            # A UUID says nothing of the size, and features are cached by this name too.
            hashes["image"] = [hooks.digest(image=base, pixels=wish.pixels.value) for base in hashes["image"]]
            inputs = self._resized(inputs, wish.pixels)
        method = policy.names.index(wish.method)
        waiting = iter(texts)
        requests = {
            kind: [
                ImageRequest(next(waiting), wish.keep, method, base, crops if kind == "image" else None)
                for base in hashes[kind]
            ]
            for kind in KINDS
        }
        inputs = dataclasses.replace(
            inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, REQUESTS: requests}
        )
        try:
            result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            if not gone:  # whose missing pixels vLLM stumbles over, one way or another
                raise
            what = "picture" if gone[-1].startswith("image") else "video"
            raise ValueError(
                f"{', '.join(gone)} came as a UUID alone, and this server does not remember the {what} (it keeps "
                f"{self.pictures.capacity >> 20} MiB of pictures in each API server process, and no videos): send the "
                f"{what} again with its UUID. Under pruning a new question about it needs its pixels once more"
            ) from error
        if profile is None:
            for kind in KINDS:
                with self._lock:
                    counted = [self._sizes.get(identity) for identity in result["mm_hashes"].get(kind, ())]
                self.metrics.count([one for one in counted if one is not None], kind)
        return result

    def _recall(self: Any, inputs: Any) -> tuple[Any, list[str]]:
        """Puts remembered pictures in place of those that came as a UUID alone, and remembers new ones.

        Returns:
            The inputs, and the UUIDs whose pictures are gone: vLLM may still know the answer to an equal request.
        """
        named = inputs.mm_uuid_items or {}
        videos = inputs.mm_data_items.get("video")
        gone = [
            f"video {uuid!r}"
            for place, uuid in enumerate(named.get("video") or () if videos else ())
            if uuid is not None and videos.get(place) is None
        ]
        uuids = named.get("image")
        if not inputs.mm_data_items.get("image") or uuids is None or all(uuid is None for uuid in uuids):
            return inputs, gone
        images = inputs.mm_data_items["image"]
        pictures = [images.get(place) for place in range(len(images))]
        for place, (uuid, picture) in enumerate(zip(uuids, pictures, strict=True)):
            if picture is None and uuid is not None:
                pictures[place] = self.pictures.get(uuid)
                if pictures[place] is None:
                    gone.append(f"image {uuid!r}")
            elif uuid is not None:
                self.pictures.put(uuid, picture)
        return self._with_pictures(inputs, pictures), gone

    def _resized(self: Any, inputs: Any, pixels: Pixels) -> Any:
        """The same with every picture that is there at its size."""
        images = inputs.mm_data_items["image"]
        pictures = [images.get(place) for place in range(len(images))]
        found = [None if picture is None else resized(picture, pixels) for picture in pictures]
        return self._with_pictures(inputs, found)

    def _with_pictures(self: Any, inputs: Any, pictures: Sequence[Any]) -> Any:
        """The same with other pictures in the places of its own."""
        items = self.info.parse_mm_data({"image": pictures}, validate=False)
        whole = type(inputs.mm_data_items)({**inputs.mm_data_items, **items})
        return dataclasses.replace(inputs, mm_data_items=whole)

    def _get_mm_hashes(self: Any, inputs: Any) -> Any:
        """One string is an image's identity in vLLM's processor cache, encoder cache and KV blocks."""
        requests: _Requests | None = inputs.hf_processor_mm_kwargs.get(REQUESTS)
        if requests is None:
            return super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {kind: [self._identity(one, kind) for one in asked] for kind, asked in requests.items() if asked}

    def _identity(self: Any, request: ImageRequest, kind: Kind = "image") -> str:
        policy: Policy = self.info.foveate
        pruner = policy.pruner(policy.names[request.method], request.keep.value)
        crops = {} if request.crops is None else {"crops": str(request.crops)}
        return hooks.digest(
            **crops,
            foveate=__version__,
            **{kind: request.picture},  # one UUID may name a picture and a video
            text=list(request.text),
            method=pruner.name,
            options=repr(pruner),  # a dataclass: all of its options, keep among them
        )

    def _get_cache_missing_processor_kwargs(self: Any, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        requests, _ = _split(inputs.hf_processor_mm_kwargs)
        stock = super()._get_cache_missing_processor_kwargs  # type: ignore[misc]
        kwargs = dict(stock(hooks.without(inputs, REQUESTS), mm_is_cached))
        if requests:
            kwargs[REQUESTS] = {
                kind: [one for one, is_known in zip(asked, mm_is_cached[kind], strict=True) if not is_known]
                for kind, asked in requests.items()
                if asked
            }
        return kwargs

    def _apply_hf_processor_main(self: Any, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        requests, left = _split(hf_kwargs)
        found = super()._apply_hf_processor_main(mm_items, left)  # type: ignore[misc]
        for kind, asked in requests.items():
            # A UUID stands in place of the hash where one came with the picture: any text.
            named = [one.picture and hooks.digest(**{kind: one.picture}) for one in asked]
            if asked:
                packed = [dataclasses.replace(one, picture=name) for one, name in zip(asked, named, strict=True)]
                found.update(pack(packed, kind))
        return found

    def _get_mm_fields_config(self: Any, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        requests, left = _split(hf_processor_mm_kwargs)
        found = dict(super()._get_mm_fields_config(hf_inputs, left))  # type: ignore[misc]
        for kind in (kind for kind, asked in requests.items() if asked):
            ours = MultiModalFieldConfig.batched(kind, keep_on_cpu=True)
            found.update({field(name, kind): ours for name in FIELDS})
        return found

    def _get_prompt_updates(
        self: Any, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        requests, left = _split(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, left, out_mm_kwargs)  # type: ignore[misc]
        return [
            self._shortened(one, mm_items, requests[one.modality], out_mm_kwargs) if requests.get(one.modality) else one
            for one in updates
        ]

    def _shortened(self: Any, update: Any, mm_items: Any, requests: Sequence[ImageRequest], out: Any) -> Any:
        if not isinstance(update, PromptReplacement):
            raise RuntimeError(f"foveate cannot shorten a {type(update).__name__} of this model's processor")
        stock, kind = update.replacement, update.modality

        def replacement(place: int) -> Any:
            details = stock(place) if callable(stock) else stock
            if not isinstance(details, PromptUpdateDetails):
                details = PromptUpdateDetails.from_seq(list(details))
            if details.is_embed is None:
                mask = torch.ones(len(details.full), dtype=torch.bool, device="cpu")
            else:
                mask = details.is_embed(details.full)
            several = int((mask.int().diff(prepend=mask.new_zeros(1).int()) == 1).sum()) > 1
            woven = self.batches.woven if kind == "image" else not bool(mask.all())
            if several and not woven:
                raise ValueError(
                    "a picture was written into the prompt as several (pan and scan), which are not pruned each by "
                    "itself here: leave do_pan_and_scan off, or send the crops as pictures"
                )
            total = int(mask.sum())
            kept = self._budget(requests[place], kind, mm_items[kind], place, total)
            if woven:
                ids = torch.tensor(details.full, dtype=torch.int64, device="cpu")
                out[kind][place][field(LAYOUT, kind)].data = ids.masked_fill(mask, -1)
            stays = (~mask | (mask.cumsum(0) <= kept)).tolist()
            full = [token for token, stay in zip(details.full, stays, strict=True) if stay]
            # Marks that come back among the features are embeddings like these.
            return dataclasses.replace(details, full=full, is_embed=None if woven else details.is_embed)

        return dataclasses.replace(update, replacement=replacement)

    def _budget(self: Any, request: ImageRequest, kind: Kind, items: Any, place: int, total: int) -> int:
        """How many of so many placeholders stay of an image or a video."""
        if kind == "image":
            size = items.get_image_size(place)
            patches = total - self.info.family.newlines((size.height, size.width))
            require_encoded(request, self.info.family, (size.height, size.width), patches)
        else:
            patches = total - self.info.films.newlines
        self.info.foveate.require_allowed(request.keep, patches, kind)
        kept = request.keep.budget(patches)
        kept = total if kept == patches else kept
        with self._lock:
            self._sizes[self._identity(request, kind)] = (total, kept)
        return kept


_Requests = Mapping[Kind, Sequence[ImageRequest]]


def _split(kwargs: Mapping[str, object]) -> tuple[_Requests, dict[str, object]]:
    left = dict(kwargs)
    requests: Any = left.pop(REQUESTS, {})
    return requests, left
