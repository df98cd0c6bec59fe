"""What a session would keep for a question, and which word points where, without asking the language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.delivery import outside
from foveate.functional import text_to_image_attention
from foveate.instrumented import looking_through
from foveate.options import Options
from foveate.pruners.base import Method, Pruner
from foveate.pruners.text import TextSimilarity
from foveate.tokens import Selection

if TYPE_CHECKING:
    from foveate.call import Call
    from foveate.prompts import Prompt
    from foveate.session import Session

UNSPACED = 0x2E80
"""From this code point on scripts stand mostly without spaces: there a token counts as a word."""
UNFINISHED = "\ufffd"
"""What stands for a character of which only some bytes are there."""
LONGEST = 8
"""Tokens that may have to be read together, for a character or for the space before one."""
BLOCK = 256
"""Tokens of the question that are looked at at once: a long one makes no table of its own length."""


@dataclass(frozen=True, eq=False)
class Pointing:
    """Which word of a question points most at each patch token of one image.

    A word points by the attention of text to image (AdaFV, arXiv 2501.09532), the strongest of its tokens'.

    Args:
        words: the W words, in order.
        word: (N,) int64 on the CPU, a place in ``words``; -1 where the token was not encoded.
        strength: (N,) float32 on the CPU, in (0, 1]; NaN where it was not encoded.
    """

    words: tuple[str, ...]
    word: Tensor
    strength: Tensor


def choose(session: Session, question: str, pruner: Method) -> list[Selection]:
    """What ``session.ask(question, pruner)`` would keep of every image. Nothing is encoded again (with ``crops``, those
    that no question has asked for yet are), and the language model does not run.

    Raises:
        ValueError: an empty question, a method that chooses within the language model, or what the pruner refuses.
    """
    if not isinstance(pruner, Pruner):
        raise ValueError(
            f"{pruner.name} chooses while the language model reads the prompt: what it keeps is known once it has "
            "answered"
        )
    with _call(session, question, pruner) as (call, arguments, prompt):
        return call.choose(arguments, prompt)


def point(session: Session, question: str, selections: Sequence[Selection]) -> list[Pointing]:
    """Which word of a question points most at each patch, for every image.

    Args:
        session: whose images were asked about.
        question: as asked.
        selections: one per image, which tell what was encoded of it.

    Raises:
        ValueError: an empty question, or one of special tokens alone.
    """
    pruner = TextSimilarity(keep=1.0, special_tokens=False)
    found = []
    with _call(session, question, pruner) as (call, arguments, prompt):
        guide = call.guide(arguments, prompt)
        for (image, span), selection in zip(call.locate(arguments, prompt), selections, strict=True):
            text = call.text_tokens(guide, image, span)
            counts = pruner.text_mask(text)
            ids, embeddings = guide.of(span).ids, text.embeddings
            if counts is not None:
                ids, embeddings = ids[counts], embeddings[counts.to(embeddings.device)]
            words, belongs = words_of(session.processor.tokenizer, ids.tolist())
            there = torch.ones(selection.total, dtype=torch.bool, device="cpu")
            if selection.encoded is not None:
                there = selection.encoded.cpu()
            features = image.tokens.features[there.to(image.tokens.features.device)]
            found.append(_pointing(words, torch.tensor(belongs, device="cpu"), embeddings, features, there))
    return found


def words_of(tokenizer: Any, ids: Sequence[int]) -> tuple[tuple[str, ...], list[int]]:
    """The words that tokens spell, and of every token the place of its word.

    A sign of punctuation is a word of its own, as is a token of a script that is written without spaces.
    """
    words: list[str] = []
    belongs: list[int] = []
    before: list[int] = []
    run: list[int] = []
    ends = ""
    for place, token in enumerate(ids):
        run.append(token)
        # Decoded behind its neighbours, a token shows whether a space stands before it.
        piece = tokenizer.decode([*before, *run])[len(tokenizer.decode(before)) if before else 0 :]
        unfinished = not piece.strip() or UNFINISHED in piece
        if unfinished and len(run) < LONGEST and place < len(ids) - 1:
            continue
        if not words or not _goes_on(ends, piece):
            words.append("")
        words[-1] += piece.strip()
        belongs += [len(words) - 1] * len(run)
        before, run, ends = run, [], piece or ends
    return tuple(words), belongs


def _goes_on(ends: str, begins: str) -> bool:
    """Whether a piece belongs to the word that the one before it ends with."""
    if not begins.strip():
        return True
    last, first = ends[-1:], begins[0]
    return last.isalnum() and first.isalnum() and max(ord(last), ord(first)) < UNSPACED


def _pointing(words: tuple[str, ...], belongs: Tensor, text: Tensor, visual: Tensor, there: Tensor) -> Pointing:
    strongest, word = torch.full((len(visual),), -1.0), torch.zeros(len(visual), dtype=torch.int64)
    for some, theirs in zip(text.split(BLOCK), belongs.split(BLOCK), strict=True):
        attention, place = text_to_image_attention(some[:, None], visual).cpu().max(dim=0)
        more = attention > strongest
        strongest, word = torch.where(more, attention, strongest), torch.where(more, theirs[place], word)
    everywhere = torch.full(there.shape, -1, dtype=torch.int64)
    strength = torch.full(there.shape, torch.nan)
    everywhere[there], strength[there] = word, strongest
    return Pointing(words, everywhere, strength)


@contextmanager
def _call(session: Session, question: str, pruner: Pruner) -> Iterator[tuple[Call, dict[str, Any], Prompt]]:
    """A call of a session's as ``ask`` makes it, before anything of it has run."""
    options = Options(layout=session.layout, processor=session.processor, crops=session.crops)
    with looking_through(session.model) as instrumented, outside(), torch.no_grad():
        options.check(instrumented.family)
        call: Any = instrumented.call(pruner, options, session.views)
        arguments: dict[str, Any] = instrumented.family.named(session.arguments([question]))
        prompt = call.whole_prompt(arguments, arguments["input_ids"], arguments["attention_mask"])
        yield call, arguments, prompt
