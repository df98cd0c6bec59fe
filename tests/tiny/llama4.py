"""Llama 4: CLS behind the patches, a class without inner model, chunked attention, mixtures of experts."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, masking_utils

from tests.tiny.rows import END, IMAGE, START, TEXT, VISION, Row, features_of, finish, known
from tests.tiny.tiles import GRIDS, counts, pixels

CHUNK = 16
ACROSS, DOWN, WHOLE = 93, 94, 95
"""Between tiles of a row, behind a row, before the whole picture."""


@cache
def llama4(attention: str) -> Any:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    torch.manual_seed(0)
    config = Llama4Config(
        vision_config={
            **VISION,
            "vision_output_dim": 48,
            "projector_input_dim": 48,
            "projector_output_dim": 48,
            "intermediate_size": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        text_config={
            **TEXT,
            "head_dim": 16,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "moe_layers": [1],
            "no_rope_layers": [1, 0],
            "attention_chunk_size": CHUNK,
        },
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    return finish(Llama4ForConditionalGeneration(config), attention)


def write(number: int, count: int) -> list[int]:
    rows, columns = GRIDS[number]
    tiles = rows * columns + (rows * columns > 1)
    run = [IMAGE] * (count // tiles)
    ids = [START]
    for _ in range(rows if tiles > 1 else 0):
        ids += [token for _ in range(columns) for token in (*run, ACROSS)][:-1]
        ids.append(DOWN)
    return [*ids, WHOLE, *run, END]


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """What the stock forward makes of the features of all tiles."""
    features = features_of(model, inputs, kind).last_hidden_state
    with torch.no_grad():
        rows = model.multi_modal_projector(features.view(-1, features.size(-1)))
    tiles = rows.view(*features.shape[:2], -1).split(counts(inputs["pixel_values"]))
    return [image.flatten(0, 1) for image in tiles]


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """The last row, which is that of CLS, without its last column; summed over squares of 2 x 2 patches."""
    tokens = []
    for view in torch.cat(matrices)[:, -1, :-1]:
        patches = view.view(4, 4)
        tokens += [patches[row : row + 2, column : column + 2].sum() for row in (0, 2) for column in (0, 2)]
    return list(torch.stack(tokens).split([4 * count for count in counts(inputs["pixel_values"])]))


def hidden(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    return model.language_model.model(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def read(model: Any) -> Any:
    return model.vision_model.model.layers[-1].self_attn


def _names(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


# Where stock itself fails. Since 5.18 generate repeats what is called pooler_output for beams, which its features are
# not; and from some version on it makes chunked masks with an argument that these do not take.
FAILS: dict[str, str] = {}
if hasattr(GenerationMixin, "_supports_mm_encoder_outputs"):
    FAILS["beams"] = "Image features and image tokens do not match"
if "block_sequence_ids" in _names(masking_utils.create_masks_for_generate) - _names(
    masking_utils.create_chunked_causal_mask
):
    FAILS["static_cache"] = "unexpected keyword argument 'block_sequence_ids'"


def broken() -> str:
    """What stock's forward fails with whatever it is given (5.24 reads a field that its LLM's output has not); else
    nothing."""
    try:
        with torch.no_grad():
            llama4("sdpa")(input_ids=torch.tensor([[1, 5, 6]]))
    except AttributeError as error:
        return str(error)
    return ""


KNOWN = known("llama4")
ROWS: dict[str, Row] = {}
if KNOWN and not broken():
    ROWS["llama4"] = Row(
        llama4, pixels(False), read, saliency, write=write, streams=streams, hidden=hidden, fails=FAILS
    )
