"""Asking again when unsure: the answers are those of plain asks, the margins those of a plain forward."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer

import foveate
from foveate import AskAgain, bundled
from foveate.asking_again import Spelled, answer_length
from foveate.evaluation.runner import Transformers, budgets_of, evaluate, factory
from tests import checkpoint
from tests.test_cli import call, refused
from tests.tiny import ROWS

QUESTIONS = [
    "Is there a dog?",
    "What color is the card of the cat?",
    "How many apples are there?",
    "What is left of the bus?",
    "Is there a cat?",
]
PLAIN: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return bundled.load()


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def session(pair: tuple[Any, Any]) -> foveate.Session:
    return foveate.look(*pair, picture(0))


def margins(logits: torch.Tensor) -> torch.Tensor:
    """(steps, V) to (steps,): sorted by hand."""
    ordered = torch.softmax(logits.double(), dim=-1).sort(dim=-1, descending=True).values
    return ordered[:, 0] - ordered[:, 1]


def split(session: foveate.Session, first: Any, measure: str = "least") -> tuple[float, list[float]]:
    """A margin that some questions are above and some below, and all margins of a first pass."""
    asked = session.ask_many(QUESTIONS, AskAgain(first, None, 1.0, measure), **PLAIN)
    found = [one.margin for one in asked]
    assert len(set(found)) == len(found) and None not in found
    low, high = sorted(found)[1:3]  # type: ignore[type-var]
    return (low + high) / 2, found  # type: ignore[operator, return-value]


@pytest.mark.parametrize("measure", ["least", "first"])
def test_margins_are_those_of_the_stock_model(pair: tuple[Any, Any], session: foveate.Session, measure: str) -> None:
    """With all tokens in the first pass, a forward of the bare model over prompt and answer tells the same."""
    model, processor = pair
    for question in QUESTIONS:
        asking = AskAgain(foveate.Uniform(keep=1.0), foveate.Saliency(keep=1.0), 0.01, measure)
        answer = session.ask(question, asking, **PLAIN)
        text = session.prompt(question)
        inputs = processor(images=[picture(0)], text=text, return_tensors="pt", add_special_tokens=False)
        if inputs["input_ids"].shape[1] + answer.new_tokens != len(answer.sequence):
            inputs = processor(images=[picture(0)], text=text, return_tensors="pt")
        ids = answer.sequence[None]
        inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            logits = model(**inputs).logits[0, -answer.new_tokens - 1 : -1]
        assert torch.equal(logits.argmax(dim=-1), answer.sequence[-answer.new_tokens :])
        expected = margins(logits)
        assert answer.margin == pytest.approx(float(expected[0] if measure == "first" else expected.min()), abs=1e-5)


def test_margins_of_few_tokens_are_those_that_generate_reports(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    first = foveate.CDPruner(keep=0.05)
    session = foveate.look(*pair, picture(1))
    for question in QUESTIONS:
        answer = session.ask(question, AskAgain(first), **PLAIN)
        text = session.prompt(question)
        inputs = processor(images=[picture(1)], text=text, return_tensors="pt")
        with first(model):
            told = model.generate(**inputs, **PLAIN, return_dict_in_generate=True, output_logits=True)
        assert answer.margin == pytest.approx(float(margins(torch.cat(told.logits)).min()), abs=1e-4)


@pytest.mark.parametrize("measure", ["least", "first"])
@pytest.mark.parametrize("then", [foveate.CDPruner(keep=0.3), None])
def test_sure_answers_are_the_first_s_and_others_the_second_s(
    session: foveate.Session, then: Any, measure: str
) -> None:
    first = foveate.CDPruner(keep=0.02)
    margin, measured = split(session, first, measure)
    asking = AskAgain(first, then, margin, measure)
    answers = session.ask_many(QUESTIONS, asking, **PLAIN)
    assert [one.asked_again for one in answers] == [one < margin for one in measured]
    assert {one.asked_again for one in answers} == {True, False}
    for question, answer in zip(QUESTIONS, answers, strict=True):
        few, more = (session.ask(question, one, **PLAIN) for one in (first, then))
        plain = more if answer.asked_again else few
        assert (answer.text, answer.visual_tokens) == (plain.text, plain.visual_tokens)
        told = [one.sequence[len(one.sequence) - one.new_tokens :] for one in (answer, plain)]
        assert torch.equal(*[one[: min(map(len, told))] for one in told])
        for mine, theirs in zip(answer.selections, plain.selections, strict=True):
            assert torch.equal(mine.indices, theirs.indices)
        spent = few.visual_tokens + (more.visual_tokens if answer.asked_again else 0)
        assert answer.tokens_spent == spent
        assert plain.margin is None and not plain.asked_again and plain.tokens_spent == plain.visual_tokens
        if answer.asked_again:
            assert answer.before is not None and answer.before.text == few.text and answer.before.margin < margin
        alone = session.ask(question, asking, **PLAIN)
        assert (alone.text, alone.asked_again, alone.tokens_spent) == (answer.text, answer.asked_again, spent)
        assert alone.margin == pytest.approx(answer.margin, abs=1e-4)


def test_only_the_unsure_are_asked_again_and_the_tower_runs_once(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = pair
    looked: list[int] = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: looked.append(1))
    asked: list[list[str]] = []
    original = foveate.Session.ask_many

    def noted(own: Any, questions: Any, pruner: Any = None, **options: Any) -> Any:
        if not isinstance(pruner, AskAgain):
            asked.append(list(questions))
        return original(own, questions, pruner, **options)

    try:
        session = foveate.look(*pair, picture(0))
        first = foveate.CDPruner(keep=0.02)
        margin, measured = split(session, first)
        monkeypatch.setattr(foveate.Session, "ask_many", noted)
        session.ask_many(QUESTIONS, AskAgain(first, None, margin), **PLAIN)
        unsure = [question for question, one in zip(QUESTIONS, measured, strict=True) if one < margin]
        assert asked == [QUESTIONS, unsure] and len(looked) == 1
        asked.clear()
        session.ask_many(QUESTIONS, AskAgain(first, None, min(measured)), **PLAIN)
        assert asked == [QUESTIONS]  # none is below the least
    finally:
        hook.remove()
    assert session.ask_many([], AskAgain(first)) == []


def test_what_an_answer_is_ends_with_its_end() -> None:
    tokens = torch.tensor([5, 6, 2, 0, 0])
    assert answer_length(tokens, [2, 9], 0) == 3
    assert answer_length(tokens, 6, 0) == 2
    assert answer_length(tokens, torch.tensor(2), None) == 3
    assert answer_length(tokens, None, 0) == 3  # ended by a criterion, then padded
    assert answer_length(tokens, None, None) == 5
    assert answer_length(torch.tensor([0, 0]), None, 0) == 1
    assert answer_length(torch.tensor([0, 0, 0]), 0, 0) == 1  # where padding is the end token


def test_padding_behind_a_short_answer_does_not_count(session: foveate.Session, pair: tuple[Any, Any]) -> None:
    """In a batch a short answer is padded while the others go on: its margin is that of its own tokens."""
    end = pair[0].generation_config.eos_token_id
    answers = session.ask_many(QUESTIONS, AskAgain("cdpruner"), max_new_tokens=12, do_sample=False, min_new_tokens=1)
    lengths = {answer_length(one.sequence[-one.new_tokens :], end, 0) for one in answers}
    for answer in answers:
        alone = session.ask(answer.question, AskAgain("cdpruner"), max_new_tokens=12, do_sample=False, min_new_tokens=1)
        assert alone.margin == pytest.approx(answer.margin, abs=1e-4)
    assert lengths


def test_several_images_of_another_family() -> None:
    """LLaVA 1.5, whose answers of a random model are anything but sure."""
    model, processor = ROWS["llava-clip"].make("sdpa"), checkpoint.llava_processor()
    session = foveate.look(model, processor, [picture(3), picture(4)])
    first, then = foveate.Saliency(keep=2), foveate.Saliency(keep=5)
    answer = session.ask("is there a cat ?", AskAgain(first, then), **PLAIN)
    plain = session.ask("is there a cat ?", then, **PLAIN)
    assert answer.asked_again and torch.equal(answer.sequence, plain.sequence)
    assert [len(one) for one in answer.selections] == [5, 5] and answer.tokens_spent == 14


class Only(LogitsProcessor):
    """Allows one token at every step."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, self.token] = 0
        return allowed


