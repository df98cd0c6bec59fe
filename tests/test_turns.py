"""Where user turns begin and end, read from chat templates as models have them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import foveate
from foveate import bundled
from foveate.turns import Turns, adds_special_tokens, turns_at, turns_of

PIECE = re.compile(r"<\|?[^<>]*>|\[/?[A-Z]+\]| ?\w+| ?[^\s\w]|\s")
Messages = list[dict[str, Any]]


class Words:
    """A tokenizer of words, marks and punctuation, blanks in front of words part of them, as byte-level BPE has it."""

    all_special_ids: tuple[int, ...] = ()
    bos_token = None

    def __init__(self, offsets: bool = True) -> None:
        self.offsets = offsets
        self.known: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool, return_offsets_mapping: bool = False) -> dict[str, Any]:
        if return_offsets_mapping and not self.offsets:
            raise NotImplementedError
        found = list(PIECE.finditer(text))
        self.known += [one.group() for one in found if one.group() not in self.known]
        ids = [self.known.index(one.group()) for one in found]
        return {"input_ids": ids, **({"offset_mapping": [one.span() for one in found]} if self.offsets else {})}

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join(self.known[one] for one in ids)

    def decode(self, ids: list[int]) -> str:
        return self.text(tuple(ids))


class Processor:
    def __init__(self, template: Callable[[Messages, bool], str], offsets: bool = True) -> None:
        self.template = template
        self.tokenizer = Words(offsets)

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool, tokenize: bool) -> str:
        assert not tokenize
        return self.template(messages, add_generation_prompt)


def said(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def chatml(system: bool, opening: str = "") -> Callable[[Messages, bool], str]:
    def template(messages: Messages, waiting: bool) -> str:
        text = "<|im_start|>system\nYou answer questions.<|im_end|>\n" if system else ""
        text += "".join(f"<|im_start|>{one['role']}\n{said(one)}<|im_end|>\n" for one in messages)
        return text + (f"<|im_start|>assistant\n{opening}" if waiting else "")

    return template


def vicuna(messages: Messages, waiting: bool) -> str:
    names = {"user": "USER", "assistant": "ASSISTANT"}
    return "".join(f"{names[one['role']]}: {said(one)} " for one in messages) + ("ASSISTANT:" if waiting else "")


def mistral(messages: Messages, waiting: bool) -> str:
    written = (f"[INST]{said(one)}[/INST]" if one["role"] == "user" else f"{said(one)}</s>" for one in messages)
    return "<s>" + "".join(written)


def glm(messages: Messages, waiting: bool) -> str:
    names = {"user": "<|user|>\n", "assistant": "<|assistant|>\n<think></think>\n"}
    return (
        "[GMASK]<sop>"
        + "".join(names[one["role"]] + said(one) for one in messages)
        + ("<|assistant|>\n" if waiting else "")
    )


def smol(messages: Messages, waiting: bool) -> str:
    written = "".join(f"{one['role'].capitalize()}: {said(one)}<end_of_utterance>\n" for one in messages)
    return "<|im_start|>" + written + ("Assistant:" if waiting else "")


def llama3(messages: Messages, waiting: bool) -> str:
    written = "".join(f"<|start|>{one['role']}<|end|>\n\n{said(one)}<|eot|>" for one in messages)
    return "<|begin|>" + written + ("<|start|>assistant<|end|>\n\n" if waiting else "")


def onevision(messages: Messages, waiting: bool) -> str:
    """The line break stands in front of the next turn's content, not behind the end."""
    written = "".join(f"<|im_start|>{one['role']} \n{said(one)}<|im_end|>" for one in messages)
    return written + ("<|im_start|>assistant\n" if waiting else "")


