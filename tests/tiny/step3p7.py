"""Step 3.7: crops of a picture and, behind them, the whole; experts and a sliding window in its language model."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.plain import mixes_beams
from tests.tiny.rows import END, IMAGE, START, TEXT, Row, features_of, finish, flat, inner, known, noise

CROP, CROPPED, LINE = 93, 92, 91
"""Ids of ``<patch_start>``, ``<patch_end>`` and ``<patch_newline>``."""
PATCH = 4
WHOLE, LOCAL = 48, 32
"""Pixels of a side of whole views and of crops: 3 x 3 and 2 x 2 tokens."""
IMAGES = [(1, 2), (0, 0), (2, 2)]
"""(rows, columns) of crops."""
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": WHOLE,
    "patch_size": PATCH,
    "mlp_ratio": 2.0,
    "layer_scale_init_value": 1.0,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4},
}
LLM = {
    **TEXT,
    "head_dim": 16,
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 512,
    "mlp_layer_types": ["dense", "sparse"],
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "share_expert_dim": 32,
}


@cache
def step3p7(attention: str) -> Any:
    torch.manual_seed(0)
    config = transformers.Step3p7Config(
        vision_config=VISION, text_config=LLM, image_token_id=IMAGE, tie_word_embeddings=False
    )
    return finish(transformers.Step3p7ForConditionalGeneration(config), attention)


def crops(number: int) -> int:
    return IMAGES[number][0] * IMAGES[number][1]


def pixels(numbers: list[list[int]]) -> dict[str, Tensor]:
    found = flat(numbers)
    if not found:
        return {}
    counts = [crops(number) for number in found]
    local = [noise(50 + number, count, 3, LOCAL, LOCAL) for number, count in zip(found, counts, strict=True)]
    return {
        "pixel_values": torch.stack([noise(number, 3, WHOLE, WHOLE) for number in found]),
        **({"pixel_values_local": torch.cat(local)} if sum(counts) else {}),
        "num_local_patches": torch.tensor(counts),
    }


def write(number: int, count: int) -> list[int]:
    """As the processor does: crops row by row with a mark behind a row but the last, then the whole."""
    rows, columns = IMAGES[number]
    whole, part = ([IMAGE] * (side // PATCH // 4) ** 2 for side in (WHOLE, LOCAL))
    lines = [[CROP, *part, CROPPED] * columns for _ in range(rows)]
    ids = [token for place, line in enumerate(lines) for token in (*([LINE] if place else []), *line)]
    ids += [START, *whole, END]
    assert ids.count(IMAGE) == count
    return ids


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    return list(features_of(model, inputs, kind).pooler_output) if "pixel_values" in inputs else []


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What every patch receives in its view, summed over a token's: three along a side at the start, then four, and
    what is left at the end. The encoder sees all whole views, then all crops."""
    received = torch.cat([matrix.mean(dim=1).flatten() for matrix in matrices])
    counts = inputs["num_local_patches"].tolist()
    whole, crop = WHOLE // PATCH, LOCAL // PATCH
    views = [*received[: len(counts) * whole**2].view(-1, whole, whole)]
    local = iter(received[len(counts) * whole**2 :].view(-1, crop, crop))
    found = []
    for number, count in enumerate(counts):
        sums = []
        for view in [*(next(local) for _ in range(count)), views[number]]:
            borders = [0, *range(3, len(view) - 4, 4), len(view)]
            for top, bottom in pairwise(borders):
                for left, right in pairwise(borders):
                    sums.append(view[top:bottom, left:right].sum())
        found.append(torch.stack(sums))
    return found


def encoded(model: Any, inputs: dict[str, Tensor], kind: str) -> Tensor:
    """(1, patches of all views, d): what the last layer gives, in both of its runs."""
    found: list[Tensor] = []
    layer = inner(model).vision_model.layers[-1]
    hook = layer.register_forward_hook(lambda module, args, output: found.append(output.flatten(0, 1)))
    features_of(model, inputs, kind)
    hook.remove()
    return torch.cat(found)[None]


ROWS: dict[str, Row] = {}
if known("step3p7"):
    ROWS["step3p7"] = Row(
        step3p7,
        pixels,
        lambda model: model.model.vision_model.layers[-1].self_attn,
        saliency,
        write=write,
        streams=streams,
        encoded=encoded,
        runs=2,
        mixes_beams=mixes_beams("Step3p7ForConditionalGeneration"),
    )
