"""``calibrate``: log sizes on attention logits, against language models run with masks that are written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import StaticCache

import foveate
from foveate import bundled
from foveate.functional import Merge, sizes
from tests import reference
from tests.tiny import ROWS, SILENT, Row, prompts, siglip

NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": SILENT}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
ZIP = "visionzip:contextual=0.5"
MERGING = [ZIP, "prumerge-plus", "pool"]
# See tests/test_matrix.py.
OLD = Version(transformers.__version__) < Version("5.18")
# Layers that read what others keep, or that have several streams of hidden states, beside plain ones.
UNUSUAL = [name for name in ("llava-clip", "gemma4-per-layer", "gemma3n") if name in ROWS]
BY_BLOCKS = ("gemma3", "gemma4", "paligemma")


HYBRID = [name for name, row in ROWS.items() if row.hybrid]


# One of every kind of LLM and mask, and what stands before it.
CALIBRATED = [
    "llava-clip", "llava_next-clip", "internvl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "mistral3", "glm4v",
    "cohere2_vision", "llava_onevision", "idefics3", "gemma4", "llama4", "kimi_k25", "muse_glimmer", "hunyuan_vl",
    "gemma4-per-layer",
]  # fmt: skip


@pytest.fixture(params=[name for name in CALIBRATED if name in ROWS])
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


def logarithms(assembled: reference.Assembled, weights: Sequence[Any], strength: float = 1.0) -> Tensor:
    """(B, S') what every token's logit gets: counted from the whole matrices, put where the images stand."""
    parts = []
    for matrix, carries in zip(weights, assembled.carries, strict=True):
        parts.append(torch.zeros(len(carries)))
        if matrix is None:
            continue
        logarithms = [strength * math.log(sum(one != 0 for one in row)) for row in matrix.dense().tolist()]
        assert len(logarithms) == sum(carries)
        parts[-1][torch.tensor(carries)] = torch.tensor(logarithms)
    bias = torch.zeros(assembled.mask.shape)
    bias[assembled.visual] = torch.cat(parts)
    return bias


def with_bias(row: Row, bias: Tensor, monkeypatch: pytest.MonkeyPatch) -> Row:
    """The row whose language model, run by hand, has the bias in its masks."""
    additive = siglip._additive

    def added(allowed: Tensor, mask: Tensor) -> Tensor:
        return additive(allowed, mask) + pad(bias, (0, mask.shape[1] - bias.shape[1]))[:, None, None]

    if row in [ROWS[name] for name in BY_BLOCKS if name in ROWS]:
        monkeypatch.setattr(siglip, "_additive", added)
        return row

    def hidden(model: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, prompt: Any) -> Tensor:
        distance = torch.arange(mask.shape[1])[:, None] - torch.arange(mask.shape[1])
        whole = (distance >= 0).expand(len(mask), -1, -1)
        text = model.config.get_text_config()
        masks: Any = added(whole, mask)
        if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
            near = added(whole & (distance < text.sliding_window), mask)
            masks = {"full_attention": masks, "sliding_attention": near}
        if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
            number = (mask.cumsum(1) - 1).clamp(min=0) // text.attention_chunk_size  # from the first token on
            together = number[:, :, None] == number[:, None]
            masks = {"full_attention": masks, "chunked_attention": added(whole & together, mask)}
        return row.hidden(model, embeddings, masks, positions, prompt)

    return replace(row, hidden=hidden)


def run(model: Any, inputs: dict[str, Tensor], pruner: Any, calibrate: Any = True, **options: Any) -> Any:
    with pruner(model, calibrate=calibrate):
        return model.generate(**inputs, **GREEDY, **LOGITS, **options)


def assembled_of(row: Row, model: Any, inputs: dict[str, Tensor], pruner: Any, positions: str) -> Any:
    weights = [one.weights for one in pruner.selections]
    indices = [one.indices for one in pruner.selections]
    return reference.assemble(row, model, inputs, indices, positions=positions, weights=weights), weights


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", MERGING)
def test_every_logit_of_prefill_and_decoding(
    row: Row, attention: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A padded batch, step by step; and what each of its prompts gives alone."""
    model = row.make(attention)
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(method, keep=0.4)
    result = run(model, inputs, pruner)
    assembled, weights = assembled_of(row, model, inputs, pruner, "original" if row.rope else "compact")
    bias = logarithms(assembled, weights)
    assert float(bias.max()) > 0.5
    plain = reference.greedy(row, model, assembled, NEW)[1]
    tokens, logits = reference.greedy(with_bias(row, bias, monkeypatch), model, assembled, NEW)
    got = torch.stack(result.logits, dim=1)
    assert torch.equal(result.sequences[:, inputs["input_ids"].shape[1] :], tokens)
    torch.testing.assert_close(got, logits, atol=1e-4, rtol=1e-4)
    assert float((logits - plain)[[0, 2], 0].abs().max()) > 0.05
    for only in (0, 2) if row.alone else (0,):
        alone = prompts(row, model, "mixed", only)
        single = torch.stack(run(model, alone, pruner).logits, dim=1)
        torch.testing.assert_close(single[0], got[only], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", ["one", "mixed"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", UNUSUAL)
def test_keys_of_other_layers(name: str, cached: bool, batch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layers of Gemma 4's small models read what earlier ones keep, and where ``generate`` asks for one row of
    logits some versions run them on the last token alone; in Gemma 3n prompts are not the first dimension."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, batch)
    pruner = foveate.get_pruner("pool", keep=0.4)
    got = torch.stack(run(model, inputs, pruner, use_cache=cached).logits, dim=1)
    assembled, weights = assembled_of(row, model, inputs, pruner, "compact")
    plain = reference.greedy(row, model, assembled, NEW)[1]
    row = with_bias(row, logarithms(assembled, weights), monkeypatch)
    logits = reference.greedy(row, model, assembled, NEW)[1]
    torch.testing.assert_close(got, logits, atol=1e-4, rtol=1e-4)
    assert float((logits - plain)[0].abs().amax(dim=-1).min()) > 0.05  # at every step


@pytest.mark.parametrize("strength", [0.25, 1])
def test_original_positions_and_strength(row: Row, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(ZIP, keep=0.4)
    result = run(model, inputs, pruner, strength) if row.rope else None
    if result is None:
        with pruner(model, calibrate=strength, positions="original"):
            result = model.generate(**inputs, **GREEDY, **LOGITS)
    assembled, weights = assembled_of(row, model, inputs, pruner, "original")
    changed = with_bias(row, logarithms(assembled, weights, strength), monkeypatch)
    tokens, logits = reference.greedy(changed, model, assembled, NEW)
    assert torch.equal(result.sequences[:, inputs["input_ids"].shape[1] :], tokens)
    torch.testing.assert_close(torch.stack(result.logits, dim=1), logits, atol=1e-4, rtol=1e-4)


def test_forward(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of every kept token."""
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(ZIP, keep=0.4)
    positions = "original"
    with pruner(model, calibrate=True, positions=positions), torch.no_grad():
        output = model(**inputs)
    assembled, weights = assembled_of(row, model, inputs, pruner, positions)
    changed = with_bias(row, logarithms(assembled, weights), monkeypatch)
    first = inputs["attention_mask"].argmax(dim=1)
    if not row.rope:  # a bare forward counts columns
        assembled.positions = assembled.positions + first[:, None] * assembled.mask
    with torch.no_grad():
        hidden = changed.hidden(model, assembled.embeddings, assembled.mask, assembled.positions, assembled)
        logits = reference.logits_of(row, model, hidden)
    for number, columns in enumerate(assembled.columns):
        mine = output.logits[number, columns]
        torch.testing.assert_close(mine, logits[number, -len(columns) :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["adafv", "uniform"])
def test_without_merging_nothing_changes(row: Row, method: str) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(method, keep=0.3)
    with_it, without = run(model, inputs, pruner), run(model, inputs, pruner, calibrate=False)
    assert torch.equal(with_it.sequences, without.sequences)
    assert all(torch.equal(a, b) for a, b in zip(with_it.logits, without.logits, strict=True))


@pytest.mark.parametrize("keep", [1.0, 10_000])
@pytest.mark.parametrize("method", MERGING)
def test_with_all_kept_nothing_changes(row: Row, method: str, keep: float | int) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    result = run(model, inputs, foveate.get_pruner(method, keep=keep))
    stock = model.generate(**inputs, **GREEDY, **LOGITS)
    assert torch.equal(result.sequences, stock.sequences)
    assert all(torch.equal(a, b) for a, b in zip(result.logits, stock.logits, strict=True))


def test_a_strength_of_zero_is_off(row: Row) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(ZIP, keep=0.3)
    results = [run(model, inputs, pruner, calibrate) for calibrate in (0.0, False)]
    assert all(torch.equal(a, b) for a, b in zip(*(one.logits for one in results), strict=True))


@pytest.mark.parametrize("name", HYBRID)
def test_layers_without_logits_are_refused(name: str) -> None:
    model = ROWS[name].make("sdpa")
    with pytest.raises(ValueError, match="has layers without them .*: leave it out"):
        run(model, prompts(ROWS[name], model, "one"), foveate.get_pruner(ZIP, keep=0.4))


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no_cache": {"use_cache": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 20, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "offloaded": {"cache_implementation": "offloaded"},
}


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("name", ["llava-clip", "llava_next-siglip", "internvl", "qwen2_vl", "glm4v"])
def test_modes(name: str, mode: str) -> None:
    """Stock generate on the same embeddings, its attention modules given eager masks with the bias by a plain hook."""
    row, only = ROWS[name], (0 if mode == "lookup" else None)
    if mode == "lookup" and OLD:
        pytest.skip("this transformers looks for EOS tokens in candidates without asking whether there are any")
    if mode == "offloaded" and not torch.cuda.is_available():
        pytest.skip("stock offloads from CUDA only")
    model = copy.deepcopy(row.make("eager"))
    inputs = prompts(row, model, "mixed", only)
    pruner = foveate.get_pruner(ZIP, keep=0.4)
    options = GREEDY | MODES[mode]
    torch.manual_seed(3)
    with pruner(model, calibrate=True):
        result = model.generate(**inputs, **options)
    assembled, weights = assembled_of(row, model, inputs, pruner, "original" if row.rope else "compact")
    bias = logarithms(assembled, weights)

    def add(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        assert mask.dtype == torch.float32
        keys = pad(bias, (0, mask.shape[-1] - bias.shape[1])).repeat_interleave(len(mask) // len(bias), dim=0)
        return args, {**kwargs, "attention_mask": mask + keys[:, None, None]}

    if mode == "lookup":  # of embeddings alone stock looks nothing up: it is greedy decoding
        options = GREEDY
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(add, with_kwargs=True)
    torch.manual_seed(3)
    expected = reference.generate(row, model, inputs, assembled, **options)
    assert torch.equal(result[:, inputs["input_ids"].shape[1] :], expected)


@pytest.mark.parametrize("later", [True, False])
def test_later_turns(row: Row, later: bool) -> None:
    """The cache remembers what its tokens weigh, whatever the later call says of new ones."""
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    if row.rope:
        known = reference.long_positions(model, row, inputs)
        if bool((known[..., -1] < known.amax(dim=-1)).any()):  # Qwen2.5-VL videos, in old versions
            pytest.skip("stock places this video behind the text that follows it: generation goes on from there")
    pruner = foveate.get_pruner(ZIP, keep=0.4)
    first = run(model, inputs, pruner)
    text = torch.tensor([[50, 51, 52]]).expand(len(first.sequences), -1)
    grown = torch.cat([first.sequences, text], dim=1)
    mask = pad(inputs["attention_mask"], (0, grown.shape[1] - inputs["attention_mask"].shape[1]), value=1)
    with pruner(model, calibrate=later):
        more = {**row.per_token(grown), "attention_mask": mask}
        second = model.generate(input_ids=grown, past_key_values=first.past_key_values, **more, **GREEDY, **LOGITS)
    whole = run(model, {**inputs, **more, "input_ids": grown}, pruner)
    plain = run(model, {**inputs, **more, "input_ids": grown}, pruner, calibrate=False)
    torch.testing.assert_close(torch.stack(second.logits), torch.stack(whole.logits), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(torch.stack(plain.logits), torch.stack(whole.logits), atol=1e-2)


def test_windows_and_capped_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 caps what queries and keys give; the bias is added after that. Every other layer sees a window."""
    row = siglip.PALIGEMMA2
    model = copy.deepcopy(row.make("eager"))
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(ZIP, keep=0.5)
    result = run(model, inputs, pruner)
    assembled, weights = assembled_of(row, model, inputs, pruner, "compact")
    bias, additive = logarithms(assembled, weights), siglip._additive
    plain_logits = reference.greedy(row, model, assembled, NEW)[1]
    monkeypatch.setattr(
        siglip,
        "_additive",
        lambda allowed, mask: additive(allowed, mask) + pad(bias, (0, mask.shape[1] - bias.shape[1]))[:, None, None],
    )
    logits = reference.greedy(row, model, assembled, NEW)[1]
    torch.testing.assert_close(torch.stack(result.logits, dim=1), logits, atol=1e-4, rtol=1e-4)
    assert float((logits - plain_logits)[[0, 2], 0].abs().max()) > 0.05


@pytest.mark.parametrize("name", ["llava-clip", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(name: str, attention: str) -> None:
    """The mask has the dtype of the hidden states, also where autocast changes that of the queries."""
    row = ROWS[name]
    whole = row.make(attention)
    inputs = prompts(row, whole, "mixed")
    pruner = foveate.get_pruner(ZIP, keep=0.4)
    exact = torch.stack(run(whole, inputs, pruner).logits)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loose = torch.stack(run(whole, inputs, pruner).logits)[0]
    model = copy.deepcopy(whole).bfloat16()
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    half = torch.stack(run(model, halves, pruner).logits)[0]
    for found in (loose, half):
        assert bool(found.isfinite().all())
        assert float((found.float() - exact).abs().mean()) < 0.5


def test_threads_beside_one_another() -> None:
    """One calibrates, one does not, one has no pruner: each gets what it gets alone."""
    row = ROWS["llava-clip"]
    model, pruner = llava(), foveate.get_pruner(ZIP, keep=0.4)
    inputs = prompts(row, model, "mixed")
    asked = [{"calibrate": True}, {"calibrate": False}, {"calibrate": 0.5}] * 2

    def answer(options: dict[str, Any]) -> Tensor:
        return torch.stack(foveate.generate(model, pruner, **inputs, **options, **GREEDY, **LOGITS).output.logits)

    alone = [answer(options) for options in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(answer, asked))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], alone[2])


def picture(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((320, 240), Image.Resampling.BICUBIC)


def test_a_session_and_stateless_calls() -> None:
    model, processor = bundled.load()
    session = foveate.look(model, processor, [picture(0)])
    pruner = foveate.get_pruner(ZIP, keep=0.1)
    text = session.prompt("What color is the card of the cat?")
    inputs = processor(images=[picture(0)], text=text, return_tensors="pt", add_special_tokens=False)
    found = foveate.generate(model, pruner, **inputs, calibrate=True, max_new_tokens=6, do_sample=False, **LOGITS)
    with pruner(model, calibrate=True):
        attached = model.generate(**inputs, max_new_tokens=6, do_sample=False, **LOGITS)
    plain = foveate.generate(model, pruner, **inputs, max_new_tokens=6, do_sample=False, **LOGITS)
    assert torch.equal(found.output.logits[0], attached.logits[0])
    assert not torch.equal(found.output.logits[0], plain.output.logits[0])
    answer = session.ask(
        "What color is the card of the cat?", pruner, calibrate=True, max_new_tokens=6, do_sample=False
    )
    assert torch.equal(answer.sequence, attached.sequences[0])


def test_no_trace_is_left(row: Row) -> None:
    model = copy.deepcopy(row.make("sdpa"))
    inputs = prompts(row, model, "one")
    model.generate(**inputs, **GREEDY)  # stock leaves hooks of its own where a tower's hidden states are read
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    run(model, inputs, foveate.get_pruner(ZIP, keep=0.4))
    for name, module in model.named_modules():
        after = dict(vars(module))
        for state in (after, before[name]):
            state.pop("rope_deltas", None)
        assert after.keys() == before[name].keys(), name
        assert all(after[key] is before[name][key] for key in after), name


def llava() -> Any:
    return copy.deepcopy(ROWS["llava-clip"].make("sdpa"))


def refused(model: Any, message: str, calibrate: Any = True, method: str = "visionzip", **options: Any) -> None:
    inputs = prompts(ROWS["llava-clip"], llava(), "one")
    pruner = foveate.get_pruner(method, keep=0.4)
    with pytest.raises((ValueError, TypeError), match=message), pruner(model, calibrate=calibrate):
        model.generate(**inputs, **GREEDY, **options)


@pytest.mark.parametrize("calibrate", [-0.1, 1.5, math.nan, 2])
def test_bad_strengths(calibrate: float) -> None:
    refused(llava(), r"calibrate=.* must be a bool or a number in \[0, 1\]", calibrate)


def test_refusals() -> None:
    refused(llava(), "must be a bool or a number", "yes")
    flash = llava()
    flash.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    refused(flash, r'"flash_attention_2"|\'flash_attention_2\'.*attn_implementation="sdpa"')
    refused(llava(), "dynamic caches, not with static", cache_implementation="static", disable_compile=True)
    model = llava()
    refused(model, "static", past_key_values=StaticCache(config=model.config.get_text_config(), max_cache_len=200))
    refused(llava(), "prunes inside the LLM and has no calibrate=True", method="fastv")
    with pytest.raises(ValueError, match="layout='released' has no calibrate"):
        foveate.get_pruner(ZIP)(ROWS["llava_next-clip"].make("sdpa"), calibrate=True, layout="released")


def test_refused_where_layers_run_twice() -> None:
    model, row = llava().train(), ROWS["llava-clip"]
    model.gradient_checkpointing_enable()
    with foveate.get_pruner(ZIP, keep=0.4)(model, calibrate=True):
        with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
            model(**prompts(row, llava(), "one"))
        with torch.no_grad():
            model(**prompts(row, llava(), "one"))


def test_training_reaches_what_is_merged() -> None:
    """Gradients flow as without, and a bias is none of the parameters."""
    model, row = llava(), ROWS["llava-clip"]
    inputs = prompts(row, model, "one")
    with foveate.get_pruner(ZIP, keep=0.4)(model, calibrate=True):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    grown = model.model.multi_modal_projector.linear_1.weight.grad
    assert grown is not None
    assert float(grown.abs().max()) > 0


MATRICES: list[Callable[[], Any]] = [
    lambda: Merge.picking(torch.tensor([3, 1, 1]), 5),
    lambda: Merge.means(torch.tensor([0, 0, 1, 2, 2, 2]), torch.arange(6), (2, 6)),
    lambda: Merge(torch.tensor([0, 0, 3]), torch.tensor([0, 1, 2, 3]), torch.tensor([0.5, 0.0, 0.5, 1.0]), 4),
    lambda: (torch.rand(7, 20, generator=torch.Generator().manual_seed(0)) - 0.6).clamp(min=0),
    lambda: (
        Merge.means(torch.tensor([0, 0, 1]), torch.arange(3), (2, 3))
        @ Merge.means(torch.tensor([0, 0, 1, 2, 2, 2, 2]), torch.arange(7), (3, 7))
    ),
]


@pytest.mark.parametrize("make", MATRICES)
def test_sizes_are_the_entries_of_a_row(make: Callable[[], Any]) -> None:
    weights = make()
    dense = weights.dense() if isinstance(weights, Merge) else weights
    found = sizes(weights)
    assert found.dtype == torch.float32
    assert found.tolist() == [sum(value != 0 for value in row) for row in dense.tolist()]
