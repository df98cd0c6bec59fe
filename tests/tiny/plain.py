"""Encoders that pack patches, before LLMs with plain positions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.qwen import IMAGES, VIDEOS, WINDOWS, image_pixels, video_pixels, windows
from tests.tiny.rows import (
    END,
    IMAGE,
    START,
    TEXT,
    VIDEO,
    Row,
    encodes_apart,
    finish,
    flat,
    given_by,
    known,
    noise,
    one_each,
)

IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
CONTENT = 93
"""What ends the words that say what Kimi's placeholders are."""


def _made(config: str, model: str, attention: str, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    made = getattr(transformers, config)(**settings)
    return finish(getattr(transformers, model)(made), attention)


DEEPSEEK = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}


@cache
def kimi_k25(attention: str) -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return _made(
        "Kimi_K25Config",
        "Kimi_K25ForConditionalGeneration",
        attention,
        seed=1,  # of which no placeholder comes where none is suppressed: stock embeds it as another token
        vision_config={**vision, "pos_emb_height": 8, "pos_emb_width": 8},
        text_config={"model_type": "deepseek_v3", **TEXT, **DEEPSEEK},
        projection_hidden_size=32,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
        **IDS,
    )


def _windowed(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": WINDOWS["window_size"],
        "fullatt_block_indexes": WINDOWS["fullatt_block_indexes"],
        **more,
    }


@cache
def exaone4_5(attention: str) -> Any:
    return _made(
        "Exaone4_5_Config",
        "Exaone4_5_ForConditionalGeneration",
        attention,
        vision_config=_windowed("exaone4_5_vision", num_key_value_heads=2),
        text_config={
            "model_type": "exaone4",
            **TEXT,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        **IDS,
    )


@cache
def hyperclovax(attention: str) -> Any:
    return _made(
        "HyperCLOVAXVisionV2Config",
        "HyperCLOVAXVisionV2ForConditionalGeneration",
        attention,
        vision_config=_windowed("qwen2_5_vl_vision"),
        text_config={"model_type": "hyperclovax", **TEXT, "embedding_multiplier": 2.0, "logits_scaling": 0.5},
        tie_word_embeddings=False,
        **IDS,
    )


@cache
def video_llama_3(attention: str) -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return _made(
        "VideoLlama3Config",
        "VideoLlama3ForConditionalGeneration",
        attention,
        vision_config={**vision, "patch_size": 14},
        text_config={"model_type": "qwen2", **TEXT},
        **IDS,
    )


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "patch_size": 14}


@cache
def minimax_m3(attention: str) -> Any:
    return _made(
        "MiniMaxM3VLConfig",
        "MiniMaxM3SparseForConditionalGeneration",
        attention,
        vision_config={**VISION, "num_hidden_layers": 3},
        text_config={
            **TEXT,
            "head_dim": 16,
            "rotary_dim": 16,
            "dense_intermediate_size": 128,
            "intermediate_size": 32,
            "shared_intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", "sparse"],
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "index_n_heads": 2,
            "index_head_dim": 16,
        },
        projector_hidden_size=64,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )


MUSE = {
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "final_logit_softcapping": 20.0,
    "output_multiplier": 0.5,
}
ACROSS = 4
"""Patches per side of Muse's windows."""


def _muse(name: str, attention: str, text: dict[str, Any], **more: Any) -> Any:
    return _made(
        f"{name}Config",
        f"{name}ForConditionalGeneration",
        attention,
        vision_config={
            **VISION,
            "num_hidden_layers": 4,
            "pos_emb_height": ACROSS,
            "pos_emb_width": ACROSS,
            "max_position_embeddings": ACROSS**2,
            "layer_types": ["window_attention", "full_attention", "window_attention", "full_attention"],
        },
        text_config={**TEXT, **MUSE, **text},
        out_hidden_size=128,
        projector_hidden_size=64,
        **IDS,
        **more,
    )


@cache
def muse_glimmer(attention: str) -> Any:
    return _muse("MuseGlimmer", attention, {})


