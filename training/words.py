"""The bundled model's vocabulary: whole words, lower case, punctuation split off."""

from __future__ import annotations

import re

from foveate.evaluation.scenes.world import CLASSES, COLORS, SIGN, plural

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
UNKNOWN, BEGIN, END, PAD, IMAGE = range(len(SPECIAL))

PUNCTUATION = (":", "?", ".", ",", "!", "'")
_FUNCTION_WORDS = """
    user assistant is are there a an the do you see can what which how many color colour number object thing biggest
    largest card of behind on in at to or and left right top bottom above below under it i this that picture image
    background yes no not where with has have
"""
FUNCTION_WORDS = (*PUNCTUATION, *_FUNCTION_WORDS.split())
DIGITS = tuple(str(i) for i in range(10))

#: What stage 1 aligns with the picture: things, colours, digits.
THINGS = (*CLASSES, SIGN)
VISUAL_WORDS = (*THINGS, *COLORS, *DIGITS)
PLURALS = tuple(plural(name) for name in THINGS)

VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys((*SPECIAL, *FUNCTION_WORDS, *VISUAL_WORDS, *PLURALS)))
ID: dict[str, int] = {word: i for i, word in enumerate(VOCABULARY)}

#: What stands before the picture, and between the question and its answer; the chat template gives the same tokens.
BEFORE_IMAGE = (BEGIN, ID["user"], ID[":"])
BEFORE_ANSWER = (ID["assistant"], ID[":"])

_WORD = re.compile(r"\w+|[^\w\s]+")


def encode(text: str) -> list[int]:
    """The ids of a text, as the exported tokenizer gives them."""
    return [ID.get(word, UNKNOWN) for word in _WORD.findall(text.lower())]
