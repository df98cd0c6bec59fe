"""What a pruned model must do, assembled by hand: kept features put between the text's embeddings, row by row.

Nothing here comes from the package: only the selections' indices and weights are taken from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tests.tiny import SILENT, Row
from tests.tiny.rows import features_of, inner


@dataclass
class Assembled:
    """A batch of pruned prompts as embeddings, padded on the left.

    Args:
        embeddings: (B, S', D).
        mask: (B, S') int64.
        positions: (B, S') or, with M-RoPE, (axes, B, S') int64.
        ids: the kept ids of every row.
        columns: which columns of the long prompt they were.
        visual: (B, S') bool, where visual tokens stand.
        planes: (B, S', D) each, what joins deeper layers at those places.
        types: per-token inputs, shortened.
        kept: (m, D) what was put in, image by image.
        counts: how many of ``kept`` belong to each image.
        carries: per image, which of its part of ``kept`` are patches rather than marks.
    """

    embeddings: Tensor
    mask: Tensor
    positions: Tensor
    ids: list[list[int]]
    columns: list[list[int]]
    visual: Tensor
    planes: list[Tensor] = field(default_factory=list)
    types: dict[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
    counts: list[int] = field(default_factory=list)
    carries: list[list[bool]] = field(default_factory=list)


def newline_mask(model: Any, stream: Tensor) -> Tensor:
    """(n,) bool: which placeholders carry the newline embedding; recognised by its value."""
    newline = getattr(inner(model), "image_newline", None)
    if newline is None:
        return torch.zeros(len(stream), dtype=torch.bool)
    return (stream == newline.detach()).all(dim=1)


def patches_in(row: Row, model: Any, stream: Tensor) -> list[int]:
    """Which of an image's placeholders carry patches."""
    return (~(newline_mask(model, stream) | row.marks(model, stream))).nonzero()[:, 0].tolist()


def kept_places(
    row: Row, model: Any, stream: Tensor, indices: list[int], newlines: str, merged: bool = False
) -> list[int]:
    """Which of an image's placeholders stay, in order."""
    is_newline = newline_mask(model, stream).tolist()
    patches = patches_in(row, model, stream)
    if not merged and sorted(set(indices)) == list(range(len(patches))):
        return list(range(len(stream)))
    kept = [patches[index] for index in indices] + row.marks(model, stream).nonzero()[:, 0].tolist()
    if newlines == "rows":
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        side = int(side * Fraction(getattr(model.config, "downsample_rate", 1)))  # Granite Vision 4
        # A base view has no newline; a single one ends all there is (LLaVA-OneVision: one view, or a video).
        start = side * side if sum(is_newline) > 1 else 0
        for end, newline in enumerate(is_newline):
            if newline:
                if any(start <= place < end for place in kept):
                    kept.append(end)
                start = end + 1
    return sorted(kept)


def take(stream: Tensor, places: list[int], patches: list[int], weights: Any) -> Tensor:
    """(m, D): the features at ``places``; where tokens are merged, the sums that stand there instead, one by one."""
    taken = stream[places].clone()
    if weights is not None:
        merged = iter(weights.dense())
        for number, place in enumerate(places):
            if place in patches:
                row = next(merged)
                taken[number] = sum(row[n] * stream[patch] for n, patch in enumerate(patches))
    return taken


def long_positions(model: Any, row: Row, inputs: dict[str, Tensor]) -> Tensor:
    """(axes, B, S) the positions the stock model gives the long prompt."""
    names = (
        "mm_token_type_ids",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "attention_mask",
        "target_sizes",
    )
    given = {name: inputs[name] for name in names if name in inputs}
    if "video_second_per_grid" in inputs:  # what the processors of the omni models call it
        given["second_per_grids"] = inputs["video_second_per_grid"]
    positions: Tensor = inner(model).get_rope_index(inputs["input_ids"], **given)[0]
    return positions


@torch.no_grad()
def assemble(
    row: Row,
    model: Any,
    inputs: dict[str, Tensor],
    indices: Sequence[Tensor],
    newlines: str = "drop",
    positions: str = "compact",
    weights: Sequence[Any] | None = None,
) -> Assembled:
    streams = row.streams(model, inputs, row.kind)
    planes = row.planes(model, inputs, row.kind) if row.planes else [[] for _ in streams]
    weights = [None] * len(streams) if weights is None else weights
    rows, ids_kept, columns_kept, features, depth, carries = [], [], [], [], [], []
    image = -1
    left: list[int] = []
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        embeddings, columns, deeper = [], [], []
        place = 0
        for column, (token, there) in enumerate(zip(ids, mask, strict=True)):
            if not there:
                continue
            if token != row.token:
                embeddings.append(row.embed(model, torch.tensor(token)))
                columns.append(column)
                deeper.append(None)
                continue
            if not left:  # the first placeholder of the next image
                image += 1
                stream, chosen, sums = streams[image], indices[image].tolist(), weights[image]
                patches = patches_in(row, model, stream)
                kept = kept_places(row, model, stream, chosen, newlines, sums is not None)
                taken = take(stream, kept, patches, sums)
                planes_taken = [take(plane, kept, patches, sums) for plane in planes[image]]
                features.append(taken)
                carries.append([place in patches for place in kept])
                left, place = list(range(len(stream))), 0
            left.pop()
            for number, kept_place in enumerate(kept):
                if kept_place == place:
                    embeddings.append(taken[number])
                    columns.append(column)
                    deeper.append([plane[number] for plane in planes_taken])
            place += 1
        assert not left
        rows.append(torch.stack(embeddings))
        columns_kept.append(columns)
        depth.append(deeper)
        ids_kept.append([ids[column] for column in columns])
    assert image + 1 == len(streams)
    return replace(_pad(row, model, inputs, positions, rows, ids_kept, columns_kept, depth, features), carries=carries)


def _pad(
    row: Row,
    model: Any,
    inputs: dict[str, Tensor],
    positions: str,
    rows: list[Tensor],
    ids: list[list[int]],
    columns: list[list[int]],
    depth: list[list[list[Tensor] | None]],
    features: list[Tensor],
) -> Assembled:
    width = max(map(len, rows))
    batch = torch.zeros(len(rows), width, rows[0].shape[1])
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    position = torch.zeros(len(rows), width, dtype=torch.long)
    visual = torch.zeros(len(rows), width, dtype=torch.bool)
    whole = long_positions(model, row, inputs) if row.rope else None
    spatial = torch.zeros(3 if whole is None else len(whole), len(rows), width, dtype=torch.long)
    names = list(row.per_token(inputs["input_ids"]))
    types = {name: torch.zeros(len(rows), width, dtype=inputs[name].dtype) for name in names}
    levels = max((len(one) for deeper in depth for one in deeper if one is not None), default=0)
    planes = [torch.zeros_like(batch) for _ in range(levels)]
    for number, (one, places) in enumerate(zip(rows, columns, strict=True)):
        start = width - len(one)
        batch[number, start:] = one
        mask[number, start:] = 1
        first = inputs["attention_mask"][number].tolist().index(1)
        original = torch.tensor(places) - first
        position[number, start:] = original if positions == "original" else torch.arange(len(one))
        for name in names:
            types[name][number, start:] = inputs[name][number, places]
        if whole is not None:
            spatial[:, number, start:] = whole[:, number, places]
        for place, deeper in enumerate(depth[number]):
            if deeper is not None:
                visual[number, start + place] = True
                for level, plane in enumerate(deeper):
                    planes[level][number, start + place] = plane
    return Assembled(
        batch, mask, position if whole is None else spatial, ids, columns, visual, planes, types,
        torch.cat(features) if features else None, [len(one) for one in features],
    )  # fmt: skip


@torch.no_grad()
def logits_of(row: Row, model: Any, hidden: Tensor) -> Tensor:
    scores = row.scores(model, hidden)
    return scores if row.cap is None else row.cap * (scores / row.cap).tanh()


@torch.no_grad()
def greedy(
    row: Row, model: Any, assembled: Assembled, steps: int, suppress: Sequence[int] = SILENT
) -> tuple[Tensor, Tensor]:
    """(B, steps) tokens and (B, steps, V) logits: the language model run on the embeddings, without a cache.

    The tokens of ``suppress`` are never chosen.
    """
    embeddings, mask, positions = assembled.embeddings, assembled.mask, assembled.positions
    tokens, logits = [], []
    for _ in range(steps):
        hidden = row.hidden(model, embeddings, mask, positions, assembled)[:, -1]
        scores = logits_of(row, model, hidden)
        allowed = scores.clone()
        allowed[:, list(suppress)] = -torch.inf
        token = allowed.argmax(dim=-1)
        tokens.append(token)
        logits.append(scores)
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(token)[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
    return torch.stack(tokens, dim=1), torch.stack(logits, dim=1)


@torch.no_grad()
def generate(row: Row, model: Any, inputs: dict[str, Tensor], assembled: Assembled, **options: Any) -> Tensor:
    """The stock model's own generate on the short prompt; returns only the new tokens."""
    text = (assembled.mask.cumsum(1) - 1).clamp(min=0)
    positions = torch.cat([text[None], assembled.positions]) if row.rope and row.text_row else assembled.positions
    if row.embeds:
        result: Tensor = model.generate(
            inputs_embeds=assembled.embeddings, attention_mask=assembled.mask, position_ids=positions, **options
        )
        return result
    if not getattr(model, "_supports_mm_encoder_outputs", bool)():
        pytest.skip("this transformers takes no encoded images, and embeddings alone are not the whole prompt here")
    width = assembled.mask.shape[1]
    ids = torch.tensor([[0] * (width - len(one)) + one for one in assembled.ids])
    output = features_of(model, inputs, row.kind)
    assert assembled.kept is not None
    kept = list(assembled.kept.split(assembled.counts))
    planes = [list(plane[assembled.visual].split(assembled.counts)) for plane in assembled.planes]
    if row.hand is not None:
        row.hand(model, output, kept, planes)
    else:
        output.pooler_output = assembled.kept[:, None] if torch.is_tensor(output.pooler_output) else kept
        if planes:
            output.deepstack_features = planes
    assert isinstance(output, ModelOutput)
    result = model.generate(
        input_ids=ids,
        attention_mask=assembled.mask,
        position_ids=positions,
        mm_encoder_outputs={row.kind: output},
        **assembled.types,
        **options,
    )
    return result[:, width:]