def test_forced_tokens_are_sure(session: foveate.Session) -> None:
    only = LogitsProcessorList([Only(7)])
    answer = session.ask(QUESTIONS[0], AskAgain("cdpruner", None, 1.0), logits_processor=only, **PLAIN)
    assert answer.margin == 1 and not answer.asked_again and set(answer.sequence[-5:].tolist()) == {7}
    assert len(only) == 1  # the caller's own list is as it was


def test_rows_keep_the_numbers_of_their_questions(session: foveate.Session) -> None:
    first = foveate.CDPruner(keep=0.02)
    seen: list[int] = []

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        seen.append(row)
        return list(range(8, 40))

    answers = session.ask_many(
        QUESTIONS, AskAgain(first, None, 0.9), prefix_allowed_tokens_fn=allowed, max_new_tokens=1, do_sample=False
    )
    unsure = [place for place, one in enumerate(answers) if one.asked_again]
    assert seen == [*range(len(QUESTIONS)), *unsure] and unsure


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"num_beams": 2},
        {"num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 2},
        {"custom_generate": lambda *_: None},
    ],
)
def test_other_decoding_is_refused(session: foveate.Session, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"margin of greedy decoding.*{next(iter(options))}"):
        session.ask(QUESTIONS[0], AskAgain("cdpruner"), **{"max_new_tokens": 1, **options})


