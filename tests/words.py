"""Tokenizers that cut text as byte-level ones do, for real processors around tiny models; and which words guide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import foveate
from foveate.pruners.base import Choice, Pruner
from tests.tiny import BOS, PAD

PIECES = r"\n|\d| ?[A-Za-z]+|[^\w\s]| "


def tokenizer(special: Mapping[str, int], texts: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """Line breaks, digits one by one with ids that follow each other, words with the space before them.

    Args:
        special: marks with ids of their own.
        texts: whose pieces get ids; others are unknown.
        named: attributes that processors look for, a mark each; ``<name>_id`` comes along.
    """
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": 2, "<unk>": 3, **special}
    free = [number for number in range(4, 100) if number not in vocabulary.values()]
    ten = next(place for place in range(90) if free[place + 9 : place + 10] == [free[place] + 9])
    digits = [free.pop(ten) for _ in range(10)]
    vocabulary |= {str(digit): number for digit, number in enumerate(digits)}
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    pieces = [piece for text in texts for piece, _ in cut.pre_tokenize_str(text)]
    pieces = list(dict.fromkeys(piece for piece in pieces if piece not in vocabulary))
    assert len(pieces) <= len(free), f"{len(pieces)} pieces for {len(free)} ids"
    vocabulary |= dict(zip(pieces, free, strict=False))
    vocabulary |= {f"w{number}": number for number in free[len(pieces) :]}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = cut
    found = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=list(special), padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    for name, token in named.items():
        setattr(found, name, token)
        setattr(found, f"{name}_id", vocabulary[token])
    return found


class Heard(Pruner):
    """Keeps the first tokens, and remembers the embeddings of what guides, image by image."""

    name = "heard"
    text_span = "turn"
    reads_text = True
    found: tuple[torch.Tensor, ...] = ()

    def choose(self, visual: Any, text: Any, budget: int) -> Choice:
        self.found = (*self.found, text.embeddings)
        return Choice(torch.arange(budget))


def guided(model: Any, processor: Any, inputs: Mapping[str, Any], keep: float | int = 3) -> list[tuple[str, int, int]]:
    """Of every image or video of a call: the words that guided the choice, its tokens, and how many of them stayed."""
    pruner = Heard(keep=keep)
    with foveate.attach(model, pruner, processor=processor):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    table, words = model.get_input_embeddings().weight, getattr(processor, "tokenizer", processor)
    ids = [[int((table == one).all(dim=1).nonzero()[0, 0]) for one in text] for text in pruner.found]
    said = ["".join(words.convert_ids_to_tokens(one)).strip() for one in ids]
    return [(text, one.total, len(one)) for text, one in zip(said, pruner.selections, strict=True)]
