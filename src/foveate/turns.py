"""How a model's prompts write the turns of a conversation, read from its chat template."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.locks import lock_of

ASKED, ANSWERED, ASKED_AGAIN, TOLD = "walrus", "teapot", "giraffe", "lantern"
"""Words to find in a rendered conversation; every tokenizer writes them without a mark of its own."""
BLANKS = (" ", "  ", "\n", "\n\n", "\n\n\n", "\n\n\n\n", " \n", " \n\n")
"""What templates and processors write between an image's marks and words: several may be one token."""


@dataclass(frozen=True)
class Turns:
    """The token ids around a user's turn.

    Args:
        starts: sequences that open one, role name included.
        ends: sequences that end one.
        special: ids that are marks and no words, wherever they stand.
        named: whether the caller named the ends, and so wants to hear when none is there.
        blank: ids of nothing but spaces and line ends, which templates and processors write around images.
    """

    starts: tuple[tuple[int, ...], ...] = ()
    ends: tuple[tuple[int, ...], ...] = ()
    special: frozenset[int] = frozenset()
    named: bool = False
    blank: frozenset[int] = frozenset()


def turns_of(processor: Any) -> Turns:
    """Reads starts and ends of user turns from the chat template of a processor or tokenizer.

    What ends a turn is what all prompts share behind a user's words, whether an answer follows or is waited for: the
    words that only open the answer (``<think>``) are no part of it.

    Raises:
        ValueError: there is no chat template, or it puts nothing after a user's text.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    talk = [("user", ASKED), ("assistant", ANSWERED), ("user", ASKED_AGAIN)]
    whole = _rendered(processor, talk, waiting=True)
    closed = _rendered(processor, talk, waiting=False)
    told = _rendered(processor, talk[:2], waiting=False)
    before, rest = _cut(whole, ASKED)
    between, rest = _cut(rest, ANSWERED)
    again, waiting = _cut(rest, ASKED_AGAIN)
    ends = _shared(between, waiting, _cut(closed, ASKED_AGAIN)[1])
    if not ends.strip():  # nothing stands behind the last of a finished conversation
        ends = _shared(between, waiting)
    if not ends.strip():
        raise ValueError("this chat template puts nothing recognisable after a user's text; give turn_end yourself")
    answered = _shared(again, _cut(told, ANSWERED)[1])
    opens = again[len(answered) :]
    opens_first = before if before.endswith(opens) else _shared(before[::-1], again[::-1])[::-1]
    first, second = len(before), len(whole) - len(waiting)
    spans = {
        "starts": [
            (first - len(opens if opens and before.endswith(opens) else opens_first), first),
            (second - len(ASKED_AGAIN) - len(opens), second - len(ASKED_AGAIN)),
        ],
        "ends": [
            (first + len(ASKED), first + len(ASKED) + len(ends)),
            (second, second + len(ends)),
        ],
    }
    with lock_of(tokenizer):
        found = {name: _pieces(tokenizer, whole, places) for name, places in spans.items()}
        if not found["ends"]:
            raise ValueError(
                "the end of a user's turn has no tokens of its own in this template; give turn_end yourself"
            )
        special = special_ids(tokenizer)
        starts = found["starts"] + _behind_system(processor, tokenizer, special)
        return Turns(starts, found["ends"], special, blank=blank_ids(tokenizer))


def _behind_system(processor: Any, tokenizer: Any, special: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """The marks between a system message and the first user's words, where nothing else is: where no mark opens a
    user's turn (HunyuanOCR), they end what the model was told. None where the template takes no system message."""
    try:
        text = _rendered(processor, [("system", TOLD), ("user", ASKED)], waiting=True)
    except ValueError:
        return ()
    before, rest = _cut(text, TOLD)
    begin = len(before) + len(TOLD)
    marks = _pieces(tokenizer, text, [(begin, begin + len(rest.partition(ASKED)[0]))])
    return tuple(one for one in marks if special.issuperset(one))


