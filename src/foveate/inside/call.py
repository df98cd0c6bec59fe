"""A call under a method that prunes inside the LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.arguments import bind, cache_in, cache_of
from foveate.attention import recording
from foveate.delivery import delivering
from foveate.guiding import Guide, ImageSpan
from foveate.inside.layers import ImageInLayers, PrunedLayers
from foveate.inside.supported import check_inside, language_layers, refuse_modes
from foveate.llm_layers import watching
from foveate.models.encoded import EncodedImage
from foveate.prompts import Prompt, mark_uneven
from foveate.pruned_call import PrunedCall, require_scores_finite
from foveate.pruners.inside import InsidePruner
from foveate.stopwatch import stage
from foveate.tokens import Selection


class InsideCall(PrunedCall[InsidePruner]):
    """One call under a method that prunes inside the LLM."""

    tokens_per_layer: Sequence[Sequence[int]] = ()

    def run(self, original: Callable[..., Any], arguments: dict[str, Any], key: str, prompt: Prompt) -> Any:
        """``generate`` on the stock prompt, shortened on its way through the layers.

        A returned cache holds fewer tokens the deeper the layer and cannot be continued.
        """
        check_inside(self.family, self.pruner, self.options)
        ids: Tensor = arguments[key]
        refuse_modes(self.model, arguments, self.pruner.name)
        if bool((prompt.mask[:, :-1] & ~prompt.mask[:, 1:]).any()):
            raise ValueError(
                f"{self.pruner.name} reads the attention of the prompt's last token, and here padding stands behind "
                "or within a prompt: pad on the left (padding_side='left')"
            )
        with stage("selection"):
            located = self.locate(arguments, prompt)
            guide = self.guide(arguments, prompt)
            images = [self._follow(image, span, guide) for image, span in located]
        implementation = self.family.base.language_model.config._attn_implementation or "sdpa"
        layers = PrunedLayers(self.pruner, language_layers(self.family), implementation, prompt.mask, images)
        self.prompt_tokens = ids.shape[1]
        self.visual_tokens = [
            sum(len(one.span.positions) for one in images if one.span.row == row) for row in range(len(ids))
        ]
        view = self.view(arguments, ids, ids)
        every = [torch.arange(len(image.tokens), device="cpu") for image, _ in located]
        kept = [
            image.keep(Selection(indices, image.tokens.geometry), indices, "drop")
            for (image, _), indices in zip(located, every, strict=True)
        ]
        # All features are delivered as the model's own, so that the vision tower does not run again.
        rows = self.rows_of(located, kept, len(ids))
        with (
            watching(self.model, layers.layers),
            recording(layers),
            delivering(self.delivery(arguments, rows, view, whole=True)),
            stage("prefill"),
        ):
            result = original(**arguments)
        self.selections = [one.selection() for one in images]
        require_scores_finite(self.selections)
        self.tokens_per_layer = [one.in_layers for one in images]
        for cache in (cache_in(arguments), cache_of(result)):
            mark_uneven(cache, self.pruner.name)
        return result

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``model.forward``, for text alone.

        Raises:
            ValueError: the prompt has images.
        """
        arguments = self.family.named(bind(original, args, kwargs))
        if self.is_text_only(arguments, arguments.get("input_ids")):
            return self.bare(original, arguments)
        raise ValueError(
            f"{self.pruner.name} prunes inside the LLM and works with model.generate only: a direct forward wants "
            "logits, and with labels a loss, of tokens that are gone. Use generate, or a method that prunes before the "
            "LLM"
        )

    def mirror(self) -> None:
        self.pruner.record(self.selections, self.tokens_per_layer)

    def _follow(self, image: EncodedImage, span: ImageSpan, guide: Guide) -> ImageInLayers:
        assert image.slots is not None  # only layouts that are refused have none
        schedule = self.pruner.schedule(len(image.tokens), len(language_layers(self.family)))
        queries = None
        if self.pruner.reads_text and schedule[-1] < len(image.tokens):
            tokens = self.text_tokens(guide, image, span)
            columns = guide.of(span).columns
            if columns[0] < span.positions[-1]:
                raise ValueError(
                    f"{self.pruner.name} reads what the text after an image attends to, and none follows the image in "
                    f"row {span.row} of the batch: put the question behind it, or use another method"
                )
            queries = columns[self.pruner.raters(image.tokens, tokens).cpu()]
        return ImageInLayers(image, span, schedule, queries)
