"""Molmo 2: a whole view and overlapping crops, squares of patches along a table, row ends with an id of their own."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.rows import END, IMAGE, START, TEXT, Row, features_of, finish, flat, given_by, known, noise
from tests.tiny.siglip import _additive

PATCH, SIDE = 14, 5
"""Pixels of a patch's side, patches of a crop's."""
MARGIN, STEP = 1, 3
"""Patches that a crop gives up at a side where another follows, and how far apart crops are."""
GRIDS = [(1, 2), (1, 1), (2, 1)]
"""(rows, columns) of crops."""
FRAMES = [2, 1, 3]
LOW, COLUMN, FRAME, FRAMED = 95, 94, 93, 92
"""Ids of ``<low_res_im_start>``, ``<im_col>``, ``<frame_start>`` and ``<frame_end>``."""
VISUAL = [IMAGE, START, END, LOW, COLUMN, FRAME, FRAMED]


@cache
def molmo2(attention: str) -> Any:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    config = transformers.Molmo2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "image_size": [PATCH * SIDE] * 2,
            "patch_size": PATCH,
            **heads,
        },
        adapter_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "text_hidden_size": 64,
            "vision_feature_layer": [0, -2],  # the deepest comes last, and a layer behind it goes unread
            **heads,
        },
        text_config={**TEXT, "head_dim": 16, "additional_vocab_size": 4, "rope_scaling_layers": [1]},
        image_patch_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
        low_res_image_start_token_id=LOW,
        frame_start_token_id=FRAME,
        frame_end_token_id=FRAMED,
    )
    return finish(transformers.Molmo2ForConditionalGeneration(config), attention)


def squares(canvas: list[list[int]], side: int) -> tuple[list[list[int]], tuple[int, int]]:
    """The patches of every square of ``side`` x ``side``, row by row, and (rows, columns) of squares."""
    height, width = len(canvas), len(canvas[0])
    rows, columns = -(-height // side), -(-width // side)
    before = [(count * side - extent) // 2 for count, extent in ((rows, height), (columns, width))]

    def patch(row: int, column: int) -> int:
        row, column = row - before[0], column - before[1]
        return canvas[row][column] if 0 <= row < height and 0 <= column < width else -1

    table = [
        [patch(side * row + y, side * column + x) for y in range(side) for x in range(side)]
        for row in range(rows)
        for column in range(columns)
    ]
    return table, (rows, columns)


def whole(first: int) -> list[list[int]]:
    """The patches of one crop, the first of them numbered ``first``."""
    return [[first + SIDE * row + column for column in range(SIDE)] for row in range(SIDE)]


def canvas(grid: tuple[int, int], first: int) -> list[list[int]]:
    """The crops put together: a patch comes from the crop that it lies inside of without its margin."""

    def along(place: int, crops: int) -> tuple[int, int]:
        crop = min(max((place - MARGIN) // STEP, 0), crops - 1)
        return crop, place - STEP * crop

    found = []
    for row in range(STEP * grid[0] + 2 * MARGIN):
        line = []
        for column in range(STEP * grid[1] + 2 * MARGIN):
            (down, y), (across, x) = along(row, grid[0]), along(column, grid[1])
            line.append(first + (down * grid[1] + across) * SIDE**2 + SIDE * y + x)
        found.append(line)
    return found


def images(numbers: list[list[int]]) -> dict[str, Tensor]:
    crops, table, grids, first = [], [], [], 0
    for number in flat(numbers):
        count = 1 + GRIDS[number][0] * GRIDS[number][1]
        crops.append(noise(number, count, SIDE**2, 3 * PATCH**2))
        low, coarse = squares(whole(first), 2)
        high, fine = squares(canvas(GRIDS[number], first + SIDE**2), 2)
        table += low + high
        grids.append([*coarse, *fine])
        first += count * SIDE**2
    if not crops:
        return {}
    return {
        "pixel_values": torch.cat(crops),
        "image_token_pooling": torch.tensor(table),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor([len(one) for one in crops]),
    }


def videos(numbers: list[list[int]]) -> dict[str, Tensor]:
    found = [(number, frame) for number in flat(numbers) for frame in range(FRAMES[number])]
    if not found:
        return {}
    table: list[list[int]] = []
    for place in range(len(found)):
        ours, grid = squares(whole(place * SIDE**2), 3)
        table += ours
    return {
        "pixel_values_videos": torch.stack([noise(50 + 10 * n + f, SIDE**2, 3 * PATCH**2) for n, f in found]),
        "video_token_pooling": torch.tensor(table),
        "video_grids": torch.tensor([[FRAMES[number], *grid] for number in flat(numbers)]),
    }


def write(number: int, count: int) -> list[int]:
    rows, columns = (-(-(STEP * crops + 2 * MARGIN) // 2) for crops in GRIDS[number])
    low = -(-SIDE // 2)
    ids = [LOW, *[*[IMAGE] * low, COLUMN] * low, END, START, *[*[IMAGE] * columns, COLUMN] * rows, END]
    assert ids.count(IMAGE) == count
    return ids


def write_frames(number: int, count: int) -> list[int]:
    """A time before every frame: 70.71, 70.72 and so on."""
    run = [IMAGE] * (count // FRAMES[number])
    return [token for frame in range(FRAMES[number]) for token in (70, 69, 71 + frame, 68, FRAME, *run, FRAMED)]


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": torch.isin(ids, torch.tensor(VISUAL)).long()}


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """The forward adds what it is given to the placeholder's own embedding."""
    if not any(name in inputs for name in ("pixel_values", "pixel_values_videos")):
        return []
    placeholder = own(model)
    return [placeholder + one for one in features_of(model, inputs, kind).pooler_output]


def own(model: Any) -> Tensor:
    """(D,) the placeholder's own embedding."""
    embedding: Tensor = model.get_input_embeddings()(torch.tensor(IMAGE)).detach()
    return embedding


def hand(model: Any, output: Any, kept: list[Tensor], planes: list[list[Tensor]]) -> None:
    placeholder = own(model)
    output.pooler_output = [one - placeholder for one in kept]


def read(model: Any) -> Any:
    return model.model.vision_tower.layers[1].self_attn


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    received = torch.cat(matrices).mean(dim=1).flatten()
    table = inputs["image_token_pooling" if "pixel_values" in inputs else "video_token_pooling"]
    sums = torch.stack([received[patches[patches >= 0]].sum() for patches in table])
    return list(sums.split([len(image.tokens) for image in images]))


def together(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """All that is visual in a prompt, marks included, sees each other, whichever picture it belongs to."""
    length, given = embeddings.shape[1], prompt.visual.shape[1]
    visual = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
    visual[:, :given] = prompt.types["mm_token_type_ids"] == 1
    causal = torch.arange(length)[:, None] >= torch.arange(length)
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=_additive(causal | visual[:, :, None] & visual[:, None], mask),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state


READ = given_by(lambda model: model.model.vision_tower.layers[1])
"""The output of the deepest layer that is read."""

ROWS: dict[str, Row] = {}
if known("molmo2"):
    ROWS["molmo2"] = Row(
        molmo2, images, read, saliency, write=write, per_token=types, streams=streams, hidden=together, encoded=READ,
        embeds=False, hand=hand,
    )  # fmt: skip
    ROWS["molmo2-video"] = Row(
        molmo2, videos, read, saliency, kind="video", write=write_frames, per_token=types, streams=streams,
        hidden=together, encoded=READ, embeds=False, placeholder=IMAGE,
        hand=hand,
    )  # fmt: skip
