"""What calls are given beside ids and pixels: honoured as the bare model honours it, shortened, or refused by name."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

import foveate
from foveate.arguments import CACHES
from tests import reference
from tests.tiny import BOS, ROWS, SILENT, Row, prompts

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SILENT}
FEW = ["llava-clip", "llava_next-clip", "qwen2_5_vl", "internvl", "idefics3"]
WITH_LEFTOVERS = ["llava_next-clip", "qwen2_5_vl", "idefics3", "mistral3", "llava_onevision"]


def per_token(row: Row, ids: Tensor) -> set[str]:
    return {"input_ids", "attention_mask", *row.per_token(ids)}


def same(ours: Any, theirs: Any) -> bool:
    """Whether two outputs are the same, field by field."""
    if torch.is_tensor(theirs):
        return torch.is_tensor(ours) and ours.shape == theirs.shape and ours.dtype == theirs.dtype and torch.equal(
            ours, theirs
        )  # fmt: skip
    if isinstance(theirs, dict) and "pooler_output" in theirs:
        # What newer transformers hand over of the vision tower: its features, but not its states.
        return "last_hidden_state" not in ours and same(ours["pooler_output"], theirs["pooler_output"])
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if hasattr(theirs, "get_seq_length"):
        return int(ours.get_seq_length()) == int(theirs.get_seq_length())
    return bool(ours == theirs)


@pytest.mark.parametrize("batch", ["one", "several", "mixed"])
@pytest.mark.parametrize("name", FEW)
def test_with_all_kept_every_field_is_the_bare_models(name: str, batch: str) -> None:
    """Shapes of image_hidden_states among them."""
    row = ROWS[name]
    model = row.make("eager")
    inputs = prompts(row, model, batch)
    labels = inputs["input_ids"].masked_fill(torch.isin(inputs["input_ids"], torch.tensor(SILENT)), -100)
    calls: list[dict[str, Any]] = [
        {},
        {"labels": labels},
        {"output_hidden_states": True, "output_attentions": True, "use_cache": True},
        {"logits_to_keep": 3},
        {"return_dict": False},
    ]
    with torch.no_grad():
        whole = model(**inputs)
    telling = {"output_hidden_states", "output_attentions", "output_scores", "output_logits", "return_dict_in_generate"}
    for options in calls:
        with torch.no_grad():
            bare = model(**inputs, **options)
            with foveate.AdaFV(keep=1.0)(model):
                ours = model(**inputs, **options)
        assert type(ours) is type(bare)
        if isinstance(bare, tuple) and isinstance(bare[-1], tuple) and "image_outputs" in whole:
            (features,) = ours[-1]  # of the vision tower, likewise
            assert same(features, whole["image_outputs"].pooler_output)
            ours, bare = ours[:-1], bare[:-1]
        assert same(ours, bare), options
    bare = model.generate(**inputs, **GREEDY, **dict.fromkeys(telling, True))
    with foveate.AdaFV(keep=1.0)(model):
        ours = model.generate(**inputs, **GREEDY, **dict.fromkeys(telling, True))
    assert type(ours) is type(bare)
    assert same(dict(ours), dict(bare))


# The inner model.


@pytest.mark.parametrize("name", FEW)
def test_the_inner_model_called_directly(name: str) -> None:
    """Trainers do it for hidden states: refused under a pruner, never silently bare; bare where nobody attached one."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    text = torch.tensor([[BOS, 40, 41, 42]])
    words = {"input_ids": text, **row.per_token(text)}
    rest = {key: value for key, value in inputs.items() if key != "input_ids"}
    with torch.no_grad():
        bare = model.model(**inputs).last_hidden_state
        bare_words = model.model(**words).last_hidden_state
        for pruner in (foveate.Saliency(keep=0.3), foveate.Saliency(keep=1.0)):
            with pruner(model):
                for call in (lambda: model.model(**inputs), lambda: model.model(inputs["input_ids"], **rest)):
                    with pytest.raises(ValueError, match=r"forward was called directly, under a pruner.*model\(\.\.\."):
                        call()
                assert torch.equal(model.model(**words).last_hidden_state, bare_words)
        # While another thread generates statelessly, nobody has attached anything.
        inside, go_on = threading.Event(), threading.Event()

        def held(number: int, ids: Tensor) -> list[int]:
            inside.set()
            assert go_on.wait(timeout=60)
            return list(range(90))

        thread = threading.Thread(
            target=lambda: foveate.generate(
                model, foveate.Saliency(keep=0.3), **inputs, **GREEDY, prefix_allowed_tokens_fn=held
            )
        )
        thread.start()
        assert inside.wait(timeout=60)
        try:
            assert "generate" in vars(model)  # the other thread's call is in the middle of it
            assert torch.equal(model.model(**inputs).last_hidden_state, bare)
        finally:
            go_on.set()
            thread.join(timeout=60)


