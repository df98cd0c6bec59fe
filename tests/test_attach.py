"""Putting a pruner on and taking it off; who it applies to; what is refused."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import foveate
from tests import reference
from tests.tiny import BOS, IMAGE, prompts, text_config
from tests.tiny.llava import ROWS

GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE]}


@pytest.fixture(params=[name for name, row in ROWS.items() if row.kind == "image"])
def row(request: pytest.FixtureRequest) -> Any:
    return ROWS[request.param]


@pytest.fixture
def model(row: Any) -> Any:
    return row.make("sdpa")


def fingerprint(model: nn.Module) -> dict[str, dict[str, int]]:
    """The identity of everything that hangs on a model's modules."""
    return {
        name: {
            key: id(value) if not isinstance(value, dict) else hash(tuple(map(id, value.values())))
            for key, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }


def test_leaves_no_trace(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "mixed")
    before = fingerprint(model)
    with foveate.AdaFV(keep=0.3)(model):
        assert fingerprint(model) != before
        model.generate(**inputs, **GREEDY)
        model(**inputs)
    assert fingerprint(model) == before
    handle = foveate.attach(model, foveate.AdaFV(keep=0.3))
    assert handle.active
    handle.remove()
    handle.remove()
    assert not handle.active
    assert fingerprint(model) == before


def test_leaves_no_trace_after_an_exception(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    stock = model.generate(**inputs, **GREEDY)
    before = fingerprint(model)
    with pytest.raises(ValueError, match="image placeholders"), foveate.AdaFV(keep=0.3)(model):
        model.generate(**{**inputs, "input_ids": inputs["input_ids"][:, 8:], "attention_mask": None}, **GREEDY)
    assert fingerprint(model) == before
    # and the next call is unpruned and unharmed
    assert torch.equal(model.generate(**inputs, **GREEDY), stock)


def test_restores_what_others_had_put_there(model: Any) -> None:
    def mine(*args: Any, **kwargs: Any) -> str:
        return "mine"

    model.generate = mine
    try:
        with foveate.AdaFV()(model):
            assert model.generate is not mine
        assert model.generate is mine
    finally:
        del model.generate


def test_once_at_a_time(model: Any) -> None:
    with foveate.AdaFV(keep=0.3)(model) as handle:
        with pytest.raises(RuntimeError, match="has a pruner on it already"), foveate.Saliency()(model):
            pass
        with pytest.raises(RuntimeError, match="has a pruner on it already"):
            foveate.attach(model, foveate.AdaFV(keep=0.3))
        with pytest.raises(RuntimeError, match="active already"):
            handle.activate()
        assert handle.active
    foveate.attach(model, foveate.Saliency()).remove()


def test_two_models(row: Any) -> None:
    first, second = row.make("sdpa"), copy.deepcopy(row.make("sdpa"))
    inputs = prompts(row, first, "one")
    few, many = foveate.AdaFV(keep=2), foveate.AdaFV(keep=9)
    with few(first), many(second):
        first.generate(**inputs, **GREEDY)
        second.generate(**inputs, **GREEDY)
    assert [len(few.selections[0]), len(many.selections[0])] == [2, 9]


def test_two_threads_one_model(row: Any, model: Any) -> None:
    """Two threads, two pruners, one model, at once: each gets what it gets alone."""
    inputs = prompts(row, model, "mixed")
    pruners = [foveate.AdaFV(keep=2), foveate.Saliency(keep=7)]
    alone = []
    for pruner in pruners:
        with pruner(model):
            alone.append(model.generate(**inputs, **GREEDY))
    bare = model.generate(**inputs, **GREEDY)
    barrier = threading.Barrier(2)
    wrong: list[str] = []

    def work(number: int) -> None:
        try:
            for _ in range(8):
                barrier.wait(timeout=60)
                with pruners[number](model):
                    barrier.wait(timeout=60)
                    if not torch.equal(model.generate(**inputs, **GREEDY), alone[number]):
                        wrong.append(f"thread {number} differs")
                    barrier.wait(timeout=60)
        except Exception as error:
            wrong.append(f"thread {number}: {error!r}")
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(model.generate(**inputs, **GREEDY), bare)


def test_a_worker_thread_uses_the_only_attachment(row: Any, model: Any) -> None:
    """The streaming pattern: generate runs in a thread of its own."""
    inputs = prompts(row, model, "one")
    pruner = foveate.AdaFV(keep=3)
    with pruner(model):
        results: list[Any] = []
        worker = threading.Thread(target=lambda: results.append(model.generate(**inputs, **GREEDY)))
        worker.start()
        worker.join()
        assert len(pruner.selections[0]) == 3
        assert torch.equal(results[0], model.generate(**inputs, **GREEDY))


def test_a_thread_between_two_attachments_is_told(row: Any, model: Any) -> None:
    ready, done = threading.Event(), threading.Event()

    def other() -> None:
        with foveate.AdaFV(keep=2)(model):
            ready.set()
            done.wait(timeout=60)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(timeout=60)
    try:
        with foveate.AdaFV(keep=3)(model):
            said: list[str] = []

            def ask() -> None:
                try:
                    model.generate(**prompts(row, model, "one"), **GREEDY)
                except RuntimeError as error:
                    said.append(str(error))

            third = threading.Thread(target=ask)
            third.start()
            third.join()
        assert said and "2 threads or tasks have pruners" in said[0]
    finally:
        done.set()
        thread.join()


def test_text_only_prompts_are_the_bare_models(model: Any) -> None:
    ids = torch.tensor([[BOS, 5, 6, 7, 8]])
    stock = model.generate(input_ids=ids, **GREEDY)
    logits = model(input_ids=ids).logits
    pruner = foveate.AdaFV(keep=0.1)
    with pruner(model):
        assert torch.equal(model.generate(input_ids=ids, **GREEDY), stock)
        assert torch.equal(model.generate(ids, **GREEDY), stock)
        assert torch.equal(model(input_ids=ids).logits, logits)
    assert pruner.selections == []


def test_inputs_by_position_and_by_name(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with foveate.AdaFV(keep=0.3)(model):
        named = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(inputs["input_ids"], **rest, **GREEDY), named)
        assert torch.equal(model.generate(inputs=inputs["input_ids"], **rest, **GREEDY), named)


def test_padding_is_inferred_as_generate_infers_it(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "mixed")
    with foveate.AdaFV(keep=0.3)(model):
        told = model.generate(**inputs, **GREEDY)
        inputs.pop("attention_mask")
        assert torch.equal(model.generate(**inputs, **GREEDY), told)


def test_right_padded_forward(row: Any, model: Any) -> None:
    """Training batches are padded on the right; a row's logits do not depend on it."""
    left = prompts(row, model, "mixed")
    right = dict(left)
    for name, fill in (("input_ids", 0), ("attention_mask", 0)):
        rows = []
        for ids, mask in zip(left[name], left["attention_mask"], strict=True):
            kept = ids[mask.bool()]
            rows.append(torch.cat([kept, torch.full((len(ids) - len(kept),), fill)]))
        right[name] = torch.stack(rows)
    with torch.no_grad(), foveate.AdaFV(keep=0.3)(model):
        ours, theirs = model(**left).logits, model(**right).logits
    for number in range(3):
        torch.testing.assert_close(
            ours[number][left["attention_mask"][number].bool()],
            theirs[number][right["attention_mask"][number].bool()],
            atol=2e-4,
            rtol=1e-4,
        )


def test_the_answer_to_be_learned_does_not_choose(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    ids = inputs["input_ids"]
    labels = torch.full_like(ids, -100)
    labels[:, -2:] = ids[:, -2:]
    shorter = {**inputs, "input_ids": ids[:, :-2], "attention_mask": inputs["attention_mask"][:, :-2]}
    pruner = foveate.TextSimilarity(keep=4)
    with torch.no_grad(), pruner(model):
        model(**inputs, labels=labels)
        learning = pruner.selections[0].indices
        model(**shorter)
    assert torch.equal(learning, pruner.selections[0].indices)


def test_gradients_reach_vision_and_language(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    model.zero_grad()
    with foveate.AdaFV(keep=0.5)(model):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.lm_head.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_step_by_step_with_a_cache(row: Any, model: Any) -> None:
    """A loop of bare forwards, as people write it, equals the reference."""
    inputs = prompts(row, model, "mixed")
    for positions in ("compact", "original"):
        pruner = foveate.AdaFV(keep=0.3)
        tokens = []
        with torch.no_grad(), pruner(model, positions=positions):
            output = model(**inputs, use_cache=True)
            selections = pruner.selections
            mask = inputs["attention_mask"]
            for _ in range(4):
                scores = output.logits[:, -1].clone()
                scores[:, IMAGE] = -torch.inf
                tokens.append(scores.argmax(dim=-1))
                mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], dim=1)
                output = model(
                    input_ids=tokens[-1][:, None], attention_mask=mask, past_key_values=output.past_key_values
                )
        assembled = reference.assemble(row, model, inputs, [one.indices for one in selections], positions=positions)
        assert torch.equal(torch.stack(tokens, dim=1), reference.greedy(row, model, assembled, 4, [IMAGE])[0])


# What is refused, each with its reason.


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match=r"'llama' is not supported; known: .*llava, llava_next.*adding_a_family"):
        foveate.attach(LlamaForCausalLM(text_config(1)), foveate.AdaFV())
    with pytest.raises(ValueError, match="is not supported"):
        foveate.attach(object(), foveate.AdaFV())


def test_headless_model(model: Any) -> None:
    with pytest.raises(ValueError, match="no language-modelling head"):
        foveate.attach(model.model, foveate.AdaFV())


def test_no_pruner(model: Any) -> None:
    with pytest.raises(TypeError, match="expected a pruner"):
        foveate.attach(model, 0.1)


@pytest.mark.parametrize("option", ["positions", "newlines", "layout"])
def test_unknown_options(model: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {option} 'sideways'; known:"):
        foveate.attach(model, foveate.AdaFV(), **{option: "sideways"})


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'; known: adafv"):
        foveate.get_pruner("magic")


def test_released_layout_needs_views_and_compact_positions() -> None:
    llava, llava_next = ROWS["llava-clip"].make("sdpa"), ROWS["llava_next-clip"].make("sdpa")
    with pytest.raises(ValueError, match="has no layout 'released'"):
        foveate.attach(llava, foveate.AdaFV(), layout="released")
    with pytest.raises(ValueError, match="positions='compact'"):
        foveate.attach(llava_next, foveate.AdaFV(), layout="released", positions="original")
    # nothing is left behind by a refusal
    foveate.attach(llava, foveate.AdaFV()).remove()


@pytest.mark.parametrize("drop", [1, -1])
def test_images_unlike_placeholders(row: Any, model: Any, drop: int) -> None:
    inputs = prompts(row, model, "several")
    fewer = {name: value[:1] if name in ("pixel_values", "image_sizes") else value for name, value in inputs.items()}
    single = prompts(row, model, "one")
    more = {**single, **{name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}}
    with (
        foveate.AdaFV(keep=0.3)(model),
        pytest.raises(ValueError, match=r"image placeholders, but the \d image"),
    ):
        model.generate(**(fewer if drop == 1 else more), **GREEDY)


def test_images_split_across_rows(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "several")
    ids = inputs["input_ids"]
    first = int((ids[0] == IMAGE).nonzero()[0])
    halves = torch.stack([ids[0, : ids.shape[1] // 2], ids[0, ids.shape[1] // 2 : ids.shape[1] // 2 * 2]])
    halves[1, -1] = IMAGE if (halves == IMAGE).sum() < (ids == IMAGE).sum() else halves[1, -1]
    assert first < halves.shape[1]
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="placeholders"):
        model.generate(**{**inputs, "input_ids": halves, "attention_mask": None}, **GREEDY)


def test_placeholders_without_images(row: Any, model: Any) -> None:
    ids = prompts(row, model, "one")["input_ids"]
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="no pixel_values"):
        model.generate(input_ids=ids, **GREEDY)


def test_embeddings_hide_images(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with foveate.AdaFV(keep=0.3)(model):
        with pytest.raises(ValueError, match="inputs_embeds hide"):
            model.generate(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"], **GREEDY)
        with pytest.raises(ValueError, match="mm_encoder_outputs"):
            model.generate(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": object()}, **GREEDY)
        with pytest.raises(ValueError, match="without input_ids"):
            model(pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"prefill_chunk_size": 8}, "prefill_chunk_size"),
        ({"token_healing": True}, "token_healing"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"custom_generate": "somebody/repository"}, "custom_generate"),
    ],
)
def test_what_stock_gets_wrong(row: Any, model: Any, setting: dict[str, Any], reason: str) -> None:
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match=reason):
        model.generate(**prompts(row, model, "one"), **GREEDY, **setting)


def test_position_ids_under_renumbering(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="positions='original'"):
        model(**inputs, position_ids=positions)
    with foveate.AdaFV(keep=0.3)(model, positions="original"), torch.no_grad():
        torch.testing.assert_close(model(**inputs, position_ids=positions).logits, model(**inputs).logits)


def test_a_mask_that_is_no_token_mask(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    size = inputs["input_ids"].shape[1]
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="plain \\(batch, tokens\\) mask"):
        model(**{**inputs, "attention_mask": torch.ones(1, 1, size, size)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_weights(row: Any, value: float) -> None:
    """NaN or infinite scores stop the call before a word is generated."""
    model = copy.deepcopy(row.make("sdpa"))
    inputs = prompts(row, model, "one")
    tower = model.model.vision_tower
    layers = getattr(tower, "vision_model", tower).encoder.layers
    layers[0].self_attn.q_proj.bias.data.fill_(value)
    with foveate.Saliency(keep=0.3)(model), pytest.raises(ValueError, match=r"NaN|infinite"):
        model.generate(**inputs, **GREEDY)


def test_a_foreign_cache(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    bare = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    with foveate.AdaFV(keep=0.3)(model):
        with pytest.raises(ValueError, match="not pruned by an attached call|no cache that a pruned call"):
            model.generate(
                input_ids=bare.sequences, past_key_values=bare.past_key_values, attention_mask=None, **GREEDY
            )
        pruned = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        other = pruned.sequences.clone()
        other[0, 1] = 77
        with pytest.raises(ValueError, match="do not begin with the prompt"):
            model.generate(input_ids=other, past_key_values=pruned.past_key_values, **GREEDY)


@pytest.mark.parametrize("batch", ["one", "mixed"])
def test_a_cache_of_beams(row: Any, model: Any, batch: str) -> None:
    """It holds a row for every beam, and one answer of each prompt came back."""
    inputs = prompts(row, model, batch)
    with foveate.AdaFV(keep=0.3)(model):
        filled = model.generate(**inputs, **GREEDY, num_beams=2, return_dict_in_generate=True)
        rows = len(inputs["input_ids"])
        with pytest.raises(ValueError, match=f"filled by {2 * rows} rows and {rows} came.*a cache of beams"):
            model.generate(input_ids=filled.sequences, past_key_values=filled.past_key_values, **GREEDY)


def test_no_text_at_all(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    images = (inputs["input_ids"] == IMAGE)[0]
    bare = {
        **inputs,
        "input_ids": inputs["input_ids"][:, images],
        "attention_mask": inputs["attention_mask"][:, images],
    }
    with foveate.AdaFV(keep=0.3)(model), pytest.raises(ValueError, match="has no text"):
        model.generate(**bare, **GREEDY)
    with foveate.Saliency(keep=0.3)(model):
        model.generate(**bare, **GREEDY)


def test_text_only_before_the_image_is_announced(row: Any, model: Any) -> None:
    inputs = prompts(row, model, "one")
    last = int((inputs["input_ids"][0] == IMAGE).nonzero()[-1]) + 1
    early = {
        **inputs,
        "input_ids": inputs["input_ids"][:, :last],
        "attention_mask": inputs["attention_mask"][:, :last],
    }
    released = foveate.AdaFV(keep=0.3, text_span="prompt")
    with released(model), pytest.warns(UserWarning, match="no text follows the image"):
        model.generate(**early, **GREEDY)


def test_turn_needs_an_end(row: Any, model: Any) -> None:
    """text_span="turn" reads only the image's own turn, and says so when the end that it was told is not there."""
    inputs = prompts(row, model, "one")
    pruner = foveate.TextSimilarity(keep=4, text_span="turn")
    with pruner(model, turn_end=[(90, 91)]), pytest.raises(ValueError, match=r"turn_end\(processor\) reads them"):
        model.generate(**inputs, **GREEDY)
    ids = inputs["input_ids"]
    end = tuple(ids[0, -3:-1].tolist())
    grown = {**inputs, "input_ids": torch.cat([ids, torch.tensor([[60, 61]])], 1)}
    grown["attention_mask"] = torch.ones_like(grown["input_ids"])
    chosen = []
    for one in (inputs, grown):
        with pruner(model, turn_end=[end]):
            model.generate(**one, **GREEDY)
            chosen.append(pruner.selections[0].indices)
    assert torch.equal(*chosen)