@cache
def muse_spark(attention: str) -> Any:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_hidden_size": 32}
    sound = {"patch_sizes": [4], "hidden_sizes": [16], "depths": [1], "num_hidden_layers": 1, "out_hidden_size": 64}
    text = {**experts, "mlp_layer_types": ["dense", "sparse"]}
    return _muse("MuseSpark", attention, text, audio_config=sound, audio_token_id=92)


def capped(model: Any, hidden: Tensor) -> Tensor:
    """Muse's logits."""
    text = model.config.text_config
    top = text.final_logit_softcapping
    return torch.tanh(model.lm_head(hidden) * text.output_multiplier / top) * top


@cache
def dots3_note(attention: str) -> Any:
    latent = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, **latent}
    model = _made(
        "Dots3NoteConfig",
        "Dots3NoteForConditionalGeneration",
        attention,
        vision_config={
            **VISION,
            "num_hidden_layers": 3,
            "adapter_in_dim": 32,
            "adapter_out_dim": 64,
            "moe_intermediate_size": 32,
            "pyramid_num_routed": [-1, -1, 4],
        },
        text_config={
            **TEXT,
            **heads,
            **{f"swa_{name}": value for name, value in heads.items()},
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "shared_experts_intermediate_size": 32,
            "layer_types": ["indexed_attention", "sliding_attention"],
            "sliding_window": 8,
            "index_topk": 64,  # all: what a ReLU made 0 ties, and which of them is taken goes by the cache's length
            "index_head_dim": 16,
            "index_n_heads": 2,
        },
        audio_config={
            "whisper_config": {
                "d_model": 32,
                "encoder_attention_heads": 4,
                "encoder_layers": 1,
                "encoder_ffn_dim": 32,
                "num_mel_bins": 16,
            },
            "adapter_input_size": 32,
            "adapter_out_dim": 64,
            "downsample_hidden_size": 8,
        },
        audio_token_id=92,
        **IDS,
    )
    for layer in [*model.model.vision_tower.blocks, *model.model.language_model.layers]:
        if hasattr(layer.mlp, "experts"):
            # The grouped one, taken by default, knows no double precision.
            layer.mlp.experts.config._experts_implementation = "eager"
    return model


def square_patches(side: int, numbers: list[list[int]], video: bool = False) -> dict[str, Tensor]:
    """Patches as little pictures, row by row."""
    grids, first, names = (VIDEOS, 20, ("pixel_values_videos", "video_grid_thw")) if video else (
        IMAGES, 0, ("pixel_values", "image_grid_thw")
    )  # fmt: skip
    chosen = flat(numbers)
    patches = [noise(first + number, math.prod(grids[number]), 3, side, side) for number in chosen]
    return dict(zip(names, (torch.cat(patches), torch.tensor([grids[number] for number in chosen])), strict=True))


def write_media(number: int, count: int, token: int = IMAGE) -> list[int]:
    """Kimi says what follows before its placeholders."""
    return [START, 60, CONTENT, *[token] * count, END]


