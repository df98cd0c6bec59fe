"""Gemma 3n, FastVLM and PerceptionLM: encoders from timm, which few environments have."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.utils import is_timm_available

from tests.tiny.rows import END, IMAGE, START, TEXT, VIDEO, Row, features_of, finish, flat, ids_of, known, noise

LARGE = 128
"""Pixels of a picture's side: 4 x 4 cells of the convolutional towers."""
WINDOW, CAP = 8, 30.0


@cache
def fast_vlm(attention: str) -> Any:
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration

    torch.manual_seed(0)
    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper", "architecture": "test_convnext", "do_pooling": True, "hidden_size": 64,
        },
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=IMAGE,
    )  # fmt: skip
    return finish(FastVlmForConditionalGeneration(config), attention)


@cache
def gemma3n(attention: str) -> Any:
    from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

    torch.manual_seed(0)
    text = {
        **TEXT,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": END,
        "hidden_size_per_layer_input": 16,
        "altup_num_inputs": 2,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "final_logit_softcapping": CAP,
        "activation_sparsity_pattern": [0.5, 0.0],
        "eos_token_id": 2,
    }
    config = Gemma3nConfig(
        # As released, the end of an image is the first of the ids that the embedder of images has words for.
        vision_config={
            "architecture": "test_convnext", "hidden_size": 64, "vocab_size": 3, "vocab_offset": END,
        },
        text_config=text,
        audio_config={
            "hidden_size": 32, "vocab_size": 2, "vocab_offset": 100, "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 2,
        },
        vision_soft_tokens_per_image=16,
        boi_token_id=START,
        eoi_token_id=END,
        image_token_id=IMAGE,
        boa_token_id=95,
        eoa_token_id=VIDEO,
        audio_token_id=94,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = finish(Gemma3nForConditionalGeneration(config), attention)
    model.lm_head.weight.data[END:] = 0.0  # never generated: these are words of other tables
    return model


@cache
def perception_lm(attention: str) -> Any:
    from transformers import PerceptionLMConfig, PerceptionLMForConditionalGeneration

    torch.manual_seed(0)
    config = PerceptionLMConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_lang_large_patch14_448",
            "do_pooling": False,
            "model_args": {
                "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56, "ref_feat_shape": [4, 4],
                "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1,
            },
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        projector_pooling_ratio=2,
        vision_use_cls_token=True,
    )  # fmt: skip
    return finish(PerceptionLMForConditionalGeneration(config), attention)


def squares(numbers: list[list[int]]) -> dict[str, Tensor]:
    if not flat(numbers):
        return {}
    return {"pixel_values": torch.stack([noise(number, 3, LARGE, LARGE) for number in flat(numbers)])}


def alike(numbers: list[list[int]]) -> dict[str, Tensor]:
    """(images, tiles, 3, side, side): of every image the first three tiles, since all must have as many."""
    if not flat(numbers):
        return {}
    tiles = [noise(number, 3, 3, 56, 56) for number in flat(numbers)]
    return {"pixel_values": torch.stack(tiles)}


def by_picture(model: Any, inputs: dict[str, Tensor], kind: str) -> list[Tensor]:
    features = features_of(model, inputs, kind).pooler_output
    return list(features.reshape(len(inputs["pixel_values"]), -1, features.shape[-1]))


def per_patch(model: Any, inputs: dict[str, Tensor], values: list[Tensor], images: Any) -> list[Tensor]:
    """What is said of patches, said of tokens: no more than that is asked of this row, which has no saliency."""
    return list(torch.cat(values)[:, 0])


def pooled(model: Any, inputs: dict[str, Tensor], values: list[Tensor], images: Any) -> list[Tensor]:
    """The same, summed over squares of 2 x 2 patches; CLS stands first."""
    tokens = []
    for view in torch.cat(values)[:, 0, 1:]:
        patches = view.view(4, 4)
        tokens += [patches[row : row + 2, column : column + 2].sum() for row in (0, 2) for column in (0, 2)]
    return list(torch.stack(tokens).split(4 * inputs["pixel_values"].shape[1]))


def no_attention(model: Any) -> Any:
    raise AssertionError("this encoder has no attention to read")


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (ids == IMAGE).long()}


def embed(model: Any, ids: Tensor) -> Tensor:
    """Gemma 3n has words of its own for what stands around images."""
    if int(ids) < END:
        return model.get_input_embeddings()(ids)
    return model.model.embed_vision(input_ids=ids[None, None])[0, 0]


def hidden(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """Gemma 3n's language model, whose layers get embeddings of the ids, too."""
    text = model.model.language_model
    return text(
        inputs_embeds=embeddings,
        per_layer_inputs=text.get_per_layer_inputs(ids_of(model, embeddings, prompt)),
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state


UNREAD = ("saliency", "keys")
ROWS: dict[str, Row] = {}
if known("gemma3n", "fast_vlm", "perception_lm") and is_timm_available():
    ROWS = {
        "fast_vlm": Row(fast_vlm, squares, no_attention, per_patch, streams=by_picture, unread=UNREAD),
        "gemma3n": Row(
            gemma3n,
            squares,
            no_attention,
            per_patch,
            streams=by_picture,
            write=lambda _, count: [START, *[IMAGE] * count, END],
            per_token=types,
            embed=embed,
            hidden=hidden,
            unread=UNREAD,
            cap=CAP,
            embeds=False,
        ),
        "perception_lm": Row(perception_lm, alike, no_attention, pooled, streams=by_picture, unread=UNREAD),
    }
