"""Llama 4's geometry with its own image processor, which needs torchvision."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from tests.tiny.llama4 import ACROSS, DOWN, WHOLE
from tests.tiny.rows import END, IMAGE, START, TEXT, finish, known

SIDE = 336


@cache
def llama4() -> Any:
    """As released: tiles of 336 pixels, patches of 14, squares of 2 x 2 to a token; seen as ``seeing_only_its_own``
    has it, whose encoder's first layer is no convolution here."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    torch.manual_seed(0)
    config = Llama4Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": 14,
            "vision_output_dim": 48,
            "projector_input_dim": 48,
            "projector_output_dim": 48,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        text_config={**TEXT, "num_hidden_layers": 1, "head_dim": 16, "num_local_experts": 2},
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    model = finish(Llama4ForConditionalGeneration(config), "sdpa")
    tower = model.vision_model
    for layer in tower.model.layers:
        layer.forward = lambda hidden_state, **_: (hidden_state,)
    weight = tower.patch_embedding.linear.weight
    row = torch.randn(len(weight), generator=torch.Generator().manual_seed(1))
    weight.data.copy_((row * 1e-4 / weight.shape[1])[:, None].expand_as(weight))
    return model


def process(picture: Image.Image) -> dict[str, Any]:
    from transformers import Llama4ImageProcessor

    found = dict(Llama4ImageProcessor(size={"height": SIDE, "width": SIDE})(picture, return_tensors="pt"))
    return {**found, "pixel_values": found["pixel_values"].float()}


def write(inputs: dict[str, Any], count: int) -> list[int]:
    rows, columns = (int(number) for number in inputs["aspect_ratios"][0])
    run = [IMAGE] * (count // len(inputs["pixel_values"]))
    ids = [START]
    for _ in range(rows if rows * columns > 1 else 0):
        ids += [token for _ in range(columns) for token in (*run, ACROSS)][:-1]
        ids.append(DOWN)
    return [*ids, WHOLE, *run, END]


RUNS = known("llama4") and is_torchvision_available()