def by_rows(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What every patch receives from all frames of its chunk, summed over the square of each frame."""
    grids = next(inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs).tolist()
    # One matrix for each chunk, or all rows packed by frames when put together by hand.
    whole = torch.cat([matrix[0].mean(dim=0) for matrix in matrices])
    found = []
    for (times, rows, columns), image in zip(grids, images, strict=True):
        received, whole = whole[: times * rows * columns].view(times, rows, columns), whole[times * rows * columns :]
        geometry = image.tokens.geometry
        places = zip(geometry.row.tolist(), geometry.column.tolist(), strict=True)
        found.append(
            torch.stack(
                [received[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].sum() for row, column in places]
            )
        )
    return found


def by_squares(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What every patch receives; those of a token stand together and are summed."""
    received = torch.cat([matrix[0].mean(dim=0) for matrix in matrices])
    merges = next((inputs[name] for name in ("image_merge_sizes", "video_merge_sizes") if name in inputs), None)
    unit = 4 if merges is None else int(merges[0]) ** 2
    stays = inputs.get("video_compression_mask")
    sums = received.view(-1, unit).sum(dim=1)
    return list((sums if stays is None else sums[stays]).split([len(image.tokens) for image in images]))


def by_patch_windows(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """What every patch receives, put back from its window, summed over squares."""
    frames = iter(matrices)
    found = []
    for image in images:
        tokens = []
        for rows, columns in image.tokens.geometry.grids:
            order = windows(2 * rows, 2 * columns, ACROSS)
            place = [order.index(divmod(patch, 2 * columns)) for patch in range(4 * rows * columns)]
            received = next(frames)[0].mean(dim=0)[torch.tensor(place)].view(rows, 2, columns, 2)
            tokens.append(received.sum(dim=(1, 3)).flatten())
        found.append(torch.cat(tokens))
    return found


def in_windows(model: Any, inputs: dict[str, Tensor], kind: str) -> Tensor:
    """What Muse's last norm gives, row by row, in the order of windows."""
    given = given_by(lambda model: model.model.vision_tower.ln_post)(model, inputs, kind)
    order, first = [], 0
    for times, rows, columns in inputs["image_grid_thw" if kind == "image" else "video_grid_thw"].tolist():
        for _ in range(times):
            order += [first + row * columns + column for row, column in windows(rows, columns, ACROSS)]
            first += rows * columns
    return given[torch.tensor(order)]


def still_patches(side: int, numbers: list[list[int]], video: bool = False) -> dict[str, Tensor]:
    """Patches of one frame each, square by square."""
    names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
    chosen = flat(numbers)
    grids = [(VIDEOS if video else IMAGES)[number] for number in chosen]
    patches = [
        noise(number + 20 * video, math.prod(grid), 3 * side**2) for number, grid in zip(chosen, grids, strict=True)
    ]
    return dict(zip(names, (torch.cat(patches), torch.tensor(grids)), strict=True))


def merged_pixels(side: int, numbers: list[list[int]], video: bool = False) -> dict[str, Tensor]:
    """With the sides of the squares that become tokens: of images 1, of videos 2."""
    name, unit = ("video_merge_sizes", 2) if video else ("image_merge_sizes", 1)
    return {**still_patches(side, numbers, video), name: torch.full((len(flat(numbers)),), unit)}


def compressed_pixels(side: int, numbers: list[list[int]]) -> dict[str, Tensor]:
    """Videos of which the processor has left out some tokens."""
    counts = [math.prod(VIDEOS[number]) // 4 for number in flat(numbers)]
    stays = [torch.arange(count) % (3 + number) != 2 for number, count in zip(flat(numbers), counts, strict=True)]
    return {**merged_pixels(side, numbers, video=True), "video_compression_mask": torch.cat(stays)}


def uncompressed(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    """What stays of every image or video."""
    whole = one_each(model, inputs, kind)
    stays = inputs.get("video_compression_mask")
    if stays is None:
        return whole
    parts = stays.split([len(one) for one in whole])
    return [one[part] for one, part in zip(whole, parts, strict=True)]


def by_windows(model: Any, inputs: dict[str, Tensor], matrices: list[Tensor], images: Any) -> list[Tensor]:
    """Per frame what every patch receives, four summed to a token, windows put back in their places."""
    frames = iter(matrices)
    found = []
    for image in images:
        tokens = []
        for rows, columns in image.tokens.geometry.grids:
            sums = next(frames)[0].mean(dim=0).view(-1, 4).sum(dim=1)
            order = [row * columns + column for row, column in windows(rows, columns, WINDOWS["window_size"] // 28)]
            tokens.append(sums[torch.tensor([order.index(place) for place in range(rows * columns)])])
        found.append(torch.cat(tokens))
    return found


def mixes_beams(model: str) -> bool:
    """Whether stock beam search repeats pixels, patch by patch: it encodes images first where the class names them."""
    return "image" not in getattr(transformers, model).input_modalities


def write_bare(_: int, count: int) -> list[int]:
    """A video without marks."""
    return [VIDEO] * count


def pair(name: str, make: Callable[[str], Any], **more: Any) -> dict[str, Row]:
    """A row with images and one with videos, of a type whose config names no marks around them."""
    return {
        name: Row(make, partial(image_pixels, 14), **more),
        f"{name}-video": Row(make, partial(video_pixels, 14, False), kind="video", write=write_bare, **more),
    }


ROWS: dict[str, Row] = {}
if known("kimi_k25"):
    shared: dict[str, Any] = {"read": lambda model: model.model.vision_tower.layers[-1].attn, "saliency": by_rows}
    ROWS["kimi_k25"] = Row(kimi_k25, partial(square_patches, 14), write=write_media, **shared)
    # Before, stock took as many tokens for a chunk of frames as if they were not averaged, and failed.
    if "[:, 1:]" in inspect.getsource(transformers.Kimi_K25Model.get_image_features):
        ROWS["kimi_k25-video"] = Row(
            kimi_k25,
            partial(square_patches, 14, video=True),
            kind="video",
            write=partial(write_media, token=VIDEO),
            **shared,
        )
if known("exaone4_5"):
    ROWS |= pair(
        "exaone4_5",
        exaone4_5,
        read=lambda model: model.model.visual.blocks[-1].attn,
        saliency=by_windows,
        encoded=given_by(lambda model: model.model.visual.blocks[-1]),
        positions=("compact",),
        mixes_beams=mixes_beams("Exaone4_5_ForConditionalGeneration"),
        embeds=False,  # stock generate refuses them
    )
if known("hyperclovax_vision_v2"):
    ROWS |= pair(
        "hyperclovax_vision_v2",
        hyperclovax,
        read=lambda model: model.model.vision_model.blocks[-1].attn,
        saliency=by_windows,
        scores=lambda model, hidden: model.lm_head(hidden) * model.config.text_config.logits_scaling,
        positions=("compact",),
        embeds=False,
    )
if encodes_apart("VideoLlama3Model"):  # before, stock counts the pictures of beams in the prompt
    llama: dict[str, Any] = {
        "read": lambda model: model.model.vision_model.encoder.layers[-1].self_attn,
        "saliency": by_squares,
        "streams": uncompressed,
        "slices": False,
        "encoded": given_by(lambda model: model.model.vision_model.post_layernorm),
    }
    ROWS["video_llama_3"] = Row(video_llama_3, partial(merged_pixels, 14), **llama)
    ROWS["video_llama_3-video"] = Row(
        video_llama_3, partial(merged_pixels, 14, video=True), kind="video", write=write_bare, **llama
    )
# Before, its encoder let all images of a call see each other; such models are refused.
if known("minimax_m3_vl") and "cu_seqlens" in inspect.getsource(transformers.MiniMaxM3VLVisionModel.forward):
    ROWS |= pair(
        "minimax_m3_vl",
        minimax_m3,
        positions=("compact",),
        read=lambda model: model.model.vision_tower.layers[-1].self_attn,
        saliency=by_squares,
        encoded=lambda *given: given_by(lambda model: model.model.vision_tower.layers[-1])(*given)[0],
    )
for name, make, model_name in (
    ("muse_glimmer", muse_glimmer, "MuseGlimmerForConditionalGeneration"),
    ("muse_spark", muse_spark, "MuseSparkForConditionalGeneration"),
):
    if known(name):
        ROWS |= pair(
            name,
            make,
            read=lambda model: model.model.vision_tower.layers[-1].attn,
            saliency=by_patch_windows,
            encoded=in_windows,
            scores=capped,
            mixes_beams=mixes_beams(model_name),
        )
if known("dots3_note"):
    note: dict[str, Any] = {
        "read": lambda model: model.model.vision_tower.blocks[-1].attn,
        "saliency": by_squares,
    }
    ROWS["dots3_note"] = Row(dots3_note, partial(still_patches, 14), **note)
    ROWS["dots3_note-video"] = Row(
        dots3_note, partial(still_patches, 14, video=True), kind="video", write=write_bare, **note
    )
