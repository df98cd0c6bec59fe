"""Gemma 4: dense and with experts (an image's tokens see each other), with embeddings per layer; images and videos."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny import siglip
from tests.tiny.qwen import types, write_image
from tests.tiny.rows import (
    END,
    IMAGE,
    START,
    TEXT,
    VIDEO,
    Row,
    encodes_apart,
    features_of,
    finish,
    flat,
    language_model,
    noise,
)
from tests.tiny.siglip import WINDOW

PATCH, SIDE = 4, 3
# (rows, columns) of tokens, 3 x 3 patches each: portrait, square and landscape
IMAGES = [(4, 2), (3, 3), (2, 5)]
# (frames, rows, columns)
VIDEOS = [(3, 2, 3), (1, 3, 2), (2, 2, 2)]
MOST = 12
"""Tokens of the largest view: all are filled up to its patches."""
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "boi_token_id": START,
    "eoi_token_id": END,
    "audio_token_id": 93,
    "boa_token_id": 94,
    "eoa_token_index": 95,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": PATCH,
    "pooling_kernel_size": SIDE,
    "position_embedding_size": 128,
}
LAYERS = ["sliding_attention", "full_attention"]
LARGE = {
    **TEXT,
    "head_dim": 16,
    "global_head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": LAYERS,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 100,
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
SMALL = {
    **LARGE,
    "num_hidden_layers": 4,
    "layer_types": LAYERS * 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "use_bidirectional_attention": None,
    "attention_k_eq_v": False,
}


@cache
def gemma4(text: str, attention: str) -> Any:
    torch.manual_seed(0)
    kinds = {"large": LARGE, "experts": {**LARGE, **EXPERTS}, "small": SMALL}
    vision = {**VISION, "standardize": text != "small"}
    config = transformers.Gemma4Config(text_config=kinds[text], vision_config=vision, audio_config=None, **IDS)
    model = finish(transformers.Gemma4ForConditionalGeneration(config), attention)
    if text != "small":
        tower = model.model.vision_tower
        tower.std_bias.copy_(noise(3, 32) * 0.1)
        tower.std_scale.copy_(noise(4, 32).exp())
    return model


@cache
def unified(attention: str) -> Any:
    torch.manual_seed(0)
    text = {name: value for name, value in LARGE.items() if "per_layer_input" not in name}
    vision = {"patch_size": PATCH, "pooling_kernel_size": SIDE, "mm_embed_dim": 64, "output_proj_dims": 64}
    vision["mm_posemb_size"] = 64
    config = transformers.Gemma4UnifiedConfig(text_config=text, vision_config=vision, audio_config=None, **IDS)
    return finish(transformers.Gemma4UnifiedForConditionalGeneration(config), attention)


def whole_squares(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same pictures as their tokens' squares of pixels."""
    pixels, places = inputs["pixel_values"], inputs["image_position_ids"]
    count = [int((one[:, 0] >= 0).sum()) for one in places]
    found, where = torch.zeros(len(pixels), MOST, 3 * (PATCH * SIDE) ** 2), torch.full((len(pixels), MOST, 2), -1)
    for number, (patches, there) in enumerate(zip(pixels, count, strict=True)):
        found[number, : there // SIDE**2] = patches[:there].reshape(there // SIDE**2, -1)
        columns, rows = (places[number].amax(dim=0) + 1).tolist()
        squares = [[x, y] for y in range(rows // SIDE) for x in range(columns // SIDE)]
        where[number, : len(squares)] = torch.tensor(squares)
    return {"pixel_values": found, "image_position_ids": where}


def _padded(views: Sequence[tuple[int, int]], numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(views, patches, values) and (views, patches, 2) x and y, filled up behind with 0 and -1."""
    most = MOST * SIDE**2
    pixels, places = torch.zeros(len(views), most, 3 * PATCH**2), torch.full((len(views), most, 2), -1)
    for place, ((rows, columns), number) in enumerate(zip(views, numbers, strict=True)):
        height, width = rows * SIDE, columns * SIDE
        pixels[place, : height * width] = noise(number, height * width, 3 * PATCH**2).sigmoid()
        where = [[x, y] for y in range(height) for x in range(width)]
        places[place, : height * width] = torch.tensor(where)
    return pixels, places


def images(numbers: list[list[int]]) -> dict[str, Tensor]:
    pixels, places = _padded([IMAGES[number] for number in flat(numbers)], flat(numbers))
    return {"pixel_values": pixels, "image_position_ids": places}


def videos(numbers: list[list[int]]) -> dict[str, Tensor]:
    found = [VIDEOS[number] for number in flat(numbers)]
    frames = [(number, frame) for number in flat(numbers) for frame in range(VIDEOS[number][0])]
    pixels, places = _padded(
        [VIDEOS[number][1:] for number, _ in frames], [50 + 10 * number + frame for number, frame in frames]
    )
    return {
        "pixel_values_videos": pixels,
        "video_position_ids": places,
        "num_frames_per_video": torch.tensor([count for count, _, _ in found]),
    }


def write_frames(number: int, count: int) -> list[int]:
    """A time before every frame."""
    frames = VIDEOS[number][0]
    run = [START, *[VIDEO] * (count // frames), END]
    return [token for frame in range(frames) for token in (70, 70, 69, 70, 70 + frame, *run)]


def streams(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    output = features_of(model, inputs, kind).pooler_output
    whole = output if torch.is_tensor(output) else torch.cat(list(output))
    positions = inputs["image_position_ids" if kind == "image" else "video_position_ids"]
    merged = 1 if model.config.model_type == "gemma4_unified" else SIDE**2
    counts = [int((one[:, 0] >= 0).sum()) // merged for one in positions]
    if kind == "video":
        views = iter(counts)
        counts = [sum(next(views) for _ in range(frames)) for frames in inputs["num_frames_per_video"].tolist()]
    return list(whole.split(counts))


def read(model: Any) -> Any:
    return model.model.vision_tower.encoder.layers[-1].self_attn


def saliency(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What a view's own patches give each other, summed over squares; what fills it up is looked at by nobody."""
    views = iter(torch.cat(matrices))
    found = []
    for image in images:
        tokens = []
        for rows, columns in image.tokens.geometry.grids:
            matrix, real = next(views), rows * columns * SIDE**2
            received = matrix[:real, :real].mean(dim=0).view(rows * SIDE, columns * SIDE)
            tokens += [
                received[row : row + SIDE, column : column + SIDE].sum()
                for row in range(0, rows * SIDE, SIDE)
                for column in range(0, columns * SIDE, SIDE)
            ]
        found.append(torch.stack(tokens))
    return found


def blocks(
    model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any, everywhere: bool = False
) -> Tensor:
    """The larger models: in layers with a window, an image's tokens see each other, so far as the window reaches.

    With ``everywhere``, in all layers, and past the window.
    """
    length = embeddings.shape[1]
    visual = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
    visual[:, : prompt.visual.shape[1]] = prompt.visual
    starts = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    number = torch.where(visual, starts.cumsum(1), 0)
    together = (number[:, :, None] == number[:, None]) & visual[:, :, None]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    causal, near = distance >= 0, distance < WINDOW
    # Since 5.19 the window cuts a block too; in 5.5 a block saw all of itself.
    cut = hasattr(
        importlib.import_module("transformers.models.gemma4.modeling_gemma4"), "create_masks_for_vision_model"
    )
    sliding = (causal | together) & near if cut and not everywhere else causal & near | together
    full = causal | together if everywhere else causal.expand_as(together)
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask={
            "full_attention": siglip._additive(full, mask),
            "sliding_attention": siglip._additive(sliding, mask),
        },
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state


def per_layer(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """The smaller models: each layer gets an embedding of its own by id, images' places that of padding."""
    ids = torch.zeros(embeddings.shape[:2], dtype=torch.long)
    words = model.get_input_embeddings()(torch.arange(model.config.text_config.vocab_size))
    same = (embeddings[:, :, None] == words).all(dim=-1)
    text = same.any(dim=-1)
    ids[text] = same.int().argmax(dim=-1)[text]
    assert not (text[:, : prompt.visual.shape[1]] & prompt.visual).any()
    llm = model.model.language_model
    return llm(
        inputs_embeds=embeddings,
        per_layer_inputs=llm.get_per_layer_inputs(ids, None),
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state


def _row(text: str, hidden: Any, **more: Any) -> Row:
    return Row(
        partial(gemma4, text),
        **{"pixels": images, "write": write_image, **more},
        read=read,
        saliency=saliency,
        per_token=types,
        streams=streams,
        hidden=hidden,
        embeds=False,
        hands=lambda model: model.model.vision_tower.encoder,
    )


ROWS: dict[str, Row] = {}
# 5.19 makes the masks for a static cache before it looks at token types, and so for text alone.
typed = "kwargs.pop(token_type_key" in inspect.getsource(transformers.GenerationMixin.prepare_inputs_for_generation)
untyped = {} if typed else {"static": language_model}
if encodes_apart("Gemma4Model"):
    ROWS = {
        "gemma4": _row("large", blocks, **untyped),
        "gemma4-experts": _row("experts", blocks, **untyped),
        "gemma4-per-layer": _row("small", per_layer),
    }
    # Before, all videos of a call had to have as many frames.
    if "num_frames_per_video" in inspect.signature(transformers.Gemma4Model.get_video_features).parameters:
        # 5.19 does not hand them on in a forward, and needs them.
        hands_on = "num_frames_per_video=num_frames" in inspect.getsource(transformers.Gemma4Model.forward)
        fails = {} if hands_on else {"forward": "num_frames_per_video. is required"}
        film = {"pixels": videos, "write": write_frames, "kind": "video", "fails": fails}
        ROWS["gemma4-video"] = _row("large", blocks, **film, **untyped)
if encodes_apart("Gemma4UnifiedModel"):
    # Up to 5.24 its forward makes Gemma 3's mask, and that of Gemma 4 is made for static caches only.
    alike = "create_masks_for_vision_model" in inspect.getsource(transformers.Gemma4UnifiedModel.forward)
    masked = {} if alike else {"static": blocks}
    ROWS["gemma4_unified"] = Row(
        unified,
        lambda numbers: whole_squares(images(numbers)),
        lambda model: model.model.embed_vision.patch_dense,
        saliency,
        write=write_image,
        per_token=types,
        streams=streams,
        hidden=partial(blocks, everywhere=not alike),
        **{**masked, **untyped},
        embeds=False,
        unread=("saliency", "keys", "encoded"),
    )
