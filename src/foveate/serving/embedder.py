"""In the worker: an image or a video is encoded once, and for every question its tokens are chosen as they are with
transformers.

The family adapters of ``foveate.models`` do the work. Where they would call a transformers model's vision tower, they
call vLLM's (``ImageEmbedder._encode``); a hook on the attention of one of its layers tells them the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from foveate.attention import open_recorder
from foveate.models.encoded import EncodedImage, Kind, Request
from foveate.pruners import Pruner, Uniform
from foveate.serving import encoded_cache, hooks
from foveate.serving.family import family_of
from foveate.serving.features import FeatureCache
from foveate.serving.films import PIECE, joined
from foveate.serving.image_request import FIELDS, LAYOUT, ImageRequest, field, kind_of, unpack
from foveate.serving.metrics import Counters, logger
from foveate.serving.policy import Policy
from foveate.serving.routed import Features, RoutedPictures
from foveate.serving.towers import Batches, Films
from foveate.tokens import Selection, TextTokens

SELECTIONS = 1 << 14
"""Images and videos whose kept indices are cached, by identity, for M-RoPE."""


class ImageEmbedder:
    """What stands behind a pruned model's ``embed_multimodal``.

    Args:
        model: vLLM's model.
        policy: how the server prunes.
        batches: how the model's family lays out its multi-modal arguments.
        most: visual tokens that the vision tower sees at once; vLLM's own limit counts kept ones only.
        device: of the model.
    """

    def __init__(self, model: Any, policy: Policy, batches: type[Batches], most: int, device: torch.device) -> None:
        self.model = model
        self.policy = policy
        self.most = most
        self.piece = PIECE
        self.device = device
        self.family = family_of(model.config)
        self.batches = batches(self.family)
        self.films: Films | None = None if batches.films is None else batches.films(self.family)
        self.width = self.family.config.get_text_config().hidden_size
        self.cache = FeatureCache(policy.feature_cache_mib << 20, device)
        self.counters = Counters.of_worker(policy, device, hooks.rank())
        self._indices: LRUCache[str, Tensor] = LRUCache(SELECTIONS)
        if policy.reads_saliency or policy.reads_keys or self.family.crops:  # any request may choose among crops
            attention = hooks.vision_attention(self.batches.attention(model))
            attention.register_forward_pre_hook(_record, with_kwargs=True)
        if policy.reads_encoded:
            self.batches.reader(model).register_forward_pre_hook(_record_encoded)

    def embed(self, stock: Callable[..., Any], given: Mapping[str, Any]) -> Any:
        """(kept, D) features of every image or video of a batch, in order.

        Args:
            stock: the model's own ``embed_multimodal``.
            given: its arguments, with Foveate's fields among them (without, ``stock`` answers).
        """
        if kind_of(given) is None:
            return stock(**given)
        return tuple(features for features, _ in self._kept(stock, given))

    def indices(self, stock: Callable[..., Any], identity: str, item: Any, kind: Kind = "image") -> Tensor:
        """(K,) int64 on the CPU: which patch tokens of an image or a video stay, for their positions.

        Args:
            stock: as for ``embed``.
            identity: the image's, as the API server gave it.
            item: the image as vLLM's processor made it.
            kind: which of the two it is.
        """
        known: Tensor | None = self._indices.get(identity)
        if known is None:
            _, selection = next(self._kept(stock, hooks.batch_of(item, self.device, kind)))
            known = selection.indices.cpu()
            self._indices[identity] = known
        return known

    def placeholder(self, kind: Kind) -> int:
        """The id that stands for a token of an image or a video."""
        return self.family.placeholder_ids[kind]

    def forget(self) -> None:
        """Forgets everything that was encoded."""
        self.cache.clear()
        self._indices.clear()

    def _kept(self, stock: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[tuple[Tensor, Selection]]:
        kind = kind_of(given)
        assert kind is not None
        requests = unpack(given, kind)
        ours = {field(name, kind) for name in FIELDS} - ({LAYOUT} if self.batches.woven else set())
        plain = {name: value for name, value in given.items() if name not in ours}
        texts = self._embedded([one.text for one in requests])
        kept: dict[int, tuple[Tensor, Selection]] = {}
        whole = [place for place, one in enumerate(requests) if one.crops is None]
        if kind == "image":
            found = self._images(stock, plain, requests, whole, self.batches)
        else:
            found = self._videos(stock, plain, requests)
        for places, image in found:
            with self.counters.timed("select_seconds"):
                for place in places:
                    kept[place] = self._choose(image, requests[place], texts[place])
        for place, image in self._routed(plain, requests, texts):
            with self.counters.timed("select_seconds"):
                kept[place] = self._choose(image, requests[place], texts[place])
        for place in range(len(requests)):
            yield kept[place]

    def _choose(self, image: EncodedImage, request: ImageRequest, text: Tensor) -> tuple[Tensor, Selection]:
        pruner: Pruner = self.policy.pruner(self.policy.names[request.method], request.keep.value)
        # The API server has sent the text that counts and no other.
        every = torch.ones(len(text), dtype=torch.bool, device="cpu")
        try:
            selection = pruner.select(image.tokens, TextTokens(text, every, ~every) if pruner.reads_text else None)
        except ValueError as error:
            # Scores that are no numbers (checked on the CPU alone): weights that are broken, or float16 that overflowed
            # on one picture. Whatever the LLM makes of it, a picture must not end the engine and all its requests.
            logger.error("foveate: %s; the tokens of this image were taken evenly", error)
            selection = Uniform(keep=request.keep.value).select(image.tokens)
        selection = dataclasses.replace(selection, indices=hooks.from_first_rank(selection.indices))
        if len(selection) == len(image.tokens) and image.whole is None:
            assert image.stream is not None
            return self._woven(torch.cat([image.stream, *image.planes], dim=-1), selection, request), selection
        planes = (image.tokens.features, *image.planes)
        features = torch.cat([selection.gather(plane) for plane in planes], dim=-1)
        selection = image.in_whole(selection)
        return self._woven(features, selection, request), selection

    def _woven(self, features: Tensor, selection: Selection, request: ImageRequest) -> Tensor:
        """Kept features between the marks that they stand between in the prompt, where there are any."""
        if not request.layout:
            return features
        layout = torch.tensor(request.layout, dtype=torch.int64, device="cpu")
        marks, tokens = ((layout < 0) == wanted for wanted in (False, True))
        rows = hooks.embedded(self.model, layout[marks].to(self.device)).to(features)
        # Nothing joins the marks at deeper layers of the LLM.
        rows = torch.nn.functional.pad(rows, (0, features.shape[1] - rows.shape[1]))
        places = torch.cat([
            marks.nonzero()[:, 0].to(self.device), tokens.nonzero()[:, 0].to(self.device)[selection.indices]
        ])  # fmt: skip
        return torch.cat([rows, features])[places.argsort(stable=True)]

    def _embedded(self, texts: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
        """(T, D) input embeddings of every text, looked up at once."""
        ids = torch.tensor([one for text in texts for one in text], dtype=torch.int64, device="cpu")
        if not len(ids):
            return [torch.empty(0, self.width, device=self.device)] * len(texts)
        rows = hooks.embedded(self.model, ids.to(self.device, non_blocking=True))
        return rows.split([len(text) for text in texts])

    def _images(
        self,
        stock: Callable[..., Any],
        plain: Mapping[str, Any],
        requests: Sequence[ImageRequest],
        asked: Sequence[int],
        batches: Batches,
    ) -> Iterator[tuple[list[int], EncodedImage]]:
        """Every image once, of some ``asked`` places of the batch, with those that ask about it."""
        fresh: dict[Any, list[int]] = {}
        for place in asked:
            fresh.setdefault(requests[place].picture or place, []).append(place)
        for key, places in list(fresh.items()):
            image = encoded_cache.get(self.cache, key) if requests[places[0]].picture else None
            hits = len(places) - (image is None)
            self.counters.count_pictures(hits, len(places) - hits, self.cache.used)
            if image is not None:
                del fresh[key]
                yield places, image
        for some in self._chunks(plain, fresh, batches):
            with self.counters.timed("encode_seconds"):
                images = self._encode(stock, plain, [fresh[one][0] for one in some], batches)
            for one, image in zip(some, images, strict=True):
                if requests[fresh[one][0]].picture:
                    encoded_cache.put(self.cache, one, image)
                yield fresh[one], image

    def _videos(
        self, stock: Callable[..., Any], plain: Mapping[str, Any], requests: Sequence[ImageRequest]
    ) -> Iterator[tuple[list[int], EncodedImage]]:
        """Every video once, with those that ask about it; encoded, and cached, in pieces."""
        assert self.films is not None
        cut, owners = self.films.cut(plain, min(self.piece, self.most))
        asked = []
        for number, owner in enumerate(owners):
            name = requests[owner].picture
            name = name and f"{name}/{number - owners.index(owner)}"
            asked.append(dataclasses.replace(requests[owner], picture=name))
        pieces: dict[int, EncodedImage] = {}
        for places, piece in self._images(stock, cut, asked, range(len(owners)), self.films):
            pieces.update(dict.fromkeys(places, piece))
        whose: dict[Any, list[int]] = {}
        for place, one in enumerate(requests):
            whose.setdefault(one.picture or place, []).append(place)
        for places in whose.values():
            mine = [pieces[number] for number, owner in enumerate(owners) if owner == places[0]]
            yield places, joined(mine, self.films.seconds(plain, places[0]))

    def _chunks(
        self, plain: Mapping[str, Any], fresh: Mapping[Any, Sequence[int]], batches: Batches
    ) -> Iterator[list[Any]]:
        """Pictures that the tower takes at once."""
        if not fresh:
            return
        sizes = batches.sizes(plain)
        pending: list[Any] = []
        waiting = 0
        for key, places in fresh.items():
            size = sizes[places[0]]
            other = pending and batches.alike(plain, places[0]) != batches.alike(plain, fresh[pending[0]][0])
            if pending and (waiting + size > self.most or other):
                yield pending
                pending, waiting = [], 0
            pending.append(key)
            waiting += size
        yield pending

    def _routed(
        self, plain: Mapping[str, Any], requests: Sequence[ImageRequest], texts: Sequence[Tensor]
    ) -> Iterator[tuple[int, EncodedImage]]:
        """Every image that wants some of its crops encoded, by its place in the batch: base views first, at once, then
        at once what the questions ask for and nobody has asked for before."""
        fresh: dict[Any, list[int]] = {}
        for place, one in enumerate(requests):
            if one.crops is not None:
                fresh.setdefault(one.picture or place, []).append(place)
        for some in self._chunks(plain, fresh, self.batches):
            keys = [key if requests[fresh[key][0]].picture else None for key in some]
            with self.counters.timed("encode_seconds"):
                pictures = RoutedPictures(self, self.batches.take(plain, [fresh[key][0] for key in some]), keys)
                asked = [(number, place) for number, key in enumerate(some) for place in fresh[key]]
                images = pictures.choose([(number, requests[place], texts[place]) for number, place in asked])
            yield from zip((place for _, place in asked), images, strict=True)

    def _encode(
        self, stock: Callable[..., Any], plain: Mapping[str, Any], places: Sequence[int], batches: Batches
    ) -> list[EncodedImage]:
        """Has vLLM's tower encode some images of a batch."""
        taken = batches.take(plain, places)
        inputs, prompt = batches.inputs(taken)

        def features(*_: Any, **__: Any) -> Any:
            streams = stock(**{name: value for name, value in taken.items() if name != LAYOUT})
            levels = streams[0].shape[-1] // self.width
            parts = [stream.split(self.width, dim=-1) for stream in streams]
            first = batches.outputs([part[0] for part in parts])
            return Features(first, [[part[n] for part in parts] for n in range(1, levels)])

        policy = self.policy
        request = Request(features, policy.reads_saliency, policy.reads_keys, policy.reads_encoded, prompt=prompt)
        images = batches.encode(inputs, request)
        if policy.reads_encoded and any(image.tokens.encoded is None for image in images):
            raise RuntimeError(
                f"foveate: what the encoder of {self.family.title} hands to the projector was not seen in this vLLM: "
                f"none of {', '.join(policy.names)} that reads it can be served with this model"
            )
        return images


def _record(attention: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Before the attention of the layer that is read: its queries and keys, for whoever has a recorder open."""
    record = open_recorder()
    if record is None:
        return
    query, key = hooks.queries_and_keys(attention, args, kwargs)
    known = len(record.rows), len(record.key_rows)
    record.note(query, key, attention.scale, None)
    for rows, old in zip((record.rows, record.key_rows), known, strict=True):
        rows[old:] = [hooks.mean_over_ranks(row) for row in rows[old:]]


def _record_encoded(reader: Any, args: Sequence[Any]) -> None:
    """Before the projector: what the encoder hands to it, the same on every tensor-parallel rank."""
    record = open_recorder()
    if record is not None:
        record.note_encoded(args[0])