# One entry per token.


@pytest.mark.parametrize("batch", ["one", "mixed"])
@pytest.mark.parametrize("name", FEW)
def test_labels_and_shifted_labels(name: str, batch: str) -> None:
    """The loss of the hand-assembled prompt, whichever way the labels come."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, batch)
    ids = inputs["input_ids"]
    labels = ids.masked_fill(torch.isin(ids, torch.tensor([*SILENT, BOS])) | (inputs["attention_mask"] == 0), -100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)

    def losses() -> list[float]:
        with torch.no_grad():
            plain = model(**inputs, labels=labels).loss
            return [float(plain), float(model(**inputs, labels=labels, shift_labels=shifted).loss)]

    bare = losses()
    with foveate.Saliency(keep=1.0)(model):
        assert losses() == bare
    pruner = foveate.Saliency(keep=0.3)
    with pruner(model):
        ours = losses()
    assembled = reference.assemble(row, model, inputs, [one.indices for one in pruner.selections])
    with torch.no_grad():
        hidden = row.hidden(model, assembled.embeddings, assembled.mask, assembled.positions, assembled)
        logits = reference.logits_of(row, model, hidden)
    each = []
    width = assembled.embeddings.shape[1]
    for number, columns in enumerate(assembled.columns):
        kept = labels[number, columns]
        scores = logits[number, width - len(columns) :]
        for place in range(len(columns) - 1):
            if kept[place + 1] != -100:
                each.append(torch.nn.functional.cross_entropy(scores[place].double(), kept[place + 1]))
    wanted = float(torch.stack(each).mean())
    assert ours == pytest.approx([wanted, wanted], rel=1e-4)


@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip"])
def test_the_last_shifted_label_counts(name: str) -> None:
    """It is foretold by the last token, which no plain label is."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    shifted = torch.full_like(inputs["input_ids"], -100)
    shifted[:, -1] = 33
    with torch.no_grad(), foveate.Saliency(keep=0.3)(model):
        output = model(**inputs, labels=shifted, shift_labels=shifted)
        wanted = torch.nn.functional.cross_entropy(output.logits[0, -1:].float(), torch.tensor([33]))
    assert float(output.loss) == pytest.approx(float(wanted), rel=1e-5)


UNKNOWN = {
    "moe_mm_token_type_ids": lambda ids: torch.zeros_like(ids),
    "cache_position": lambda ids: torch.arange(ids.shape[1]),
    "token_weights": lambda ids: torch.ones(*ids.shape, 3),
    "spans": lambda ids: torch.ones(2, *ids.shape),
}


