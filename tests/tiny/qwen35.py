"""Qwen3.5, its MoE variant and Qwen4-Exp, with images and with videos: linear attention beside full attention (of what
an index chose, in the last), no DeepStack."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from tests.tiny.qwen import IDS, qwen_rows, rope, vision, write_frames
from tests.tiny.rows import TEXT, Row, finish, ids_of, known, llm

# One layer of either kind; wide enough that a state holds more than the last token.
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
EOS = 90
"""Between what n-grams are made of. Random prompts hold none."""
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
# Fewer positions are chosen than a prompt has; so many heads that no two blocks score the same, which a ReLU makes 0.
INDEXED = {
    "layer_types": ["linear_attention", "indexed_attention"],
    "hc_count": 2,
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "ple_embed_dim": 16,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 1,
    "split_ngram_parts": 1,
    "eos_token_id": EOS,
    "indexer_n_heads": 8,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}


def _text(**more: Any) -> dict[str, Any]:
    parameters = rope(mrope_interleaved=True, partial_rotary_factor=1.0)
    # A smaller range than elsewhere: stock computes linear attention step by step or in chunks, in float32, and wilder
    # weights make more of the difference than the matrix allows.
    return {**TEXT, "head_dim": 16, "initializer_range": 0.2, **LINEAR, **parameters, **more}


def _model(name: str, attention: str, **more: Any) -> Any:
    torch.manual_seed(0)
    tower = vision(16, 3, hidden_size=32, out_hidden_size=64, num_position_embeddings=64)
    config = getattr(transformers, f"{name}Config")(vision_config=tower, text_config=_text(**more), **IDS)
    return finish(getattr(transformers, f"{name}ForConditionalGeneration")(config), attention)


@cache
def qwen3_5(attention: str) -> Any:
    return _model("Qwen3_5", attention)


@cache
def qwen3_5_moe(attention: str) -> Any:
    return _model("Qwen3_5Moe", attention, **MOE)


@cache
def qwen4_exp(attention: str) -> Any:
    return _model("Qwen4Exp", attention, **MOE, **INDEXED)


def with_ids(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
    """Qwen4-Exp's language model, which also reads which ids stand beside each other."""
    return llm(model)(
        inputs_embeds=embeddings,
        ple_input_ids=ids_of(model, embeddings, prompt),
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state


ROWS: dict[str, Row] = {}
if known("qwen3_5", "qwen3_5_moe"):
    # In 5.19 the class does not say that it takes images, and generate repeats patches, not images, for beams.
    mixes = "image" not in transformers.Qwen3_5ForConditionalGeneration.input_modalities
    old = Version(transformers.__version__) < Version("5.18")  # which has no static cache for linear attention
    fails = {"static_cache": "linear_attention|LinearAttentionLayer"} if old else {}
    more = {"mixes_beams": mixes, "hybrid": True, "fails": fails}
    ROWS |= qwen_rows("qwen3_5", qwen3_5, 16, write_frames, **more)
    ROWS["qwen3_5_moe"] = qwen_rows("qwen3_5_moe", qwen3_5_moe, 16, write_frames, **more)["qwen3_5_moe"]
if known("qwen4_exp"):
    takes = "image" in transformers.Qwen4ExpForConditionalGeneration.input_modalities
    more = {"mixes_beams": not takes, "hybrid": True, "hidden": with_ids, "embeds": False}
    ROWS |= qwen_rows("qwen4_exp", qwen4_exp, 16, write_frames, **more)