def test_streamers_and_caches_are_refused(session: foveate.Session, pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="a streamer"):
        session.ask(QUESTIONS[0], AskAgain("cdpruner"), streamer=TextStreamer(pair[1].tokenizer))
    with pytest.raises(ValueError, match="a cache"):
        session.ask(QUESTIONS[0], AskAgain("cdpruner"), past_key_values=object())


def test_where_it_cannot_work_it_says_so(pair: tuple[Any, Any]) -> None:
    asking = AskAgain("cdpruner")
    with pytest.raises(TypeError, match="no pruner but a way to ask"), asking(pair[0]):
        pass
    for run in (foveate.attach, foveate.generate):
        with pytest.raises(TypeError, match="no pruner but a way to ask"):
            run(pair[0], asking)
    for refusing in (lambda name: foveate.get_pruner(name), lambda name: foveate.serving.options(name)):
        with pytest.raises(ValueError, match="it is no method but a way to ask"):
            refusing("ask-again:cdpruner")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("nope",), ValueError, "unknown method 'nope'"),
        ((3,), TypeError, "first is a pruner .*, got int"),
        ((foveate.CDPruner,), TypeError, "got CDPruner"),
        ((None,), TypeError, "first is a pruner .*, got NoneType"),
        (("cdpruner", AskAgain("cdpruner")), TypeError, "then is a pruner .*, got AskAgain"),
        (("cdpruner", None, 0), ValueError, r"in \(0, 1\], got 0"),
        (("cdpruner", None, 1.5), ValueError, "got 1.5"),
        (("cdpruner", None, float("nan")), ValueError, "got nan"),
        (("cdpruner", None, True), TypeError, "margin must be a number"),
        (("cdpruner", None, "0.5"), TypeError, "margin must be a number"),
        (("cdpruner", None, 0.5, "mean"), ValueError, "unknown measure 'mean'; known: least, first"),
        (("cdpruner", "cdpruner"), ValueError, "see no more than the first"),
        ((foveate.CDPruner(keep=9), foveate.CDPruner(keep=8)), ValueError, "see no more than the first"),
        ((foveate.Uniform(keep=1.0), None), ValueError, "see no more than the first"),
        ((foveate.CDPruner(keep=0.1), foveate.CDPruner(keep=1)), ValueError, "1.0 is all tokens, 1 a single one"),
        (("merged:cover", "merged:cover"), ValueError, "see no more than the first"),
        (("auto:cover", "auto:cover"), ValueError, "see no more than the first"),
    ],
)
def test_bad_options(arguments: tuple[Any, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        AskAgain(*arguments)


def test_passes_that_differ_in_more_than_the_budget_go_together() -> None:
    AskAgain("merged:cover", "merged:divprune")
    AskAgain("auto:share=0.5:cover", "auto:share=0.9:cover")


def test_budgets_are_compared_where_they_can_be() -> None:
    def exceeds(one: float, other: float) -> bool:
        return foveate.Keep(one).exceeds(foveate.Keep(other))

    assert exceeds(0.2, 0.1) and not exceeds(0.1, 0.1) and exceeds(9, 8) and not exceeds(8, 9)
    assert exceeds(9, 0.1) and exceeds(0.1, 9) and exceeds(1.0, 9) and not exceeds(9, 1.0)
    assert not exceeds(1, 0.1) and not exceeds(1, 1.0) and exceeds(2, 0.1)
    assert budgets_of(factory("ask-again:first=0.05:cdpruner"), [1.0, 0.1, 0.05, 0.02, 64]) == [1.0, 0.1, 64]
    assert budgets_of(factory("cdpruner"), [1.0, 0.1, 1]) == [0.1, 1]
    assert budgets_of(factory("auto:cover"), [1.0, 0.1, 64]) == [1.0, 0.1, 64]


def test_names() -> None:
    told = Spelled.read("ask-again:first=64:margin=0.8:measure=first:adafv:min_share=0.3")
    assert told == Spelled("adafv:min_share=0.3", 64, 0.8, "first") and told.given == {"first", "margin", "measure"}
    assert told.asking(0.5) == AskAgain(
        foveate.AdaFV(keep=64, min_share=0.3), foveate.AdaFV(keep=0.5, min_share=0.3), 0.8, "first"
    )
    assert Spelled.read("ask-again:cdpruner").asking(1.0) == AskAgain(foveate.CDPruner(keep=0.02), None, 0.5)
    assert factory("ask-again:random")(0.5, 7) == AskAgain(foveate.Random(0.02, seed=7), foveate.Random(0.5, seed=7))
    for name, match in {
        "ask-again": "the method stands behind",
        "ask-again:first=0.1": "the method stands behind",
        "ask-again:then=0.1:cdpruner": "no option 'then'",
        "ask-again:first=2.0:cdpruner": "no fraction",
        "ask-again:first=few:cdpruner": "'few' is no budget",
        "ask-again:margin=high:cdpruner": "margin must be a number",
        "ask-again:nope": "unknown method",
        "ask-again:ask-again:cdpruner": "no method but a way",
    }.items():
        with pytest.raises(ValueError, match=match):
            factory(name)


class Asked:
    def __init__(self, image: str, question: str) -> None:
        self.image, self.question, self.answers = image, question, ["yes"]


@pytest.mark.parametrize("each", [1, 5])
def test_evaluation_counts_both_passes(pair: tuple[Any, Any], tmp_path: Any, each: int) -> None:
    """One question per picture would be batched across pictures; here it is not."""
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    items = [Asked(f"{number}.png", question) for number in range(2) for question in QUESTIONS[number:][:each]]
    name = "ask-again:first=0.02:margin=0.9:cdpruner"
    rows = evaluate(
        Transformers(*pair), items, [name, "cdpruner"], [1.0, 0.3, 0.02], tmp_path / "out", folder=tmp_path,
        max_new_tokens=5, batch=4,
    )  # fmt: skip
    by = {(row.item, row.method, repr(row.keep)): row for row in rows}
    runs = {(row.method, repr(row.keep)) for row in rows}
    assert runs == {("all", "1.0"), ("cdpruner", "0.3"), ("cdpruner", "0.02"), (name, "0.3"), (name, "1.0")}
    again = 0
    for number, one in enumerate(items):
        session = foveate.look(*pair, Image.open(tmp_path / one.image))
        for keep, then in (("0.3", foveate.CDPruner(keep=0.3)), ("1.0", None)):
            answer = session.ask(one.question, AskAgain(foveate.CDPruner(keep=0.02), then, 0.9), **PLAIN)
            few = by[str(number), "cdpruner", "0.02"]
            more = by[(str(number), "all", "1.0") if then is None else (str(number), "cdpruner", keep)]
            row = by[str(number), name, keep]
            assert row.answer == (more if answer.asked_again else few).answer
            assert row.kept == few.kept + (more.kept if answer.asked_again else 0) and row.total == few.total
            again += answer.asked_again
    assert 0 < again < 2 * len(items)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint.save(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def photo(tmp_path: Any) -> str:
    path = tmp_path / "photo.png"
    picture(0).save(path)
    return str(path)


def test_the_command_asks_again(folder: str, photo: str) -> None:
    options = ["--model", folder, "--keep", 5, "--again", 9, "--method", "saliency", "--max-new-tokens", 2]
    told = json.loads(call("ask", photo, "Is there a cat?", *options, "--margin", 1, "--json").stdout)
    assert told["asked_again"] and told["tokens_spent"] == 14 and told["visual_tokens"] == 9 and told["margin"] < 1
    result = call("ask", photo, "Is there a cat?", *options, "--margin", 1)
    assert "asked again: margin" in result.stderr and "14 visual tokens in all" in result.stderr
    told = json.loads(call("ask", photo, "Is there a cat?", *options, "--margin", 1e-6, "--json").stdout)
    assert not told["asked_again"] and told["tokens_spent"] == 5


def test_the_command_refuses(folder: str, photo: str, tmp_path: Any) -> None:
    ask = ["ask", photo, "Is there a cat?", "--model", folder]
    assert "--compare measures one pass" in refused(*ask, "--again", 0.5, "--compare")
    assert "give the second budget" in refused(*ask, "--margin", 0.5)
    assert "see no more" in refused(*ask, "--again", 0.05)
    assert "in (0, 1]" in refused(*ask, "--again", 0.5, "--margin", 2)
    assert "no method but a way" in refused("bench", "--methods", "ask-again:cdpruner")
    assert "no method but a way" in refused("bench", "--serve", "--methods", "ask-again:cdpruner")
    evaluation = ["eval", "--methods", "ask-again:first=0.1:cdpruner", "--out", tmp_path / "out", "--model", folder]
    assert "none of 0.1,0.05 exceeds" in refused(*evaluation, "--keep", "0.1,0.05")
    assert "no method but a way" in refused(*evaluation, "--engine", "vllm")