TEMPLATES: dict[str, tuple[Callable[[Messages, bool], str], set[str], set[str]]] = {
    "chatml with a system prompt": (chatml(True), {"<|im_start|>user\n"}, {"<|im_end|>\n"}),
    "chatml, thinking": (chatml(False, "<think>\n"), {"<|im_start|>user\n"}, {"<|im_end|>\n"}),
    "vicuna": (vicuna, {"USER:", " USER:"}, {" ASSISTANT:"}),
    "mistral": (mistral, {"[INST]"}, {"[/INST]"}),
    "glm": (glm, {"<|user|>\n"}, {"<|assistant|>\n"}),
    "smol": (smol, {"User:"}, {"<end_of_utterance>\n"}),
    "llama 3": (llama3, {"<|start|>user<|end|>\n\n"}, {"<|eot|>"}),
    "onevision": (onevision, {"<|im_start|>user \n"}, {"<|im_end|>"}),
}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_templates(name: str) -> None:
    template, starts, ends = TEMPLATES[name]
    processor = Processor(template)
    turns = turns_of(processor)
    assert {processor.tokenizer.text(one) for one in turns.starts} == starts
    assert {processor.tokenizer.text(one) for one in turns.ends} == ends
    assert {processor.tokenizer.text((one,)) for one in turns.blank} == {" ", "\n"}
    assert not turns.named


@pytest.mark.parametrize("special", [True, False])
def test_marks_behind_a_system_prompt_begin_a_turn(special: bool) -> None:
    """Where nothing opens one; words do not, which may stand anywhere."""

    def template(messages: Messages, waiting: bool) -> str:
        ends = {"system": "<told>", "user": "<asked>", "assistant": "<answered><s>"}
        return "<s>" + "".join(said(one) + ends[one["role"]] for one in messages)

    processor = Processor(template)
    processor.tokenizer("<s><told>", add_special_tokens=False)
    if special:
        processor.tokenizer.all_special_ids = (0, 1)
    starts = {processor.tokenizer.text(one) for one in turns_of(processor).starts}
    assert starts == ({"<s>", "<told>"} if special else {"<s>"})


@pytest.mark.parametrize("name", ["chatml with a system prompt", "mistral", "llama 3"])
def test_a_tokenizer_without_offsets(name: str) -> None:
    template, starts, ends = TEMPLATES[name]
    processor = Processor(template, offsets=False)
    turns = turns_of(processor)
    assert {processor.tokenizer.text(one) for one in turns.starts} == starts
    assert {processor.tokenizer.text(one) for one in turns.ends} == ends


def test_content_as_text() -> None:
    """A template that takes no parts."""

    def template(messages: Messages, waiting: bool) -> str:
        if not isinstance(messages[0]["content"], str):
            raise TypeError("content must be text")
        return vicuna(messages, waiting)

    processor = Processor(template)
    assert {processor.tokenizer.text(one) for one in turns_of(processor).ends} == {" ASSISTANT:"}


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (lambda messages, waiting: "".join(map(said, messages)), "nothing recognisable after a user's text"),
        (lambda messages, waiting: "<image>", "leaves out what is said"),
    ],
)
def test_templates_that_say_nothing(template: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        turns_of(Processor(template))


def test_no_template() -> None:
    with pytest.raises(ValueError, match="no usable chat template"):
        turns_of(object())


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return bundled.load()


def test_the_bundled_models_own(pair: tuple[Any, Any]) -> None:
    """The end is the mark alone, whatever an answer would begin with; beside the weights lies the same template."""
    model, processor = pair
    turns, words = turns_of(processor), processor.tokenizer.convert_ids_to_tokens
    assert [words(list(one)) for one in turns.starts] == [["user", ":"]]
    assert [words(list(one)) for one in turns.ends] == [["assistant", ":"]]
    assert foveate.turn_end(processor) == turns.ends
    assert turns.special == frozenset(processor.tokenizer.all_special_ids)
    assert turns_at(model.name_or_path) == turns


def test_nothing_is_there(tmp_path: Any) -> None:
    assert turns_at(str(tmp_path)) is None
    assert turns_at("nobody/has-this-checkpoint") is None


def test_special_tokens_are_added_once(pair: tuple[Any, Any]) -> None:
    _, processor = pair
    assert adds_special_tokens(processor, "user: hello")
    assert not adds_special_tokens(processor, "<s>user: hello")


def test_turns_are_values() -> None:
    assert Turns(ends=((1, 2),)) == Turns(ends=((1, 2),)) != Turns(ends=((1,),))
