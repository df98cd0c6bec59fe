"""Inkling 2: a class token before every image, grids of tokens, an LLM with relative distances, convolutions, sinks."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.rows import IMAGE, TEXT, Row, features_of, finish, flat, known, noise

GRIDS = [(2, 3), (3, 2), (4, 4)]
"""(rows, columns) of tokens."""
PATCH, MERGE = 4, 2
LOOP = {
    "num_hidden_layers": 3,
    "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid"],
    "n_layers_per_attn_res_block": 1,
    "loop_layer_index_start": 1,
    "loop_layer_index_end": 2,
    "loop_num_passes": 2,
    "loop_gate_rank": 4,
}


@cache
def inkling2(name: str, attention: str, floor: int = 64) -> Any:
    """Its LLM has eager attention alone: the encoder's is what changes.

    Args:
        floor: from which position on queries are scaled up. Where a forward gets no positions, padding counts in stock.
    """
    torch.manual_seed(0)
    text = {
        **TEXT,
        "unpadded_vocab_size": 100,
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": 8,
        "d_rel": 4,
        "rel_extent": 12,
        "log_scaling_n_floor": floor,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "n_layers_per_attn_res_block": 1,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "route_scale": 2.0,
        **(LOOP if name == "Inkling2Loop" else {}),
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "posemb_grid_size": 4,
        "projection_hidden_dim": 48,
        "text_hidden_size": 64,
        "layer_scale_init_value": 1.0,
    }
    if name == "Inkling2Loop":
        vision["model_type"] = "inkling2_vision"
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, image_token_id=IMAGE)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    finish(model, "eager")
    model.model.vision_tower.set_attn_implementation(attention)
    return model


def images(numbers: list[list[int]]) -> dict[str, Tensor]:
    side = PATCH * MERGE
    found = flat(numbers)
    if not found:
        return {}
    return {
        "pixel_values": torch.cat([noise(n, GRIDS[n][0] * GRIDS[n][1], side, side, 3) for n in found]),
        "image_grid_thw": torch.tensor([[1, *GRIDS[n]] for n in found]),
    }


def read(model: Any) -> Any:
    return model.model.vision_tower.layers[-1].self_attn


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """The first row of every image, without its first column; a token's patches follow one another."""
    return [matrix[0, 0, 1:].view(-1, MERGE**2).sum(dim=1) for matrix in matrices]


def lengths(inputs: dict[str, Tensor]) -> list[int]:
    """Of every image's sequence, with its class token."""
    return [1 + rows * columns * MERGE**2 for _, rows, columns in inputs["image_grid_thw"].tolist()]


def encoded(model: Any, inputs: dict[str, Tensor], kind: str) -> Tensor:
    states: Tensor = features_of(model, inputs, kind).last_hidden_state
    return states


FAILS = {"static_cache": "must match the size of tensor"}
"""What stock itself fails with: the distances are of the tokens there are, the mask of the places there may be."""
ROWS: dict[str, Row] = {}
for kind, name in (("inkling2", "Inkling2"), ("inkling2_loop", "Inkling2Loop")):
    if known(kind):
        ROWS[kind] = Row(
            partial(inkling2, name), images, read, saliency, positions=("compact",), encoded=encoded,
            packs=lengths, fails=FAILS,
            scores=lambda model, hidden: model.logit_softcap(model.get_output_embeddings()(hidden)),
        )  # fmt: skip
