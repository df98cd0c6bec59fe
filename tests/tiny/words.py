"""A small tokenizer of whole words, with marks of a family's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import checkpoint
from tests.tiny.rows import BOS, PAD


def of_words(vocabulary: Mapping[str, int], marks: Iterable[str], named: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer of whole words in lower case.

    Args:
        vocabulary: every token's id, ``<pad>``, ``<s>``, ``</s>`` and ``<unk>`` among them.
        marks: the special tokens beside these.
        named: attributes that processors read (``image_token``), each with its token; ``..._id`` comes with it.
    """
    words = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=list(marks), padding_side="left",
    )  # fmt: skip
    for name, token in named.items():
        setattr(found, name, token)
        setattr(found, f"{name}_id", vocabulary[token])
    return found


def tokenizer(marks: Mapping[str, int], **named: str) -> PreTrainedTokenizerFast:
    """Words in lower case.

    Args:
        marks: special tokens and their ids.
        named: those that the family's tokenizers have as an attribute, by its name; ``..._id`` comes with it.
    """
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, **marks}
    free = [number for number in range(4, 100) if number not in vocabulary.values()]
    vocabulary |= dict(zip(checkpoint.WORDS, free, strict=False))
    return of_words(vocabulary, marks, named)
