"""The caller's own code in a pruned generate: it sees the prompt that was passed, and may use models as it likes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import logits_process as stock
from transformers.generation.streamers import BaseStreamer

import foveate
from tests import reference
from tests.tiny import BOS, ROWS, SILENT, Row, assistant, prompts

GREEDY: dict[str, Any] = {"do_sample": False, "suppress_tokens": SILENT}
FEW = ["llava-clip", "llava_next-clip", "qwen2_5_vl", "internvl", "idefics3"]
STEPS = 6
OLD = Version(transformers.__version__) < Version("5.18")
UNLIKE_THIRD = [token for token in range(2, 96) if token % 3]


class Seen(LogitsProcessor):
    """Notes what it is shown, and makes what is chosen depend on the length of it."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.ids.append(input_ids.clone())
        scores = scores.clone()
        scores[:, 5 + input_ids.shape[1] % 80] += 4
        return scores


class Grammar(LogitsProcessor):
    """As grammar decoders do it: where the answer stands is counted from the length at the first call."""

    def __init__(self) -> None:
        self.start: int | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.start is None:
            self.start = input_ids.shape[1]
        allowed = 60 + 5 * (input_ids.shape[1] - self.start)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, allowed : allowed + 5] = scores[:, allowed : allowed + 5]
        return masked


class NewTokens(StoppingCriteria):
    """As people write it: what is behind the prompt they passed."""

    def __init__(self, start: int, most: int) -> None:
        self.start = start
        self.most = most

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor([len(row[self.start :]) >= self.most for row in input_ids])


def width(inputs: dict[str, Tensor]) -> int:
    return inputs["input_ids"].shape[1]