def turn_end(processor: Any) -> tuple[tuple[int, ...], ...]:
    """The token ids by which a processor's chat template ends a user's turn, for ``attach(..., turn_end=...)``.

    Raises:
        ValueError: the processor has no chat template, or it puts nothing after a user's text.
    """
    return turns_of(processor).ends


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that a tokenizer calls special."""
    return frozenset(int(one) for one in getattr(tokenizer, "all_special_ids", ()))


def blank_ids(tokenizer: Any) -> frozenset[int]:
    """The ids by which a tokenizer writes spaces and line ends that stand by themselves."""
    written = {token for blank in BLANKS for token in tokenizer(blank, add_special_tokens=False)["input_ids"]}
    # Unknown ones among them are read back as something else.
    return frozenset(token for token in written - special_ids(tokenizer) if not tokenizer.decode([token]).strip())


@functools.lru_cache(maxsize=64)
def turns_at(path: str) -> Turns | None:
    """What ``turns_of`` reads from a checkpoint's own processor, where that lies on this machine; else None.

    Args:
        path: a folder, or the name of a checkpoint that a hub's cache may hold. Nothing is downloaded.
    """
    from transformers import AutoProcessor, AutoTokenizer

    for loader in (AutoTokenizer, AutoProcessor):
        try:
            return turns_of(loader.from_pretrained(path, local_files_only=True))
        except Exception:  # whatever is missing or broken there: the model itself runs without it
            continue
    return None


def _rendered(processor: Any, talk: Sequence[tuple[str, str]], waiting: bool) -> str:
    """A conversation as the template writes it; some want content in parts, some as text."""
    reasons = []
    for parts in (True, False):
        messages = [
            {"role": role, "content": [{"type": "text", "text": words}] if parts else words} for role, words in talk
        ]
        try:
            text: str = processor.apply_chat_template(messages, add_generation_prompt=waiting, tokenize=False)
        except Exception as error:  # a template may raise anything
            reasons.append(str(error))
            continue
        if all(words in text for _, words in talk):
            return text
        reasons.append("it leaves out what is said")
    raise ValueError(f"no usable chat template to read the turns from: {'; '.join(dict.fromkeys(reasons))}")


def _shared(*texts: str) -> str:
    """What all of the texts begin with."""
    least, most = min(texts), max(texts)
    size = next((place for place, letter in enumerate(least) if letter != most[place]), len(least))
    return least[:size]


def _cut(text: str, word: str) -> tuple[str, str]:
    """What stands before and behind the last place of a word."""
    before, _, behind = text.rpartition(word)
    return before, behind


def _pieces(tokenizer: Any, text: str, places: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """The ids of the tokens that lie in the given places of a text, each sequence once; blanks at a border belong to
    either side."""
    try:
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = list(zip(coded["input_ids"], coded["offset_mapping"], strict=True))
    except (NotImplementedError, KeyError, ValueError, TypeError):  # a tokenizer without offsets
        return tuple(dict.fromkeys(_alone(tokenizer, text, *place) for place in places if place[0] < place[1]))
    found = []
    for begin, end in places:
        ids = []
        for token, (start, stop) in tokens:
            blank = stop - start - len(text[start:stop].lstrip())
            if stop <= end and stop > begin and start + (blank if start + blank < stop else 0) >= begin:
                ids.append(token)
        if ids:
            found.append(tuple(ids))
    return tuple(dict.fromkeys(found))


def _alone(tokenizer: Any, text: str, begin: int, end: int) -> tuple[int, ...]:
    """The ids of a piece of text behind a word, which is how it stands in a prompt."""
    coded = tokenizer(ASKED + text[begin:end], add_special_tokens=False)["input_ids"]
    word = tokenizer(ASKED, add_special_tokens=False)["input_ids"]
    return tuple(coded[len(word) :]) if coded[: len(word)] == word else tuple(coded)


def adds_special_tokens(processor: Any, prompt: str) -> bool:
    """Whether the tokenizer should add its special tokens: not to a prompt whose template has written BOS itself."""
    bos = processor.tokenizer.bos_token
    return not (bos and prompt.startswith(bos))
