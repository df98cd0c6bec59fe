"""A baseline to measure against: pruning as the research repositories around LLaVA write it.

FasterVLM (arXiv 2412.01818) and AdaV (arXiv 2501.09532) read CLS attention by asking the whole vision tower for
``output_attentions=True``. That takes eager attention, which makes every layer's (heads, N, N) matrices and keeps them,
and one sequence is answered at a time. What they choose is not compared here (the evaluation does that), only the cost
of choosing so; nothing else in Foveate uses this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foveate.functional import adafv, text_to_image_attention
from foveate.tokens import Keep

METHODS = {"saliency": "FasterVLM", "adafv": "AdaV"}
"""What the baseline can choose by: our name of the method, and whose implementation it is written after."""


def supports(model: Any) -> bool:
    """Whether the baseline is written for this model: LLaVA-1.5 or LLaVA-NeXT with a CLIP tower, like its originals."""
    config = model.config
    return config.model_type in ("llava", "llava_next") and config.vision_config.model_type == "clip_vision_model"


@contextmanager
def eager_tower(model: Any) -> Iterator[None]:
    """The vision tower on eager attention, without which it returns no attention at all."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.set_attn_implementation(before)


@torch.no_grad()
def generate(model: Any, inputs: Mapping[str, Tensor], method: str, keep: float | int, **options: Any) -> list[Any]:
    """Answers a batch, one sequence after the other; inside ``eager_tower``.

    Args:
        model: one that ``supports`` holds of.
        inputs: of a batch with one picture each, nothing padded.
        method: one of ``METHODS``.
        keep: as for ``Pruner``; counted on the full grids of all views, as the repositories do.
        options: for ``generate``.

    Returns:
        What ``generate`` gave for each sequence.

    Raises:
        ValueError: another method.
    """
    if method not in METHODS:
        raise ValueError(f"the baseline has no method {method!r}; known: {', '.join(METHODS)}")
    outputs = []
    for ids, pixels in zip(inputs["input_ids"], inputs["pixel_values"], strict=True):
        features, saliency = _encode(model, pixels if pixels.ndim == 4 else pixels[None])
        spots = (ids == model.config.image_token_id).nonzero()[:, 0]
        first, last = int(spots[0]), int(spots[-1])
        before, after = (model.get_input_embeddings()(part) for part in (ids[:first], ids[last + 1 :]))
        count = Keep(keep).budget(len(features))
        if method == "saliency":
            chosen = saliency.topk(count).indices.sort().values
        else:
            chosen = adafv(saliency, text_to_image_attention(after, features), count)
        prompt = torch.cat([before, features[chosen], after])[None]
        mask = torch.ones(prompt.shape[:2], dtype=torch.int64, device=prompt.device)
        outputs.append(model.generate(inputs_embeds=prompt, attention_mask=mask, **options))
    return outputs


def _encode(model: Any, views: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) projected patches of all views and (N,) what CLS pays to each, from every layer's whole attention."""
    layer = model.config.vision_feature_layer
    output = model.model.vision_tower(views, output_hidden_states=True, output_attentions=True)
    features = model.model.multi_modal_projector(output.hidden_states[layer][:, 1:])
    saliency = output.attentions[layer].mean(dim=1)[:, 0, 1:]
    return features.flatten(0, 1), saliency.flatten().float()