def made(options: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The options of a case, fresh objects for every call."""
    return options(inputs) if callable(options) else dict(options)


def seeded(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    torch.manual_seed(11)
    return model.generate(**inputs, **options)


def by_hand(
    row: Row, model: Any, inputs: dict[str, Tensor], assembled: Any, processors: Sequence[Any], steps: int
) -> Tensor:
    """(B, steps) tokens: the language model run on the hand-assembled prompt, without a cache, and transformers' own
    processors applied to the ids that the caller passed and what came after them."""
    long, tokens = inputs["input_ids"], []
    embeddings, mask, positions = assembled.embeddings, assembled.mask, assembled.positions
    for _ in range(steps):
        with torch.no_grad():
            hidden = row.hidden(model, embeddings, mask, positions, assembled)[:, -1]
            scores = LogitsProcessorList(processors)(long, reference.logits_of(row, model, hidden))
        scores[:, SILENT] = -torch.inf
        token = scores.argmax(dim=-1)
        tokens.append(token)
        long = torch.cat([long, token[:, None]], dim=1)
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(token)[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
    return torch.stack(tokens, dim=1)


# What generate is told, and the stock processors that this means, as they are made for the prompt that was passed.
PROCESSED: dict[str, tuple[Any, Callable[[dict[str, Tensor]], list[Any]]]] = {
    "logits_processor": (
        lambda inputs: {"logits_processor": LogitsProcessorList([Seen()])},
        lambda inputs: [Seen()],
    ),
    "a plain list of processors": (
        lambda inputs: {"logits_processor": [Seen(), stock.RepetitionPenaltyLogitsProcessor(1.7)]},
        lambda inputs: [Seen(), stock.RepetitionPenaltyLogitsProcessor(1.7)],
    ),
    "grammar": (lambda inputs: {"logits_processor": LogitsProcessorList([Grammar()])}, lambda inputs: [Grammar()]),
    "prefix_allowed_tokens_fn": (
        lambda inputs: {"prefix_allowed_tokens_fn": lambda row, ids: [7 + row + len(ids) % 31, 60 + len(ids) % 31]},
        lambda inputs: [
            stock.PrefixConstrainedLogitsProcessor(
                lambda row, ids: [7 + row + len(ids) % 31, 60 + len(ids) % 31], 1
            )
        ],
    ),
    "repetition_penalty": (
        {"repetition_penalty": 2.5},
        lambda inputs: [stock.RepetitionPenaltyLogitsProcessor(2.5)],
    ),
    "encoder_repetition_penalty": (
        {"encoder_repetition_penalty": 1.5},
        lambda inputs: [stock.EncoderRepetitionPenaltyLogitsProcessor(1.5, inputs["input_ids"])],
    ),
    "no_repeat_ngram_size": (
        {"no_repeat_ngram_size": 1},
        lambda inputs: [stock.NoRepeatNGramLogitsProcessor(1)],
    ),
    "bad_words_ids": (
        lambda inputs: {"bad_words_ids": [[41, token] for token in UNLIKE_THIRD]},
        lambda inputs: [stock.NoBadWordsLogitsProcessor([[41, token] for token in UNLIKE_THIRD], None)],
    ),
    "sequence_bias": (
        {"sequence_bias": [[[41, 60], 30.0], [[60, 61], 30.0]]},
        lambda inputs: [stock.SequenceBiasLogitsProcessor({(41, 60): 30.0, (60, 61): 30.0})],
    ),
    "watermarking_config": (
        {"watermarking_config": WatermarkingConfig(bias=6.0, seeding_scheme="lefthash")},
        lambda inputs: [WatermarkingConfig(bias=6.0, seeding_scheme="lefthash").construct_processor(100, "cpu")],
    ),
    "synthid": (
        {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[5, 9, 2], ngram_len=3)},
        lambda inputs: [
            SynthIDTextWatermarkingConfig(keys=[5, 9, 2], ngram_len=3).construct_processor(100, "cpu")
        ],
    ),
    "begin_suppress_tokens": (
        {"begin_suppress_tokens": UNLIKE_THIRD},
        lambda inputs: [stock.SuppressTokensAtBeginLogitsProcessor(UNLIKE_THIRD, width(inputs))],
    ),
    "forced_eos_token_id": (
        lambda inputs: {"forced_eos_token_id": 77, "max_length": width(inputs) + STEPS},
        lambda inputs: [stock.ForcedEOSTokenLogitsProcessor(width(inputs) + STEPS, 77, device="cpu")],
    ),
    "min_length": (
        lambda inputs: {"min_length": width(inputs) + 4, "eos_token_id": list(range(30, 60))},
        lambda inputs: [stock.MinLengthLogitsProcessor(width(inputs) + 4, list(range(30, 60)), device="cpu")],
    ),
    "min_new_tokens": (
        {"min_new_tokens": 4, "eos_token_id": list(range(30, 60))},
        lambda inputs: [
            stock.MinNewTokensLengthLogitsProcessor(width(inputs), 4, list(range(30, 60)), device="cpu")
        ],
    ),
    "exponential_decay_length_penalty": (
        {"exponential_decay_length_penalty": (1, 3.0), "eos_token_id": 40},
        lambda inputs: [stock.ExponentialDecayLengthPenalty((1, 3.0), 40, width(inputs))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(PROCESSED))
@pytest.mark.parametrize("name", ["llava_next-clip", "qwen2_5_vl"])
def test_processors_work_on_the_prompt_that_was_passed(name: str, case: str) -> None:
    """Below, as transformers' own processors applied by hand to the caller's ids; with all kept, as the bare model."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    given, hand = PROCESSED[case]
    # An end is a token that is told apart from padding.
    options = {**GREEDY, "max_new_tokens": STEPS, "pad_token_id": 0}

    def run() -> Any:
        told = {**options, **made(given, inputs)}
        if "max_length" in told:
            del told["max_new_tokens"]
        return model.generate(**inputs, **told)

    bare = run()
    with foveate.Saliency(keep=1.0)(model):
        assert torch.equal(run(), bare)
    pruner = foveate.Saliency(keep=0.3)
    with pruner(model):
        ours = run()
    assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
    wanted = by_hand(row, model, inputs, assembled, hand(inputs), STEPS)
    plain = by_hand(row, model, inputs, assembled, [], STEPS)
    assert not torch.equal(wanted, plain)  # what is asked for matters here
    assert torch.equal(ours[:, : width(inputs)], inputs["input_ids"])
    ends = made(given, inputs).get("eos_token_id", [])
    ends = [ends] if isinstance(ends, int) else ends
    new = ours[:, width(inputs) :]
    for tokens, expected in zip(new.tolist(), wanted.tolist(), strict=True):
        length = next((n + 1 for n, token in enumerate(expected) if token in ends), STEPS)
        assert tokens[:length] == expected[:length]
        assert not any(tokens[length:])


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", FEW)
def test_what_the_callers_code_is_shown(name: str, beams: int, keep: float) -> None:
    """Criteria, processors, prefix functions and streamers: every one begins with the prompt that was passed."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    start, rows = width(inputs), len(inputs["input_ids"])
    prefixes: list[tuple[int, Tensor]] = []
    criteria: list[Tensor] = []
    processor = Seen()

    class Watching(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            criteria.append(input_ids.clone())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def allowed(number: int, ids: Tensor) -> list[int]:
        prefixes.append((number, ids.clone()))
        return list(range(5, 90))

    with foveate.Saliency(keep=keep)(model):
        result = model.generate(
            **inputs, **GREEDY, num_beams=beams, max_new_tokens=STEPS,
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList([Watching()]), prefix_allowed_tokens_fn=allowed,
        )  # fmt: skip
    assert [ids.shape[1] for ids in processor.ids] == [start + n for n in range(STEPS)]
    assert sorted({ids.shape[1] for ids in criteria}) == [start + n + 1 for n in range(STEPS)]
    for ids in [*processor.ids, *criteria]:
        each = len(ids) // rows
        assert len(ids) == each * rows and each >= beams
        assert torch.equal(ids[:, :start], inputs["input_ids"].repeat_interleave(each, dim=0))
    assert len(prefixes) == STEPS * rows * beams
    for number, ids in prefixes:
        assert torch.equal(ids[:start], inputs["input_ids"][number])
    if beams == 1:
        assert torch.equal(criteria[-1], result)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("how", ["counted", "MaxLengthCriteria", "MaxLengthCriteria and more", "max_time"])
@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip"])
def test_stopping_criteria_stop_where_they_say(name: str, how: str, beams: int, keep: float) -> None:
    """The same tokens as the stock model's on the hand-assembled prompt, stopped by hand there."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    start = width(inputs)

    def criteria(at: int) -> StoppingCriteriaList:
        return {
            "counted": StoppingCriteriaList([NewTokens(at, 3)]),
            "MaxLengthCriteria": StoppingCriteriaList([MaxLengthCriteria(at + 3)]),
            "MaxLengthCriteria and more": StoppingCriteriaList([NewTokens(at, 5), MaxLengthCriteria(at + 3)]),
            "max_time": StoppingCriteriaList(),
        }[how]

    options: dict[str, Any] = {**GREEDY, "num_beams": beams}
    options |= {"max_time": 0.0} if how == "max_time" else {}
    # Beam search takes its longest length from elsewhere: in stock too, a shorter criterion ends it in its own way.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = foveate.Saliency(keep=keep)
        with pruner(model):
            ours = model.generate(**inputs, **options, max_new_tokens=8, stopping_criteria=criteria(start))
        if keep == 1:
            wanted = model.generate(**inputs, **options, max_new_tokens=8, stopping_criteria=criteria(start))
            assert torch.equal(ours, wanted)
        assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
        short = assembled.embeddings.shape[1]
        # With embeddings, stock counts only what is new; its criteria see no prompt.
        by_embeddings = reference.generate(
            row, model, inputs, assembled, **options, max_new_tokens=8, stopping_criteria=criteria(0)
        )
    assert short < start or keep == 1
    assert torch.equal(ours[:, :start], inputs["input_ids"])
    assert torch.equal(ours[:, start:], by_embeddings)


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer in which every id is a letter."""
    signs = [chr(number) for number in range(97, 123)] + [chr(number) for number in range(192, 266)]
    letters = Tokenizer(models.BPE({sign: number for number, sign in enumerate(signs)}, []))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", ["llava_next-clip", "qwen2_5_vl"])
def test_stop_strings(name: str, keep: float) -> None:
    """A string that the prompt holds already does not stop it; the one that the answer comes to does."""
    row = ROWS[name]
    model, tokenizer = row.make("sdpa"), letters()
    inputs = prompts(row, model, "one")
    start = width(inputs)
    with foveate.Saliency(keep=keep)(model):
        answer = model.generate(**inputs, **GREEDY, max_new_tokens=8)[0, start:]
        stops = [tokenizer.decode(inputs["input_ids"][0, -4:-1]), tokenizer.decode(answer[2:4])]
        ours = model.generate(**inputs, **GREEDY, max_new_tokens=8, stop_strings=stops, tokenizer=tokenizer)
    end = next(n for n in range(1, 9) if stops[1] in tokenizer.decode(answer[:n]))
    assert len(stops[1]) == 2 and end <= 4
    assert ours[0].tolist() == [*inputs["input_ids"][0].tolist(), *answer[:end].tolist()]


@pytest.mark.parametrize("name", FEW)
def test_lengths_count_the_prompt_that_was_passed(name: str) -> None:
    """max_length in every place where it can stand, beside min_length."""
    row = ROWS[name]
    model = copy.deepcopy(row.make("sdpa"))
    inputs = prompts(row, model, "mixed")
    start = width(inputs)
    total = start + 5
    own = copy.deepcopy(model.generation_config)
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "argument": ({"max_length": total}, {}),
        "generation_config": ({"generation_config": GenerationConfig(max_length=total, pad_token_id=0)}, {}),
        "the model's": ({}, {"max_length": total}),
        "the model's, beside a generation_config": (
            {"generation_config": GenerationConfig(pad_token_id=0)}, {"max_length": total},
        ),
        "the model's max_new_tokens": ({}, {"max_new_tokens": 5}),
        "argument before the model's": ({"max_length": total}, {"max_length": total + 9}),
        "default": ({}, {}),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for way, (given, set_on_model) in ways.items():
            model.generation_config = copy.deepcopy(own)
            for option, value in set_on_model.items():
                setattr(model.generation_config, option, value)
            bare = model.generate(**inputs, **GREEDY, **given)
            with foveate.Saliency(keep=1.0)(model):
                assert torch.equal(model.generate(**inputs, **GREEDY, **given), bare), way
            with foveate.Saliency(keep=0.3)(model):
                ours = model.generate(**inputs, **GREEDY, **given)
            assert ours.shape == bare.shape, way
            assert torch.equal(ours[:, :start], inputs["input_ids"]), way


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.got: list[Tensor] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.got.append(value.clone())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", FEW)
def test_streamers_get_the_prompt_and_every_token(name: str, keep: float) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    streamer = Collected()
    with foveate.Saliency(keep=keep)(model):
        result = model.generate(**inputs, **GREEDY, max_new_tokens=4, streamer=streamer)
    assert torch.equal(streamer.got[0], inputs["input_ids"])
    assert torch.cat([one.flatten() for one in streamer.got]).tolist() == result[0].tolist()
    assert streamer.ended == 1


# Ways to decode: at keep 1 each as the bare model.


def sampling_loop(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
    """What people pass as custom_generate: transformers' own loop, with something of theirs around it."""
    return type(model)._sample(model, input_ids, **kwargs)


def own_loop(
    model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **kwargs: Any
) -> Tensor:
    """A loop of one's own over forwards without a cache."""
    for name in ("past_key_values", "cache", "use_cache", "attention_mask"):
        kwargs.pop(name, None)
    while input_ids.shape[1] < generation_config.max_length:
        scores = model(input_ids=input_ids, use_cache=False, **kwargs).logits[:, -1]
        token = logits_processor(input_ids, scores).argmax(dim=-1)
        input_ids = torch.cat([input_ids, token[:, None]], dim=1)
        for name, step in (("position_ids", 1), ("mm_token_type_ids", 0)):
            if kwargs.get(name) is not None:
                kwargs[name] = torch.cat([kwargs[name], kwargs[name][..., -1:] + step], dim=-1)
        if bool(stopping_criteria(input_ids, scores).all()):
            break
    return input_ids


WAYS: dict[str, dict[str, Any]] = {
    "sampling, several returns": {"do_sample": True, "num_return_sequences": 3, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "assistant": {"do_sample": False, "assistant_model": assistant},
    "sampling with an assistant": {"do_sample": True, "assistant_model": assistant},
    "the model itself as assistant": {"do_sample": False, "assistant_model": None},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
    "custom_generate, the stock loop": {"do_sample": False, "custom_generate": sampling_loop},
    "custom_generate, an own loop": {"do_sample": False, "custom_generate": own_loop},
    "without a cache": {"do_sample": False, "use_cache": False},
    "classifier-free guidance": {"do_sample": False, "guidance_scale": 1.5},
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", FEW)
def test_ways_to_decode(name: str, way: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    batch = "one" if any(word in way for word in ("assistant", "lookup", "own loop")) else "mixed"
    if OLD and ("assistant" in way or "lookup" in way):
        pytest.skip("this transformers hands pixels to an assistant for text, and takes no model without EOS")
    several = "beams" in way or "returns" in way
    if OLD and several and name not in ("llava-clip", "llava_next-clip"):
        pytest.skip("this transformers hands the tiles of one picture to the wrong beams")
    if (OLD and several) or (row.mixes_beams and "beams" in way):
        batch = "one"  # stock hands the images of a prompt with several to the wrong beams
    inputs = prompts(row, model, batch)
    if way in ("assistant", "sampling with an assistant") and row.per_token(inputs["input_ids"]):
        pytest.skip("stock: an assistant for text knows no token types")
    if "guidance" in way and row.rope:
        pytest.skip("stock: guidance asks a model with M-RoPE for text that it gives no ids")
    options = {name: value() if value is assistant else value for name, value in WAYS[way].items()}
    options |= {"assistant_model": model} if "itself" in way else {}
    start = width(inputs)
    blocks = "assistant" in way or "lookup" in way  # stock asks the criteria once per block of candidates

    def run() -> tuple[Any, list[Tensor]]:
        seen = Seen()
        told = {**options, "suppress_tokens": SILENT, "max_new_tokens": STEPS}
        result = seeded(
            model, inputs, **told, logits_processor=LogitsProcessorList([seen]),
            stopping_criteria=StoppingCriteriaList([NewTokens(start, 4)]),
        )  # fmt: skip
        return result, seen.ids

    bare, seen_bare = run()
    with foveate.Saliency(keep=1.0)(model):
        ours, seen = run()
    assert torch.equal(ours, bare)
    assert [ids.tolist() for ids in seen] == [ids.tolist() for ids in seen_bare]
    pruner = foveate.Saliency(keep=0.3)
    with pruner(model):
        ours, seen = run()
        plain = model.generate(
            **inputs, **GREEDY, max_new_tokens=STEPS, logits_processor=LogitsProcessorList([Seen()]),
            stopping_criteria=StoppingCriteriaList([NewTokens(start, 4)]),
        )  # fmt: skip
    each = len(ours) // len(inputs["input_ids"])
    assert torch.equal(ours[:, :start], inputs["input_ids"].repeat_interleave(each, dim=0))
    assert blocks or ours.shape == bare.shape
    for ids in seen:
        copies = len(ids) // len(inputs["input_ids"])
        assert torch.equal(ids[:, :start], inputs["input_ids"].repeat_interleave(copies, dim=0))
    if not options["do_sample"] and "num_beams" not in options and "guidance_scale" not in options:
        assert torch.equal(ours[:, : start + 4], plain)


@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip"])
def test_sampling_is_that_of_the_hand_assembled_prompt(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 5, "suppress_tokens": SILENT}
    pruner = foveate.Saliency(keep=0.3)
    with pruner(model):
        ours = seeded(model, inputs, **options)
    assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
    torch.manual_seed(11)
    wanted = reference.generate(row, model, inputs, assembled, **options)
    assert torch.equal(ours[:, width(inputs) :], wanted)


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_a_custom_generate_may_return_what_it_likes(keep: float) -> None:
    row = ROWS["llava-clip"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")

    def counted(model: Any, input_ids: Tensor, **kwargs: Any) -> tuple[str, int]:
        result = type(model)._sample(model, input_ids, **kwargs)
        return "new tokens", result.shape[1] - input_ids.shape[1]

    with foveate.Saliency(keep=keep)(model):
        assert model.generate(**inputs, **GREEDY, max_new_tokens=3, custom_generate=counted) == ("new tokens", 3)


# The caller's code asks models, the very one that is running among them.

NEW: dict[str, Any] = {**GREEDY, "max_new_tokens": 3}
Ask = Callable[[Any], Tensor]


def other_question(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same pictures (the very tensors), asked about in other words, one more of them."""
    ids = inputs["input_ids"]
    more = torch.cat([ids[:, :-3], torch.full((len(ids), 4), 55)], dim=1)
    grown = {name: value for name, value in inputs.items() if value.shape[:2] != ids.shape}
    for name, value in inputs.items():
        if name not in grown:
            grown[name] = torch.cat([value, value[:, -1:]], dim=1)
    return {**grown, "input_ids": more}


def questions(row: Row, model: Any) -> dict[str, Ask]:
    """What may be asked of a model; each gives tokens or logits."""
    same = prompts(row, model, "one")
    several = prompts(row, model, "several")
    reworded = other_question(same)
    copied = {name: value.clone() for name, value in reworded.items()}
    text = torch.tensor([[BOS, 40, 41, 42]])
    words = {"input_ids": text, "attention_mask": torch.ones_like(text), **row.per_token(text)}

    def conversation(model: Any) -> Tensor:
        first = model.generate(**several, **NEW, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[50, 51]])], dim=1)
        told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **row.per_token(ids)}
        result: Tensor = model.generate(**told, **NEW, past_key_values=first.past_key_values)
        return result

    def logits(inputs: dict[str, Tensor]) -> Ask:
        def ask(model: Any) -> Tensor:
            with torch.no_grad():
                result: Tensor = model(**inputs).logits
            return result

        return ask

    def generated(inputs: dict[str, Tensor], **options: Any) -> Ask:
        return lambda model: model.generate(**inputs, **NEW, **options)

    found = {"a conversation": conversation}
    for what, inputs in (
        ("other pictures", several),
        ("the same pictures", reworded),
        ("a copy of the same pictures", copied),
        ("the same prompt", same),
        ("text alone", words),
    ):
        found[f"forward, {what}"] = logits(inputs)
        found[f"generate, {what}"] = generated(inputs)
    another = {**same, "pixel_values": same["pixel_values"].flip(-1)}
    found["beams, another picture"] = generated(another, num_beams=2)
    return found


def asking(where: str, ask: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
    """Options of a generate in which the caller's code asks once; and where the answer goes."""
    answers: list[Any] = []

    def once() -> None:
        if not answers:
            answers.append(None)
            answers[0] = ask(*args, **kwargs)

    class Processor(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            once()
            return scores

    class Criterion(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            once()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    class Streamer(Collected):
        def put(self, value: Any) -> None:
            once()

    def allowed(number: int, ids: Any) -> list[int]:
        once()
        return list(range(96))

    def custom(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        once()
        return type(model)._sample(model, input_ids, **kwargs)

    options: dict[str, dict[str, Any]] = {
        "logits_processor": {"logits_processor": LogitsProcessorList([Processor()])},
        "stopping_criteria": {"stopping_criteria": StoppingCriteriaList([Criterion()])},
        "streamer": {"streamer": Streamer()},
        "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": allowed},
        "custom_generate": {"custom_generate": custom},
    }
    return options[where], answers


PLACES = ["logits_processor", "stopping_criteria", "streamer", "prefix_allowed_tokens_fn", "custom_generate"]
NESTED = ["llava_next-clip", "qwen2_5_vl", "idefics3"]


@pytest.mark.parametrize("where, name", [(where, NESTED[number % len(NESTED)]) for number, where in enumerate(PLACES)])
def test_calls_of_the_same_model_from_inside(name: str, where: str) -> None:
    """With all kept as the bare model, below as the same call outside; the outer call is none the worse for it."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    kinds = questions(row, model)
    bare = {what: ask(model) for what, ask in kinds.items()}
    outer_bare = model.generate(**inputs, **NEW)
    for keep, wanted_of in ((1.0, bare), (0.3, None)):
        pruner = foveate.AdaFV(keep=keep)
        with pruner(model):
            outer = model.generate(**inputs, **NEW)
            chosen = [one.indices for one in pruner.selections]
            wanted = wanted_of or {what: ask(model) for what, ask in kinds.items()}
            for what, ask in kinds.items():
                options, got = asking(where, ask, model)
                result = model.generate(**inputs, **NEW, **options)
                assert torch.equal(got[0], wanted[what]), (keep, what)
                assert torch.equal(result, outer), (keep, what)
                assert all(torch.equal(a, b.indices) for a, b in zip(chosen, pruner.selections, strict=True))
        assert keep < 1 or torch.equal(outer, outer_bare)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", NESTED)
def test_calls_from_inside_a_call_that_owns_its_pruner(name: str, where: str) -> None:
    """foveate.generate attaches nothing: what its caller's code asks is the bare model, or another such call."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs, several = prompts(row, model, "one"), prompts(row, model, "several")
    pruner, other = foveate.AdaFV(keep=0.3), foveate.Saliency(keep=3)
    outer = foveate.generate(model, pruner, **inputs, **NEW)
    alone = foveate.generate(model, other, **several, **NEW)
    kinds = questions(row, model)
    for what, ask in kinds.items():
        wanted = ask(model)
        options, got = asking(where, ask, model)
        ours = foveate.generate(model, pruner, **inputs, **NEW, **options)
        assert torch.equal(got[0], wanted), what
        assert torch.equal(ours.output, outer.output), what
    options, nested = asking(where, foveate.generate, model, other, **several, **NEW)
    ours = foveate.generate(model, pruner, **inputs, **NEW, **options)
    for got, wanted in ((ours, outer), (nested[0], alone)):
        assert torch.equal(got.output, wanted.output)
        assert [one.indices.tolist() for one in got.selections] == [one.indices.tolist() for one in wanted.selections]
    assert pruner.selections == other.selections == []


@pytest.mark.parametrize("where", [place for place in PLACES if place != "custom_generate"])
@pytest.mark.parametrize("inner", ["fastv", "adafv"])
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
def test_calls_from_inside_a_method_that_prunes_inside(name: str, inner: str, where: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs, several = prompts(row, model, "one"), prompts(row, model, "several")
    own = foveate.FastV(keep=0.3, layer=1, budget="final")
    other = foveate.FastV(keep=0.5, layer=1, budget="final") if inner == "fastv" else foveate.AdaFV(keep=0.4)
    outer = foveate.generate(model, own, **inputs, **NEW)
    alone = foveate.generate(model, other, **several, **NEW)
    options, got = asking(where, foveate.generate, model, other, **several, **NEW)
    again = foveate.generate(model, own, **inputs, **NEW, **options)
    assert torch.equal(again.output, outer.output)
    assert torch.equal(again.selections[0].indices, outer.selections[0].indices)
    assert torch.equal(got[0].output, alone.output)
    with own(model):
        wanted = model.generate(**several, **NEW)
        options, got = asking(where, model.generate, **several, **NEW)
        result = model.generate(**inputs, **NEW, **options)
    assert torch.equal(result, outer.output) and torch.equal(got[0], wanted)


@pytest.mark.parametrize("where", PLACES)
def test_another_model_from_inside(where: str) -> None:
    """Two models under pruners of their own, one asked from inside the other's generate; of one class, and of two."""
    for first, second in (("llava_next-clip", "qwen2_5_vl"), ("llava-clip", "llava-clip")):
        row, other_row = ROWS[first], ROWS[second]
        model, other = row.make("sdpa"), copy.deepcopy(other_row.make("sdpa"))
        inputs, asked = prompts(row, model, "one"), prompts(other_row, other, "several")
        bare = other.generate(**asked, **NEW)
        with foveate.Saliency(keep=0.3)(model):
            outer = model.generate(**inputs, **NEW)
            options, got = asking(where, other.generate, **asked, **NEW)
            assert torch.equal(model.generate(**inputs, **NEW, **options), outer)
            assert torch.equal(got[0], bare)
            with foveate.AdaFV(keep=0.4)(other):
                pruned = other.generate(**asked, **NEW)
                # Taken anew: what was taken before is the bare model's.
                options, got = asking(where, other.generate, **asked, **NEW)
                assert torch.equal(model.generate(**inputs, **NEW, **options), outer)
            assert torch.equal(got[0], pruned)
            assert not torch.equal(pruned, bare)


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip", "qwen2_5_vl"])
def test_contrastive_decoding(name: str, keep: float) -> None:
    """A processor that takes away what the model says of a noised picture, whole sequence after whole sequence."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    noised = {"pixel_values": inputs["pixel_values"] + torch.randn(1, generator=torch.Generator().manual_seed(4))}

    class Contrast(LogitsProcessor):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            told = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **row.per_token(input_ids)}
            logits = model(**{**inputs, **noised, **told}).logits[:, -1]
            self.seen.append(logits)
            return scores - 0.5 * logits

    def run() -> tuple[Tensor, list[Tensor]]:
        contrast = Contrast()
        result = model.generate(
            **inputs, **GREEDY, max_new_tokens=4, logits_processor=LogitsProcessorList([contrast]), output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return result, contrast.seen

    bare = run()
    pruner = foveate.Saliency(keep=keep)
    with torch.no_grad(), pruner(model):
        ours = run()
        wanted = []
        for length in range(4):  # the same forwards, outside
            ids = ours[0].sequences[:, : width(inputs) + length]
            told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **row.per_token(ids)}
            wanted.append(model(**{**inputs, **noised, **told}).logits[:, -1])
    assert all(torch.equal(a, b) for a, b in zip(ours[1], wanted, strict=True))
    tokens = ours[0].sequences[0, width(inputs) :].tolist()
    for token, logits, taken in zip(tokens, ours[0].logits, wanted, strict=True):
        scores = logits - 0.5 * taken
        scores[:, SILENT] = -torch.inf
        assert int(scores.argmax()) == token
    if keep == 1:
        assert torch.equal(ours[0].sequences, bare[0].sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours[1], bare[1], strict=True))