@pytest.mark.parametrize("argument", list(UNKNOWN))
@pytest.mark.parametrize("name", FEW)
def test_unknown_arguments_with_an_entry_per_token(name: str, argument: str) -> None:
    """Refused by name where tokens were dropped; not where none was."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    given = {argument: UNKNOWN[argument](inputs["input_ids"])}
    with torch.no_grad():
        bare = model(**inputs).logits
        with (
            foveate.Saliency(keep=0.3)(model),
            pytest.raises(ValueError, match=f"{argument} of shape .* has an entry for each of the .* leave it out"),
        ):
            model(**inputs, **given)
        with foveate.Saliency(keep=1.0)(model):
            assert torch.equal(model(**inputs, **given).logits, bare)


@pytest.mark.parametrize("shape", ["(B, 1, S, S)", "(B, S - 1)"])
def test_masks_of_other_shapes_are_refused(shape: str) -> None:
    row = ROWS["llava-clip"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    size = inputs["input_ids"].shape[1]
    mask = torch.ones(1, 1, size, size) if shape.startswith("(B, 1") else inputs["attention_mask"][:, 1:]
    for keep in (0.3, 1.0):
        with foveate.Saliency(keep=keep)(model), pytest.raises(ValueError, match="plain \\(batch, tokens\\) mask"):
            model(**{**inputs, "attention_mask": mask})


@pytest.mark.parametrize("argument", ["input_ids", "attention_mask"])
def test_lists_in_place_of_tensors_are_named(argument: str) -> None:
    """What a processor gives where nobody told it to make tensors."""
    row = ROWS["llava-clip"]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    given = {**inputs, argument: inputs[argument].tolist()}
    for ask in ("generate", "forward"):
        with foveate.Saliency(keep=0.3)(model), pytest.raises(TypeError, match=f"{argument} is a list.*return_tensors"):
            getattr(model, ask)(**given)


@pytest.mark.parametrize("name", FEW)
def test_masked_placeholders_are_named(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "several")
    first = int((inputs["input_ids"][0] == row.token).nonzero()[0])
    mask = inputs["attention_mask"].clone()
    mask[0, first : first + 3] = 0
    for call in (model.generate, model):
        with foveate.Saliency(keep=0.3)(model) as handle, pytest.raises(ValueError, match="attention_mask hides 3 of"):
            getattr(handle.model, "generate" if call is not model else "__call__")(**{**inputs, "attention_mask": mask})


# Integers, padding, ends.


@pytest.mark.parametrize("name", [name for name in FEW if not ROWS[name].rope])  # with M-RoPE stock takes none
def test_int32_ids(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    narrow = {
        key: value.int() if key in ("input_ids", "attention_mask") else value for key, value in inputs.items()
    }  # fmt: skip
    bare = model.generate(**narrow, **GREEDY)
    with foveate.AdaFV(keep=1.0)(model):
        ours = model.generate(**narrow, **GREEDY)
    assert torch.equal(ours, bare) and ours.dtype == bare.dtype
    with torch.no_grad(), foveate.AdaFV(keep=0.3)(model):
        assert model.generate(**narrow, **GREEDY).tolist() == model.generate(**inputs, **GREEDY).tolist()
        assert torch.equal(model(**narrow).logits, model(**inputs).logits)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("how", ["argument", "generation_config", "the model's", "argument before the config's"])
@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip", "internvl"])
def test_a_mask_inferred_from_padding(name: str, how: str, keep: float) -> None:
    row = ROWS[name]
    model = copy.deepcopy(row.make("sdpa"))
    inputs = prompts(row, model, "mixed")
    mask, ids = inputs.pop("attention_mask"), inputs.pop("input_ids")
    pad = next(n for n in range(5, 90) if not (ids == n).any())
    ids = ids.masked_fill(mask == 0, pad)
    assert (mask == 0).any()
    given: dict[str, Any] = {}
    model.generation_config.pad_token_id = 4
    if how == "argument":
        given = {"pad_token_id": pad}
    elif how == "generation_config":
        given = {"generation_config": GenerationConfig(pad_token_id=pad)}
    elif how == "the model's":
        model.generation_config.pad_token_id = pad
    else:
        given = {"pad_token_id": pad, "generation_config": GenerationConfig(pad_token_id=3)}
    options = {**GREEDY, "suppress_tokens": [*SILENT, pad]}

    def run(**more: Any) -> Tensor:
        return model.generate(input_ids=ids, **inputs, **options, **given, **more)

    bare = run()
    assert torch.equal(run(attention_mask=mask), bare)
    pruner = foveate.Saliency(keep=keep)
    with pruner(model):
        told, inferred = run(attention_mask=mask), run()
    assert torch.equal(told, inferred)
    assert keep < 1 or torch.equal(inferred, bare)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
def test_an_end_that_is_padding_too(name: str, keep: float) -> None:
    """Then stock infers no mask: what is padding is text to it, and to a pruned call."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    ids = torch.cat([torch.full((1, 3), 8), inputs["input_ids"]], dim=1)
    ones = torch.ones_like(ids)
    rest = {key: value for key, value in inputs.items() if key not in per_token(row, ids)} | row.per_token(ids)
    ends = {"pad_token_id": 8, "eos_token_id": [8, 95]}

    def run(**more: Any) -> Tensor:
        return model.generate(input_ids=ids, **rest, **GREEDY, **more)

    bare = run(**ends)
    with foveate.Saliency(keep=keep)(model):
        ours, told = run(**ends), run(**ends, attention_mask=ones)
        unmarked = run(attention_mask=ones)
    length = ours.shape[1]
    assert torch.equal(ours, told)
    assert ours[0, : ids.shape[1]].tolist() == ids[0].tolist()
    assert ours[0].tolist() == unmarked[0, :length].tolist()
    assert keep < 1 or torch.equal(ours, bare)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip"])
def test_rows_that_end_early_are_padded(name: str, keep: float) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    start = inputs["input_ids"].shape[1]
    with foveate.Saliency(keep=keep)(model):
        whole = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 6})[:, start:]
        end = int(whole[1, 1])
        ours = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 6}, eos_token_id=end, pad_token_id=7)[:, start:]
    wanted = []
    for tokens in whole.tolist():
        stop = tokens.index(end) + 1 if end in tokens else len(tokens)
        wanted.append(tokens[:stop] + [7] * (len(tokens) - stop))
    width = ours.shape[1]
    assert ours.tolist() == [one[:width] for one in wanted]
    assert all(set(one[width:]) <= {7} for one in wanted)


