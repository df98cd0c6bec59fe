"""The dynamic model's vocabulary: whole words, lower case; numbers digit by digit; punctuation split off.

A token that begins a word has a mark in front of it, so that the digits of a number go together again.
"""

from __future__ import annotations

import re

from foveate.evaluation.documents.words import VOCABULARY as DOCUMENT_WORDS
from foveate.evaluation.scenes.world import COLORS
from training.words import DIGITS, FUNCTION_WORDS, PLURALS, PUNCTUATION, THINGS

SPECIAL = (
    "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
UNKNOWN, PAD, TURN, END, START, STOP, IMAGE, VIDEO = range(len(SPECIAL))

MARK = "▁"
"""In front of what begins a word."""

NAMES: tuple[str, ...] = tuple(dict.fromkeys((*THINGS, *(word for word in DOCUMENT_WORDS if word not in COLORS))))
"""What stage 1 aligns with pictures, beside colours and digits: things, and words that can be read."""
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)

#: Of questions about documents alone.
_ASKING = """
    away app at begin bar bus button buttons chart cost costs does end far farther farthest field first for form from
    has have higher highest i just larger largest last least less line lower lowest more most much nearer nearest place
    point receipt row say says screen second set sign smaller smallest stands table than the thing third tick value
    way what where which who written
"""

#: Of questions about clips, and of what a processor writes in front of every moment of one: "<0.2 seconds>".
_FILMED = """
    appear appears before down four half move moves often one seconds three times turn two up video was
"""
_STAMP = (MARK, "<", ">")

_WORDS = (*(word for word in FUNCTION_WORDS if word not in PUNCTUATION), *_ASKING.split(), *NAMES, *COLORS, *PLURALS)
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys((
        *SPECIAL, *PUNCTUATION, *(MARK + word for word in _WORDS), *(MARK + digit for digit in DIGITS), *DIGITS,
        *_STAMP, *(MARK + word for word in _FILMED.split()),  # last: a checkpoint from before them can be gone on from
    ))
)  # fmt: skip
ID: dict[str, int] = {word: number for number, word in enumerate(VOCABULARY)}

PATTERN = rf"{MARK}?[0-9]|{MARK}?\p{{L}}+|."
"""How the exported tokenizer splits a text, after marking it."""
_PIECE = re.compile(rf"{MARK}?[0-9]|{MARK}?[^\W\d_]+|.")


def encode(text: str) -> list[int]:
    """The ids of a text, as the exported tokenizer gives them."""
    marked = MARK + MARK.join(text.lower().split()) if text.strip() else ""
    return [ID.get(piece, UNKNOWN) for piece in _PIECE.findall(marked)]


BEFORE_IMAGE = (TURN, ID[MARK + "user"], START)
AFTER_IMAGE = (STOP,)
BEFORE_ANSWER = (END, TURN, ID[MARK + "assistant"])
"""What the chat template puts around a picture, and between the question and its answer."""
