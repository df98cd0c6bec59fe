"""In the worker: pictures of which only the crops that questions ask for are encoded, as with transformers.

What the tower gave of a view is cached view by view, so that another question about a picture encodes only what the
first did not need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.attention import open_recorder
from foveate.crops import heaviest
from foveate.models.encoded import EncodedImage, Request
from foveate.models.view_store import Views, ViewStore
from foveate.serving import hooks
from foveate.serving.image_request import ImageRequest
from foveate.tokens import TextTokens

if TYPE_CHECKING:
    from foveate.serving.embedder import ImageEmbedder


@dataclasses.dataclass(frozen=True)
class Features:
    """What a transformers model's ``get_image_features`` returns, as far as the adapters read it."""

    pooler_output: Any
    deepstack_features: Any

    @property
    def last_hidden_state(self) -> Any:
        """Where Llama 4's adapter looks for them."""
        return self.pooler_output


class RoutedPictures:
    """Some pictures of a batch, their base views encoded.

    Args:
        embedder: whose model, method and cache they go through.
        given: their arguments of ``embed_multimodal``.
        keys: what each is cached by; None: it is not.
    """

    def __init__(self, embedder: ImageEmbedder, given: Mapping[str, Any], keys: Sequence[Any]) -> None:
        self.embedder = embedder
        self.given = given
        self.keys = keys
        self._inputs, self._prompt = embedder.batches.inputs(given)
        self.pictures = embedder.family.views_of(self._inputs, self._prompt)
        known: dict[int, Mapping[str, Tensor]] = {}
        for key, views in zip(keys, self.pictures, strict=True):
            for number, place in enumerate(views):
                found = None if key is None else embedder.cache.get((key, number))
                if found is not None:
                    tensors, names = found
                    known[place] = {name: one for name, one in zip(names, tensors, strict=True) if one is not None}
        embedder.counters.count("views_cached", len(known))
        self._known = set(known)
        pixels = (embedder.batches.views(given),)
        self.views = Views(self._encode, embedder.family, self._inputs, self._prompt, known, pixels)

    def choose(self, asked: Sequence[tuple[int, ImageRequest, Tensor]]) -> list[EncodedImage]:
        """Every question's picture, with the tokens of its base view and of the crops chosen for it.

        Args:
            asked: number of the picture, what is asked of it, and the (T, D) embeddings of the text that guides.
        """
        weighed = []
        for number, request, text in asked:
            base = self.views.bases[number]
            assert request.crops is not None
            weights = None
            if base.whole is not None:
                every = torch.ones(len(text), dtype=torch.bool, device="cpu")
                tokens = TextTokens(text, every, ~every) if len(text) else None
                ids = torch.tensor(request.text, dtype=torch.int64, device="cpu")
                weights = request.crops.weighed(base, tokens, ids if len(text) else None)
                # All ranks compute the same; a last bit that differed would have them encode different crops.
                weights = hooks.from_first_rank(weights.to(self.embedder.device)) if weights is not None else None
            weighed.append((request.crops, weights))
        chosen = zip(asked, heaviest(weighed), strict=True)
        images = self.views.showing([(number, (0, *some)) for (number, _, _), some in chosen])
        self._remember()
        return images

    def _encode(self, store: ViewStore) -> list[EncodedImage]:
        embedder = self.embedder
        embedder.counters.count("views_encoded", len(store.wanted))

        def features(*_: Any, **__: Any) -> Any:
            record = open_recorder()
            assert record is not None
            return Features(embedder.batches.of_views(embedder.model, self.given, record, store), [])

        # What is cached of a view must do for every method and request that comes.
        policy = embedder.policy
        request = Request(features, True, policy.reads_keys, policy.reads_encoded, prompt=self._prompt, views=store)
        return embedder.family.encode(self._inputs, request)

    def _remember(self) -> None:
        """Caches what was encoded here and used."""
        fresh = self.views.store.known - self._known
        for key, views in zip(self.keys, self.pictures, strict=True):
            for number, place in enumerate(views):
                if key is not None and place in fresh:
                    tensors = self.views.store.taken_out(place)
                    self.embedder.cache.put((key, number), list(tensors.values()), tuple(tensors))
        self.embedder.counters.count_pictures(0, 0, self.embedder.cache.used)