# Left over from a call with pixels.


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("name", WITH_LEFTOVERS)
def test_leftovers_of_a_call_with_pixels(name: str, keep: float) -> None:
    """Sizes, grids and pixel masks without pixels, in a second turn and with text alone: as if they were not there."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    left = {
        key: value for key, value in inputs.items()
        if key not in per_token(row, inputs["input_ids"]) and key != "pixel_values"
    }  # fmt: skip
    assert left
    text = torch.tensor([[BOS, 40, 41, 42]])
    words = {"input_ids": text, "attention_mask": torch.ones_like(text), **row.per_token(text)}

    def second_turn(leftovers: dict[str, Tensor], cached: str) -> Tensor:
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[50, 51]])], dim=1)
        told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **row.per_token(ids)}
        cache = next(getattr(first, one) for one in CACHES if getattr(first, one, None) is not None)
        result: Tensor = model.generate(**told, **leftovers, **GREEDY, **{cached: cache})
        return result

    caches = [one for one in CACHES if one == "past_key_values" or takes_cache(model)]
    bare = second_turn(left, "past_key_values")
    with torch.no_grad():
        bare_words = model.generate(**words, **left, **GREEDY), model(**words, **left).logits
        with foveate.Saliency(keep=keep)(model):
            for cached in caches:
                ours = second_turn(left, cached)
                assert torch.equal(ours, second_turn({}, cached))
                assert keep < 1 or torch.equal(ours, bare)
            assert torch.equal(model.generate(**words, **left, **GREEDY), bare_words[0])
            assert torch.equal(model(**words, **left).logits, bare_words[1])


def takes_cache(model: Any) -> bool:
    """Whether this transformers calls the KV cache ``cache`` too."""
    row = torch.tensor([[BOS, 40]])
    output = model.generate(input_ids=row, **GREEDY, return_dict_in_generate=True)
    return getattr(output, "cache", None) is not None


@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip", "qwen2_5_vl"])
def test_second_turns_by_either_name_of_the_cache(name: str, keep: float, only_new: bool) -> None:
    """As the whole conversation without a cache, in generate and in a bare forward."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    names = [one for one in CACHES if one == "past_key_values" or takes_cache(model)]
    positions = "original"
    with torch.no_grad(), foveate.Saliency(keep=keep)(model, positions=positions):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[50, 51]])], dim=1)
        mask = torch.ones_like(ids)
        whole = {**inputs, "input_ids": ids, "attention_mask": mask, **row.per_token(ids)}
        wanted = model.generate(**whole, **GREEDY)
        wanted_logits = model(**whole).logits[:, -1]
        for cached in names:
            first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            cache = next(getattr(first, one) for one in CACHES if getattr(first, one, None) is not None)
            new = ids[:, int(cached_tokens(inputs, ids)) :] if only_new else ids
            told = {"input_ids": new, "attention_mask": mask, **row.per_token(new)}
            ours = model.generate(**told, **GREEDY, **{cached: cache})
            assert ours[:, -4:].tolist() == wanted[:, -4:].tolist(), cached
            output = model(**inputs, use_cache=True)
            cache = next(getattr(output, one) for one in CACHES if getattr(output, one, None) is not None)
            new = ids[:, inputs["input_ids"].shape[1] :]
            output = model(input_ids=new, attention_mask=mask, **{cached: cache}, **row.per_token(new))
            torch.testing.assert_close(output.logits[:, -1], wanted_logits, atol=2e-4, rtol=1e-4)


def cached_tokens(inputs: dict[str, Tensor], ids: Tensor) -> int:
    """How many columns of a second turn the first one's cache holds: all but the last token generated."""
    return inputs["input_ids"].shape[1] + GREEDY["max_new_tokens"] - 1


# The default device.


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("name", ["llava-clip", "llava_next-clip"])
def test_another_default_device(name: str, keep: float) -> None:
    """What the call's own bookkeeping makes is where it belongs, whatever torch.set_default_device says."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.Uniform(keep=keep)
    with torch.device("meta"):
        bare = model.generate(**inputs, **GREEDY)
        with pruner(model):
            ours = model.generate(**inputs, **GREEDY)
    with pruner(model):
        wanted = model.generate(**inputs, **GREEDY)
    assert torch.equal(ours, wanted)
    assert keep < 1 or torch.equal(ours, bare)
