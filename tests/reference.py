"""What a pruned model must do, assembled by hand: kept features put between the text's embeddings, row by row.

Nothing here comes from the package: only the selections' indices are taken from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.tiny import IMAGE


@dataclass
class Assembled:
    """A batch of pruned prompts as embeddings, padded on the left."""

    embeddings: Tensor
    mask: Tensor
    positions: Tensor
    ids: list[list[int]]
    columns: list[list[int]]


@torch.no_grad()
def stock_features(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    images = {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}
    return list(model.get_image_features(**images, return_dict=True).pooler_output)


def newline_mask(model: Any, stream: Tensor) -> Tensor:
    """(n,) bool: which placeholders carry the newline embedding; recognised by its value."""
    newline = getattr(model.model, "image_newline", None)
    if newline is None:
        return torch.zeros(len(stream), dtype=torch.bool)
    return (stream == newline.detach()).all(dim=1)


def kept_places(model: Any, stream: Tensor, indices: list[int], newlines: str) -> list[int]:
    """Which of an image's placeholders stay, in order."""
    is_newline = newline_mask(model, stream).tolist()
    patches = [place for place, newline in enumerate(is_newline) if not newline]
    if sorted(set(indices)) == list(range(len(patches))):
        return list(range(len(stream)))
    kept = [patches[index] for index in indices]
    if newlines == "rows":
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        start = side * side
        for end, newline in enumerate(is_newline):
            if newline:
                if any(start <= place < end for place in kept):
                    kept.append(end)
                start = end + 1
    return sorted(kept)


@torch.no_grad()
def assemble(
    model: Any,
    inputs: dict[str, Tensor],
    indices: Sequence[Tensor],
    newlines: str = "drop",
    positions: str = "compact",
) -> Assembled:
    streams = stock_features(model, inputs)
    table = model.get_input_embeddings()
    rows, ids_kept, columns_kept = [], [], []
    image = 0
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        embeddings, columns = [], []
        column = 0
        while column < len(ids):
            if not mask[column]:
                column += 1
            elif ids[column] != IMAGE:
                embeddings.append(table(torch.tensor(ids[column])))
                columns.append(column)
                column += 1
            else:
                stream = streams[image]
                for place in kept_places(model, stream, indices[image].tolist(), newlines):
                    embeddings.append(stream[place])
                    columns.append(column + place)
                column += len(stream)
                image += 1
        rows.append(torch.stack(embeddings))
        columns_kept.append(columns)
        ids_kept.append([ids[column] for column in columns])
    assert image == len(streams)
    width = max(map(len, rows))
    batch = torch.zeros(len(rows), width, rows[0].shape[1])
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    position = torch.zeros(len(rows), width, dtype=torch.long)
    for number, (row, columns) in enumerate(zip(rows, columns_kept, strict=True)):
        batch[number, width - len(row) :] = row
        mask[number, width - len(row) :] = 1
        first = inputs["attention_mask"][number].tolist().index(1)
        original = torch.tensor(columns) - first
        position[number, width - len(row) :] = original if positions == "original" else torch.arange(len(row))
    return Assembled(batch, mask, position, ids_kept, columns_kept)


@torch.no_grad()
def greedy(model: Any, assembled: Assembled, steps: int, suppress: int | None = IMAGE) -> tuple[Tensor, Tensor]:
    """(B, steps) tokens and (B, steps, V) logits: the language model run on the embeddings, without a cache.

    The token ``suppress`` is never chosen.
    """
    embeddings, mask, positions = assembled.embeddings, assembled.mask, assembled.positions
    tokens, logits = [], []
    for _ in range(steps):
        hidden = model.model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state[:, -1]
        scores = model.lm_head(hidden)
        allowed = scores.clone()
        if suppress is not None:
            allowed[:, suppress] = -torch.inf
        token = allowed.argmax(dim=-1)
        tokens.append(token)
        logits.append(scores)
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(token)[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
    return torch.stack(tokens, dim=1), torch.stack(logits, dim=1)


@torch.no_grad()
def generate(model: Any, assembled: Assembled, **options: Any) -> Tensor:
    """The stock model's generate on the embeddings; returns only the new tokens."""
    result: Tensor = model.generate(
        inputs_embeds=assembled.embeddings,
        attention_mask=assembled.mask,
        position_ids=assembled.positions,
        **options,
    )
    return result
