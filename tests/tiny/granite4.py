"""Granite Vision 4: LLaVA-NeXT's views, queries in windows, features for three layers of the LLM."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.llava import PINPOINTS, llava_next_pixels
from tests.tiny.rows import IMAGE, TEXT, VISION, Row, features_of, finish, given_by, known

PATCHES, FACTOR = 8, 2
"""Along a view's side; along a token's."""


@cache
def granite4(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.Granite4VisionConfig(
        vision_config={
            **VISION,
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "patch_size": 7,
            "vision_use_head": False,
        },
        text_config={**TEXT, "num_hidden_layers": 3, "embedding_multiplier": 2.0, "logits_scaling": 0.5},
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 64,
            "encoder_hidden_size": 64,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[1, 1], [-2, 0]],
        spatial_vision_layer=-2,
        spatial_target_layers=[2],
    )
    return finish(transformers.Granite4VisionForConditionalGeneration(config), attention)


def by_layer(model: Any, inputs: dict[str, Tensor], kind: str) -> dict[int, list[Tensor]]:
    return dict(features_of(model, inputs, kind).deepstack_features)


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """What joins the LLM before its first layer, where nothing stood."""
    return by_layer(model, inputs, kind)[0] if "pixel_values" in inputs else []


def planes(model: Any, inputs: dict[str, Tensor], kind: str) -> list[list[Tensor]]:
    found = by_layer(model, inputs, kind)
    return [list(both) for both in zip(found[1], found[2], strict=True)]


def joined(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """The language model, whose layers' inputs get their features by a hook each; the first's stand in the prompt,
    where they are not multiplied as words are."""
    llm, visual = model.model.language_model, torch.zeros(embeddings.shape[:2], dtype=torch.bool)
    visual[:, : prompt.visual.shape[1]] = prompt.visual

    def joining(plane: Tensor) -> Any:
        def join(module: Any, args: Any) -> Any:
            hidden = args[0].clone()
            hidden[visual] += plane[prompt.visual]
            return (hidden, *args[1:])

        return join

    hooks = [
        llm.layers[number].register_forward_pre_hook(joining(plane))
        for number, plane in enumerate(prompt.planes, start=1)
    ]
    given = torch.where(visual[..., None], embeddings / llm.embedding_multiplier, embeddings)
    try:
        return llm(inputs_embeds=given, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()


def hand(model: Any, output: Any, kept: list[Tensor], planes: list[list[Tensor]]) -> None:
    layers = {0: kept, 1: planes[0], 2: planes[1]}
    output.deepstack_features = [(layer, layers[layer]) for layer, _ in output.deepstack_features]


def scores(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.get_output_embeddings()(hidden)
    return logits / model.config.text_config.logits_scaling


def read(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers[1].self_attn


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """By view, row and column: what the four patches of a square receive."""
    cells = PATCHES // FACTOR
    received = torch.cat(matrices).mean(dim=1).view(-1, cells, FACTOR, cells, FACTOR).sum(dim=(2, 4))
    found, first = [], 0
    for image in images:
        geometry = image.tokens.geometry
        found.append(received[first + geometry.view, geometry.row, geometry.column])
        first += len(geometry.grids)
    return found


def deepest(model: Any) -> Any:
    """The deepest layer that is read."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers[1]


ROWS: dict[str, Row] = {}
if known("granite4_vision"):
    ROWS["granite4_vision"] = Row(
        granite4, llava_next_pixels, read, saliency, newlines=True, streams=streams, planes=planes, hidden=joined,
        scores=scores, encoded=given_by(deepest), embeds=False, hand=hand,
    )  # fmt: skip
