"""What pruned calls share, wherever the pruner works: encoding, places, guiding text, what is delivered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from foveate.arguments import IGNORED, bind, cache_in, infer_mask, refuse_generation, unshifted
from foveate.crops import route
from foveate.delivery import Delivery, delivering, features_alone, outside
from foveate.functional import require_finite
from foveate.guiding import Guide, ImageSpan, locate_images, masked_placeholders
from foveate.models.base import Family
from foveate.models.encoded import EncodedImage, Kept, Kind, Request
from foveate.models.frames_once import frames_once
from foveate.models.view_store import Views, ViewStore
from foveate.options import Options
from foveate.prompts import Prompt, is_remembered, whole_prompt
from foveate.pruners.base import Method
from foveate.readable import check_readable
from foveate.stopwatch import stage
from foveate.tokens import Selection, TextTokens
from foveate.turns import Turns
from foveate.views import PromptView, SeeingStreamer

Located = Sequence[tuple[EncodedImage, ImageSpan]]
Rows = Mapping[Kind, Sequence[Sequence[Kept]]]  # by kind, what is kept of every row's images
_Method = TypeVar("_Method", bound=Method)


class PrunedCall(ABC, Generic[_Method]):
    """What calls of ``generate`` and ``forward`` under a pruner share, wherever the pruner works.

    Args:
        family: the model's adapter.
        pruner: which tokens stay.
        options: see ``foveate.attach``.
        features: by kind, the model's own ``get_image_features`` and ``get_video_features``.
        views: of a session, the pictures that every prompt of the call is about; the pixels are not encoded then.

    Afterwards ``selections`` are the call's, ``prompt_tokens`` is the length of the prompt that reached the LLM
    (padding included), and ``visual_tokens`` how many of every row's were visual.
    """

    def __init__(
        self,
        family: Family,
        pruner: _Method,
        options: Options,
        features: Mapping[Kind, Callable[..., Any]],
        views: Views | None = None,
    ) -> None:
        check_readable(family, pruner, options)
        self.family = family
        self.model = family.model
        self.pruner = pruner
        self.options = options
        self.features = features
        self.views = views
        self.selections: list[Selection] = []
        self.prompt_tokens = 0
        self.visual_tokens: list[int] = []
        self.stock: dict[Kind, Any] = {}

    @torch.no_grad()
    def generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``model.generate``: the same arguments, the same returns."""
        arguments = self.family.named(bind(original, args, kwargs))
        key = "inputs" if arguments.get("inputs") is not None else "input_ids"
        ids: Tensor | None = arguments.get(key)
        if self.is_text_only(arguments, ids) or ids is None:
            return self.bare(original, arguments, ids)
        refuse_generation(self.model, arguments)
        self.family.refuse_generation(arguments)
        mask = arguments.get("attention_mask")
        mask = infer_mask(self.model, arguments, ids) if mask is None else mask
        return self.run(original, arguments, key, self.whole_prompt(arguments, ids, mask))

    @abstractmethod
    def run(self, original: Callable[..., Any], arguments: dict[str, Any], key: str, prompt: Prompt) -> Any:
        """``generate`` on a prompt with images.

        Args:
            original: the model's own.
            arguments: the call's, to be changed at will.
            key: which of them are the ids.
            prompt: as the user knows it.
        """

    def mirror(self) -> None:
        """Leaves the result with the pruner, where the last call of all is."""
        self.pruner.record(self.selections)

    def is_text_only(self, arguments: Mapping[str, Any], ids: Tensor | None) -> bool:
        """Whether the bare model answers this call; raises where pruning would silently not happen."""
        if arguments.get("inputs_embeds") is not None:
            raise ValueError(
                "inputs_embeds hide which tokens are visual, so they cannot be pruned: pass input_ids and pixel_values"
            )
        if arguments.get("mm_encoder_outputs"):
            raise ValueError(
                "mm_encoder_outputs bring features without the saliency they were made with: pass pixel_values, or use "
                "foveate.look(...) to encode once and ask often"
            )
        self.family.refuse(arguments)
        if any(self.family.has(arguments, kind) for kind in self.features) or self.views:
            if ids is None:
                raise ValueError("images came without input_ids: pass all that the processor returned")
            return False
        if is_remembered(cache_in(arguments)):
            return False
        if ids is not None:
            for kind, token in self.family.placeholder_ids.items():
                if bool((ids == token).any()):
                    raise ValueError(
                        f"the prompt holds {kind} placeholders, but no {self.family.inputs_of(kind)[0]} came with it, "
                        "and no cache that a pruned call filled: pass all that the processor returned"
                    )
        return True

    def bare(self, original: Callable[..., Any], arguments: dict[str, Any], ids: Tensor | None = None) -> Any:
        """The model's own answer to text alone.

        Args:
            original, arguments: the model's own function, and the call's arguments.
            ids: its prompt, where the caller's code may run beside it (``generate``).
        """
        view = None if ids is None else self.view(arguments, ids, ids)
        with delivering(Delivery(self.family, cache=cache_in(arguments), view=view)), stage("prefill"):
            return original(**arguments)

    def view(self, arguments: dict[str, Any], ids: Tensor, short_ids: Tensor) -> PromptView:
        """How the caller's code sees a prompt of which ``short_ids`` are left; the streamer gets it right away."""
        view = PromptView(ids, short_ids, outside)
        if arguments.get("streamer") is not None:
            arguments["streamer"] = SeeingStreamer(arguments["streamer"], view)
        return view

    def whole_prompt(self, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, only_new: bool = False) -> Prompt:
        """The prompt as the user knows it, cached part included."""
        placeholders = self.family.placeholder_ids.values()
        return whole_prompt(ids, mask, cache_in(arguments), placeholders, only_new)

    def locate(self, arguments: Mapping[str, Any], prompt: Prompt) -> Located:
        """Every image and video, encoded, with its place, in prompt order."""
        fresh, ids = prompt.fresh, self.family.placeholder_ids
        try:
            images = self._encode(arguments, torch.where(fresh, prompt.ids, -1))
        except ValueError as error:  # of a family that reads the prompt: what a mask hides is the likelier cause
            for kind, token in self.family.placeholder_ids.items():
                hidden = int(((there := prompt.ids == token) & ~prompt.mask).sum())
                if hidden and self.family.has(arguments, kind):
                    raise ValueError(masked_placeholders(hidden, int(there.sum()), kind)) from error
            raise
        located: list[tuple[EncodedImage, ImageSpan]] = []
        for kind, token in self.family.placeholder_ids.items():
            ours = [image for image in images if image.kind == kind]
            if not ours and token in {ids[image.kind] for image in images}:  # one id for both kinds
                continue
            try:
                spans = locate_images(prompt.ids, fresh, token, [image.placeholders for image in ours], kind)
            except ValueError as error:
                hint = " With a filled cache, give only the images that are new." if prompt.cached is not None else ""
                raise ValueError(f"{error}{hint}") from None
            located += zip(ours, spans, strict=True)
        return sorted(located, key=lambda pair: (pair[1].row, int(pair[1].positions[0])))

    def route(self, located: Located, guide: Guide | None) -> Located:
        """Every image with the tokens of what was encoded of it: the base view, and the crops that were chosen for its
        question, which are encoded here as far as they are not yet."""
        if self.options.routed is None or self.views is None or not self.options.ranks:
            return located
        asked = partial(self._asked, guide)
        images = route(self.options.routed, self.views, located, asked)
        return [(image, span) for image, (_, span) in zip(images, located, strict=True)]

    def _asked(self, guide: Guide | None, image: EncodedImage, span: ImageSpan) -> tuple[TextTokens | None, Any]:
        """The guiding text's embeddings and ids, as far as the method counts them; None where there is none."""
        if guide is None or not bool(guide.text[span.row].any()):
            return None, None
        text, ids = self.text_tokens(guide, image, span), guide.of(span).ids
        if self.pruner.special_tokens:
            return text, ids
        words = ~text.special
        if not bool(words.any()):
            return None, None
        here = words.to(text.embeddings.device)
        return TextTokens(text.embeddings[here], text.turn[words], text.special[words]), ids[words]

    def guide(self, arguments: Mapping[str, Any], prompt: Prompt) -> Guide:
        """Says which text guides the choice for an image."""
        text = prompt.fresh & (prompt.ids >= 0) & ~self.family.marks(prompt.ids)
        labels, shifted = arguments.get("labels"), arguments.get("shift_labels")
        if labels is None and shifted is not None:
            labels = unshifted(shifted)
        answer = torch.zeros_like(text)
        if labels is not None:
            answer[:, -labels.shape[1] :] = labels.cpu() != IGNORED
        if self.pruner.text_span == "turn":
            turns = self.options.turns(self.family)
        else:
            turns = Turns(special=self.family.special_token_ids)
        return Guide(prompt.ids, text, turns, self.pruner.text_span, answer)

    def text_tokens(self, guide: Guide, image: EncodedImage, span: ImageSpan) -> TextTokens:
        """The guiding text's embeddings, where the image's features are.

        Raises:
            ValueError: there is no text.
        """
        try:
            found = guide.of(span)
        except ValueError as error:
            raise ValueError(
                f"{self.pruner.name} reads the question: {error}. Add the question to the prompt, or use a method that "
                "does not read it (saliency, uniform, random)"
            ) from None
        embeddings = self.family.embed(found.ids).to(image.tokens.features.device)
        return TextTokens(embeddings, torch.ones_like(found.special), found.special)

    def rows_of(self, located: Located, kept: Sequence[Kept], rows: int) -> Rows:
        """What is kept, by kind and row."""
        found: dict[Kind, list[list[Kept]]] = {kind: [[] for _ in range(rows)] for kind in self.features}
        for (image, span), one in zip(located, kept, strict=True):
            found[image.kind][span.row].append(one)
        return found

    def delivery(
        self, arguments: Mapping[str, Any], rows: Rows, view: PromptView | None, *, whole: bool, fill_mask: bool = False
    ) -> Delivery:
        """What the model's own code is run with; ``whole``: all of every image is kept."""
        given = [kind for kind in rows if self.family.has(arguments, kind)]
        return Delivery(
            self.family,
            rows={kind: rows[kind] for kind in given},
            pixels={kind: [arguments[self.family.inputs_of(kind)[0]]] for kind in given},
            cache=cache_in(arguments),
            copies={kind: self.family.copies(arguments, kind) for kind in given},
            # Pictures of one prompt are handed over together where stock beam search would mix them up.
            stock=self.stock if whole and not self.family.joins_rows else {},
            view=view,
            fill_mask=fill_mask,
        )

    def _encode(self, arguments: Mapping[str, Any], prompt: Tensor) -> Sequence[EncodedImage]:
        if self.views is not None:
            images = self.views.images if self.options.ranks else self.views.all()
            return [*images] * len(prompt)
        images = []
        for kind, own in self.features.items():
            if not self.family.has(arguments, kind):
                continue

            def features(*args: Any, kind: Kind = kind, own: Callable[..., Any] = own, **kwargs: Any) -> Any:
                output = own(*args, **kwargs)
                self.stock[kind] = features_alone(output)
                return output

            if kind == "video" or self.options.routed is None:
                encode_all = self.family.encode_videos if kind == "video" else self.family.encode
                once = {"views": frames_once(self.family, self.options.routed, arguments)} if kind == "video" else {}
                with stage("encoder"):
                    images += encode_all(arguments, self._request(features, prompt, **once))
            else:
                encode, at_once = partial(self._encode_views, arguments, prompt), not self.options.ranks
                self.views = Views(encode, self.family, arguments, prompt, at_once=at_once)
                images += self.views.images
        return images

    def _request(self, features: Callable[..., Any], prompt: Tensor, **more: Any) -> Request:
        method = self.pruner
        wanted = {"saliency": method.reads_saliency, "keys": method.reads_keys, "encoded": method.reads_encoded, **more}
        return Request(features, layout=self.options.layout, prompt=prompt, **wanted)

    def _encode_views(self, arguments: Mapping[str, Any], prompt: Tensor, store: ViewStore) -> list[EncodedImage]:
        """The views that a store wants. Of the base views, which come first, saliency may be wanted to rank crops."""
        routed = self.options.routed
        ranks = routed is not None and routed.reads_saliency and not store.known
        saliency = self.pruner.reads_saliency or ranks
        request = self._request(self.features["image"], prompt, saliency=saliency, views=store)
        with stage("encoder"):
            return self.family.encode(arguments, request)


def require_scores_finite(selections: Sequence[Selection]) -> None:
    """Raises ValueError where what a choice was made from is no number."""
    scores = {f"{name} of image {n}": one.scores[name] for n, one in enumerate(selections) for name in one.scores}
    try:
        require_finite(**scores)
    except ValueError as error:
        raise ValueError(
            f"{error}. The vision tower overflowed or its weights are broken: try dtype=torch.bfloat16 or float32"
        ) from None
