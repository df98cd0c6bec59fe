"""Idefics3, SmolVLM, Gemma 3 and PaliGemma: SigLIP-like encoders, read at their last layer."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    ShieldGemma2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3 import modeling_gemma3

from tests.tiny.rows import END, IMAGE, PAD, SIDE, START, TEXT, VISION, Row, features_of, finish, flat, noise

# (rows, columns) of tiles: landscape, not cut, portrait
GRIDS = [(1, 2), (0, 0), (3, 2)]
FENCE, NEWLINE, GLOBAL, TAG = 95, 94, 93, 90


# As in SmolVLM-Instruct 2.2B (384, 14, 3): 6 x 6 patches and a rest that none of them sees, 3 x 3 to a token.
UNEVEN, SCALE = 90, 3


@cache
def idefics3(config_class: Any, model_class: Any, attention: str, side: int = SIDE, scale: int = 2) -> Any:
    torch.manual_seed(0)
    config = config_class(
        vision_config={**VISION, "image_size": side},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        scale_factor=scale,
        pad_token_id=PAD,
    )
    return finish(model_class(config), attention)


def tiles(side: int, numbers: list[list[int]]) -> dict[str, Tensor]:
    """Every prompt's tiles, padded with empty ones to as many as the longest has."""
    rows = [[_tiles(number, side) for number in images] for images in numbers]
    width = max(1, max(sum(map(len, row)) for row in rows))
    pixels = torch.zeros(len(rows), width, 3, side, side)
    for place, row in enumerate(rows):
        if row:
            filled = torch.cat(row)
            pixels[place, : len(filled)] = filled
    mask = (pixels != 0).any(dim=2).long()
    return {"pixel_values": pixels, "pixel_attention_mask": mask} if flat(numbers) else {}


def _tiles(number: int, side: int) -> Tensor:
    rows, columns = GRIDS[number]
    return noise(number, rows * columns + 1, 3, side, side)


