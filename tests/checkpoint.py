"""A whole LLaVA-NeXT checkpoint folder, tiny and random, for what loads models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tests.tiny import BOS, IMAGE, PAD, PINPOINTS, SIDE, llava_next

WORDS = [
    *("user", "assistant", ":", "?", "is", "there", "a", "the", "cat", "dog", "what", "color", "card", "of"),
    *("number", "on", "sign", "how", "many", "yes", "no", "red", "blue", "left"),
]


def tokenizer() -> PreTrainedTokenizerFast:
    """With a vocabulary of ``WORDS`` and digits, lower case."""
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, "<image>": IMAGE}
    free = (number for number in range(4, IMAGE))
    vocabulary |= dict(zip([*WORDS, *map(str, range(10))], free, strict=False))
    vocabulary |= {f"w{number}": number for number in free}  # every id the model may answer with is a word
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


SQUARE = {"height": SIDE, "width": SIDE}


def processor() -> LlavaNextProcessor:
    """LLaVA-NeXT's."""
    images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
    return LlavaNextProcessor(
        images,
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_processor() -> LlavaProcessor:
    """LLaVA-1.5's, without a chat template."""
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return LlavaProcessor(
        images,
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def model() -> Any:
    """The model that goes with it."""
    return llava_next("clip", "sdpa")


def save(folder: Path) -> Path:
    """Writes both."""
    model().save_pretrained(folder)
    GenerationConfig(bos_token_id=BOS, eos_token_id=2, pad_token_id=PAD).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