def write_tiles(number: int, count: int) -> list[int]:
    rows, columns = GRIDS[number]
    return write_grid((rows, columns), count // (rows * columns + 1))


def write_grid(grid: tuple[int, int], per_tile: int) -> list[int]:
    """As the stock processors write an image; the tag of a tile is two tokens."""
    rows, columns = grid
    run = [IMAGE] * per_tile
    ids: list[int] = []
    for row in range(rows):
        for column in range(columns):
            ids += [FENCE, TAG + row, TAG + column, *run]
        ids.append(NEWLINE)
    return [*ids, *([NEWLINE] if rows else []), FENCE, GLOBAL, *run, FENCE]


def by_image(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """The tiles of every image, one after the other; the images are known by their numbers of tiles."""
    output = features_of(model, inputs, kind).pooler_output
    if not torch.is_tensor(output):  # in 5.23 an entry per prompt
        side = (
            model.config.vision_config.image_size // model.config.vision_config.patch_size // model.config.scale_factor
        )
        output = torch.cat(list(output)).unflatten(0, (-1, side**2))
    found = list(output)
    streams = []
    for grid in _grids_of(inputs):
        count = grid[0] * grid[1] + 1
        streams.append(torch.cat(found[:count]))
        found = found[count:]
    assert not found
    return streams


def _grids_of(inputs: dict[str, Tensor]) -> list[tuple[int, int]]:
    """Which of ``GRIDS`` the images are: by their first pixel."""
    pixels = inputs["pixel_values"]
    first = {float(_tiles(number, pixels.shape[-1])[0, 0, 0, 0].to(pixels)): number for number in range(len(GRIDS))}
    values = pixels[:, :, 0, 0, 0].flatten().tolist()
    return [GRIDS[first[value]] for value in values if value in first]


def pooled(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """By view, row and column: the mean over all rows, summed over the square that makes one token."""
    views = torch.cat(matrices).mean(dim=1)
    found, first = [], 0
    for image in images:
        geometry = image.tokens.geometry
        count, side = len(geometry.grids), geometry.grids[0][0]
        patches = int(views.shape[1] ** 0.5)
        size = patches // side
        sums = []
        places = torch.stack([geometry.view, geometry.row, geometry.column], dim=1)
        for view, row, column in places.tolist():
            # The whole image is view 0 and comes last.
            square = views[first + (view - 1) % count].view(patches, patches)
            sums.append(square[row * size : (row + 1) * size, column * size : (column + 1) * size].sum())
        found.append(torch.stack(sums))
        first += count
    return found


def text_model(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    return model.model.text_model(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def _idefics3_row(config_class: Any, model_class: Any, side: int = SIDE, scale: int = 2) -> Row:
    return Row(
        partial(idefics3, config_class, model_class, side=side, scale=scale),
        partial(tiles, side),
        lambda model: model.model.vision_model.encoder.layers[-1].self_attn,
        pooled,
        write=write_tiles,
        streams=by_image,
        hidden=text_model,
    )


WINDOW = 8


@cache
def gemma3(attention: str, config_class: Any = Gemma3Config) -> Any:
    torch.manual_seed(0)
    text = {
        **TEXT,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = config_class(
        vision_config={**VISION, "image_size": 2 * SIDE, "vision_use_head": False},
        text_config=text,
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    return finish(Gemma3ForConditionalGeneration(config), attention)


def _paligemma(attention: str, text: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 64},
        text_config={"head_dim": 16, **TEXT, **text},
        image_token_index=IMAGE,
        projection_dim=64,
        hidden_size=64,
    )
    return finish(PaliGemmaForConditionalGeneration(config), attention)


@cache
def paligemma(attention: str) -> Any:
    return _paligemma(attention, {"model_type": "gemma"})


@cache
def paligemma2(attention: str) -> Any:
    return _paligemma(attention, {"model_type": "gemma2", "query_pre_attn_scalar": 16, "sliding_window": WINDOW})


def squares(side: int, numbers: list[list[int]]) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([noise(number, 3, side, side) for number in flat(numbers)])}


def read(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn


def image_types(ids: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (ids == IMAGE).long()}


def prefix_types(ids: Tensor) -> dict[str, Tensor]:
    """0 up to the end of the prompt, whatever was generated after it is 1."""
    types = torch.zeros_like(ids)
    for row, one in enumerate(ids.tolist()):
        end = next(n for n in range(len(one)) if one[n : n + 2] == [41, 42]) + 4
        types[row, end:] = 1
    return {"token_type_ids": types}


def _additive(allowed: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, S, S) from what may be seen; padding sees itself, so that no row is empty."""
    allowed = allowed & mask[:, None].bool() | torch.eye(allowed.shape[-1], dtype=torch.bool)
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]


def blocks(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """Gemma 3's language model: the tokens of an image see each other, and so far as the window reaches."""
    length = embeddings.shape[1]
    visual = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
    visual[:, : prompt.visual.shape[1]] = prompt.visual
    starts = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    number = torch.where(visual, starts.cumsum(1), 0)
    together = (number[:, :, None] == number[:, None]) & visual[:, :, None]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    causal, near = distance >= 0, distance < WINDOW
    # transformers 5.19 cuts blocks at the window; earlier ones let a block see all of itself.
    cut = hasattr(modeling_gemma3, "create_masks_for_vision_model")
    sliding = (causal | together) & near if cut else causal & near | together
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask={
            "full_attention": _additive(causal | together, mask),
            "sliding_attention": _additive(sliding, mask),
        },
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state


def _prefix(embeddings: Tensor, mask: Tensor, prompt: Any, window: int) -> Tensor:
    place = torch.arange(embeddings.shape[1])
    distance = place[:, None] - place
    inside = place < prompt.mask.shape[1]
    allowed = (distance >= 0) & (distance < window) | inside[:, None] & inside
    return _additive(allowed.expand(len(mask), -1, -1), mask)


def prefix(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """PaliGemma's language model: the prompt sees all of itself, positions start at 1."""
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=_prefix(embeddings, mask, prompt, embeddings.shape[1]),
        position_ids=positions + 1,
        use_cache=False,
    ).last_hidden_state


def windowed_prefix(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """PaliGemma 2's: the same, with a window in every other layer."""
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask={
            "full_attention": _prefix(embeddings, mask, prompt, embeddings.shape[1]),
            "sliding_attention": _prefix(embeddings, mask, prompt, WINDOW),
        },
        position_ids=positions + 1,
        use_cache=False,
    ).last_hidden_state


ROWS: dict[str, Row] = {
    "idefics3": _idefics3_row(Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": _idefics3_row(SmolVLMConfig, SmolVLMForConditionalGeneration),
    "smolvlm-uneven": _idefics3_row(SmolVLMConfig, SmolVLMForConditionalGeneration, UNEVEN, SCALE),
    "gemma3": Row(
        gemma3,
        partial(squares, 2 * SIDE),
        read,
        pooled,
        write=lambda _, count: [START, *[IMAGE] * count, END],
        per_token=image_types,
        hidden=blocks,
        embeds=False,
    ),
    "shieldgemma2": Row(
        partial(gemma3, config_class=ShieldGemma2Config),
        partial(squares, 2 * SIDE),
        read,
        pooled,
        write=lambda _, count: [START, *[IMAGE] * count, END],
        per_token=image_types,
        hidden=blocks,
        embeds=False,
    ),
    "paligemma": Row(
        paligemma,
        partial(squares, SIDE),
        read,
        pooled,
        per_token=prefix_types,
        hidden=prefix,
        looks_up=False,
        embeds=False,
    ),
}

# Gemma 2 caps its logits, which PaliGemma's own head heeds since some transformers after 5.19.
CAPPED = "final_logit_softcapping" in inspect.getsource(PaliGemmaForConditionalGeneration.forward)
PALIGEMMA2 = replace(ROWS["paligemma"], make=paligemma2, hidden=windowed_prefix, cap=30.0 if CAPPED else None)
