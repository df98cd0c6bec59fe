"""Every family x generation mode x image count x keep x method. A new family joins by a row in ``tests.tiny``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.generation.streamers import BaseStreamer

import foveate
from foveate.models import family_for
from tests import crops_by_hand, reference
from tests.encoding import encode
from tests.tiny import BATCHES, BOS, KIN, ROWS, SILENT, Row, assistant, prompts
from tests.tiny.rows import inner

NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": SILENT}

# How each mode is asked for, and how the same is asked of the reference (None: it must equal greedy decoding).
MODES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "greedy": (GREEDY, None),
    "no_cache": (GREEDY | {"use_cache": False}, None),
    "static_cache": (GREEDY | {"cache_implementation": "static", "disable_compile": True}, None),
    "beams": (
        GREEDY | {"num_beams": 3, "num_return_sequences": 2},
        GREEDY | {"num_beams": 3, "num_return_sequences": 2},
    ),
    "sampling": (GREEDY | {"do_sample": True, "top_k": 20}, GREEDY | {"do_sample": True, "top_k": 20}),
}
KEEPS = [1.0, 0.4, 3]
# Before it took encoded images from outside: beams mix up the images of a prompt with several, and more.
OLD = Version(transformers.__version__) < Version("5.18")


# (row, positions, newlines), as far as the family has them. Positions of three dimensions are never renumbered.
ARRANGEMENTS = [
    (name, positions, newlines)
    for name, row in ROWS.items()
    for positions in (["original"] if row.rope else row.positions)
    for newlines in (["drop", "rows"] if row.newlines else ["drop"])
]
PLACED = list(dict.fromkeys((name, positions) for name, positions, _ in ARRANGEMENTS))


@pytest.fixture(params=list(ROWS))
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


@pytest.fixture
def model(row: Row) -> Any:
    return row.make("sdpa")


@pytest.fixture(params=list(BATCHES))
def inputs(request: pytest.FixtureRequest, row: Row, model: Any) -> dict[str, Tensor]:
    return prompts(row, model, request.param)


def indices(pruner: foveate.Pruner) -> list[Tensor]:
    return [selection.indices for selection in pruner.selections]


def new_tokens(result: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Checks that the prompt stands in front as it was, and cuts it off."""
    ids = inputs["input_ids"]
    times = len(result) // len(ids)
    assert torch.equal(result[:, : ids.shape[1]], ids.repeat_interleave(times, dim=0))
    return result[:, ids.shape[1] :]


def assert_loss(row: Row, model: Any, assembled: reference.Assembled, output: Any, labels: Tensor) -> None:
    """A direct forward gave the logits and the loss of prompts assembled by hand."""
    with torch.no_grad():
        hidden = row.hidden(model, assembled.embeddings, assembled.mask, assembled.positions, assembled)
        logits = reference.logits_of(row, model, hidden)
    losses = []
    for number, columns in enumerate(assembled.columns):
        ours = logits[number, logits.shape[1] - len(columns) :]
        torch.testing.assert_close(output.logits[number, columns].detach(), ours, atol=2e-4, rtol=1e-4)
        targets = labels[number, columns]
        wanted = targets[1:] != -100
        losses.append(torch.nn.functional.cross_entropy(ours[:-1][wanted], targets[1:][wanted], reduction="none"))
    torch.testing.assert_close(output.loss.detach(), torch.cat(losses).mean(), atol=2e-4, rtol=1e-4)


def skip_if_stock_needs_its_cache(model: Any, inputs: dict[str, Tensor]) -> None:
    """PaliGemma in 5.4 reads generated tokens in both directions when it has no cache."""
    if not OLD:
        return
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    with_cache, without = (model.generate(**inputs, **options, use_cache=use_cache) for use_cache in (True, False))
    if not torch.allclose(with_cache.logits[1], without.logits[1], atol=1e-3):
        pytest.skip("the stock model gives other logits without a cache")


def refused(pruner: foveate.Pruner, model: Any, inputs: dict[str, Tensor], **options: Any) -> None:
    """Where stock itself fails in the middle, a pruned call says so in advance."""
    with pytest.raises(IndexError):
        model.generate(**inputs, **GREEDY, **options)
    with pruner(model), pytest.raises(ValueError, match="stock transformers"):
        model.generate(**inputs, **GREEDY, **options)


def skip_if_stock_fails(row: Row, mode: str) -> None:
    """``test_generate`` shows that it does."""
    if mode in row.fails:
        pytest.skip(f"stock itself: {row.fails[mode]}")


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("mode", list(MODES))
def test_generate(row: Row, model: Any, inputs: dict[str, Tensor], mode: str, keep: float | int) -> None:
    options, wanted = MODES[mode]
    pruner = row.pruner(keep)
    if mode == "beams" and not row.repeats:
        # Of no features left: torch says so with the one error or the other, by its version.
        with pytest.raises((RuntimeError, ValueError), match="non-empty"):
            model.generate(**inputs, **options)
        with pruner(model), pytest.raises(ValueError, match="stock transformers"):
            model.generate(**inputs, **options)
        return
    if mode == "no_cache" and not row.grows:
        refused(pruner, model, inputs, use_cache=False)
        return
    if mode in row.fails:
        for on in (nullcontext(), pruner(model)):
            errors = (ValueError, TypeError, KeyError, AttributeError, RuntimeError)
            with on, pytest.raises(errors, match=row.fails[mode]):
                model.generate(**inputs, **options)
        return
    torch.manual_seed(11)
    with pruner(model):
        result = model.generate(**inputs, **options)
    torch.manual_seed(11)
    if mode == "static_cache" and row.static is not None:
        row = replace(row, hidden=row.static)
    assembled = reference.assemble(row, model, inputs, indices(pruner))
    if keep == 1.0 and mode in row.only_pruned:
        with pytest.raises(ValueError, match=row.only_pruned[mode]):
            model.generate(**inputs, **options)
        assert torch.equal(
            new_tokens(result, inputs), reference.generate(row, model, inputs, assembled, **(wanted or {}))
        )
        return
    if keep == 1.0:
        stock = model.generate(**inputs, **options)
        if not torch.equal(result, stock):
            # Only where the stock model contradicts itself: from embeddings, it gives what the pruned one gives.
            assert (row.mixes_beams or OLD) and mode == "beams"
            assert torch.equal(
                new_tokens(result, inputs), reference.generate(row, model, inputs, assembled, **(wanted or {}))
            )
        return
    if mode == "no_cache":
        skip_if_stock_needs_its_cache(model, inputs)
    expected = reference.greedy(row, model, assembled, NEW)[0] if wanted is None else None
    if expected is None:
        expected = reference.generate(row, model, inputs, assembled, **wanted)
    assert torch.equal(new_tokens(result, inputs), expected)


@pytest.mark.parametrize("keep", KEEPS)
def test_eager(row: Row, keep: float | int) -> None:
    """The modes run on SDPA; with eager attention, masks are made in another way."""
    model = row.make("eager")
    inputs = prompts(row, model, "mixed")
    pruner = row.pruner(keep)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY)
    if keep == 1.0:
        assert torch.equal(result, model.generate(**inputs, **GREEDY))
    assembled = reference.assemble(row, model, inputs, indices(pruner))
    assert torch.equal(new_tokens(result, inputs), reference.greedy(row, model, assembled, NEW)[0])


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("row, positions, newlines", ARRANGEMENTS, indirect=["row"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_and_newlines(
    row: Row,
    model: Any,
    inputs: dict[str, Tensor],
    positions: str,
    newlines: str,
    keep: float | int,
    use_cache: bool,
) -> None:
    pruner = row.pruner(keep)
    if not (use_cache or row.grows):
        refused(pruner, model, inputs, use_cache=False)
        return
    with pruner(model, positions=positions, newlines=newlines):
        result = model.generate(
            **inputs, **GREEDY, use_cache=use_cache, return_dict_in_generate=True, output_logits=True
        )
    if keep == 1.0:
        stock = model.generate(
            **inputs, **GREEDY, use_cache=use_cache, return_dict_in_generate=True, output_logits=True
        )
        assert torch.equal(result.sequences, stock.sequences)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(result.logits, stock.logits, strict=True))
        return
    if not use_cache:
        skip_if_stock_needs_its_cache(model, inputs)
    assembled = reference.assemble(row, model, inputs, indices(pruner), newlines, positions)
    tokens, _ = reference.greedy(row, model, assembled, NEW)
    assert torch.equal(new_tokens(result.sequences, inputs), tokens)


@pytest.mark.parametrize("keep", KEEPS)
def test_scores(row: Row, model: Any, inputs: dict[str, Tensor], keep: float | int) -> None:
    pruner = row.pruner(keep)
    options = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with pruner(model):
        result = model.generate(**inputs, **options, output_scores=True)
    assembled = reference.assemble(row, model, inputs, indices(pruner))
    tokens, logits = reference.greedy(row, model, assembled, NEW, suppress=())
    assert torch.equal(new_tokens(result.sequences, inputs), tokens)
    torch.testing.assert_close(torch.stack(result.logits, dim=1), logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack(result.scores, dim=1), logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", KEEPS)
def test_lengths(row: Row, model: Any, inputs: dict[str, Tensor], keep: float | int) -> None:
    """max_length and min_length count the prompt as the user knows it."""
    length = inputs["input_ids"].shape[1]
    with row.pruner(keep)(model):
        bounded = model.generate(**inputs, max_length=length + 4, do_sample=False)
        given = model.generate(
            **inputs,
            generation_config=type(model.generation_config)(max_length=length + 3, do_sample=False, pad_token_id=0),
        )
        free = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        # Every row's first choice as EOS: only min_length keeps generation going.
        ends = free[:, length].tolist()
        held = model.generate(
            **inputs, min_length=length + 3, max_length=length + 5, do_sample=False, eos_token_id=ends
        )
    assert bounded.shape[1] == length + 4
    assert given.shape[1] == length + 3
    assert torch.equal(bounded, free[:, : length + 4])
    assert held.shape[1] >= length + 3
    assert not torch.isin(held[:, length : length + 3], torch.tensor(ends)).any()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("batch", ["one", "several"])  # both take one sequence only, in stock transformers
def test_speculative(row: Row, model: Any, batch: str, keep: float | int) -> None:
    """Assisted decoding and prompt lookup give what greedy decoding gives."""
    if OLD:
        pytest.skip("this transformers looks for EOS tokens in candidates without asking whether there are any")
    inputs = prompts(row, model, batch)
    pruner = row.pruner(keep)
    lookup = {"prompt_lookup_num_tokens": 3}
    if model._is_stateful:  # a state cannot be taken back to where a candidate was refused: stock's own refusal
        for there in (pruner(model), nullcontext()):
            with there, pytest.raises(ValueError, match="not supported with stateful models"):
                model.generate(**inputs, **GREEDY, **lookup)
        return
    if not row.grows:
        refused(pruner, model, inputs, **lookup)
    with pruner(model):
        alone = model.generate(**inputs, **GREEDY)
        looked_up = model.generate(**inputs, **GREEDY, **lookup) if row.grows else alone
        chosen = indices(pruner)
    if not torch.equal(alone, looked_up):
        # Only where the stock model contradicts itself (keep=1.0 among it): from the short prompt it gives the same.
        assert not row.looks_up
        assembled = reference.assemble(row, model, inputs, chosen)
        stock = reference.generate(row, model, inputs, assembled, **GREEDY, **lookup)
        assert torch.equal(new_tokens(looked_up, inputs), stock)
    # A text-only assistant knows neither token types nor positions of three dimensions, nor pictures where stock hands
    # it these: stock fails by itself.
    why = "token_type_ids|cannot be multiplied|video_second_per_grid|model_kwargs. are not used.*pixel_values"
    found: list[Any] = []
    for there in (nullcontext(), pruner(model)):
        try:
            with there:
                found.append(model.generate(**inputs, **GREEDY, assistant_model=assistant()))
        except (ValueError, RuntimeError) as error:
            found.append(re.search(why, str(error)))
    stock, pruned = found
    if torch.is_tensor(stock):
        assert torch.equal(pruned, alone)
    else:
        assert stock is not None and pruned is not None and stock[0] == pruned[0]


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.seen.append(value)

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("keep", KEEPS)
def test_streamer(row: Row, model: Any, keep: float | int) -> None:
    inputs = prompts(row, model, "several")
    streamer = Collector()
    with row.pruner(keep)(model):
        result = model.generate(**inputs, **GREEDY, streamer=streamer)
    assert streamer.ended
    assert torch.equal(streamer.seen[0], inputs["input_ids"])
    assert torch.equal(torch.cat([piece.flatten() for piece in streamer.seen]), result[0])


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("row, positions", PLACED, indirect=["row"])
def test_forward(row: Row, model: Any, inputs: dict[str, Tensor], positions: str, keep: float | int) -> None:
    """Loss and logits of a direct forward; logits for every token of the long prompt."""
    ids = inputs["input_ids"]
    unlabelled = torch.isin(ids, torch.tensor([*SILENT, BOS])) | (inputs["attention_mask"] == 0)
    labels = ids.masked_fill(unlabelled, -100)
    pruner = row.pruner(keep)
    with torch.no_grad(), pruner(model, positions=positions):
        output = model(**inputs, labels=labels)
        few = 2 if "logits_to_keep" in inspect.signature(type(model).forward).parameters else 0
        last = model(**inputs, logits_to_keep=2).logits if row.slices else output.logits[:, -few:]
        as_tuple = model(**inputs, labels=labels, return_dict=False)
    assert output.logits.shape[:2] == labels.shape
    torch.testing.assert_close(last, output.logits[:, -few:])
    assert torch.equal(as_tuple[0], output.loss)
    if "forward" in row.fails:
        with pytest.raises(ValueError, match=row.fails["forward"]):
            model(**inputs, labels=labels)
    elif keep == 1.0:
        with torch.no_grad():
            stock = model(**inputs, labels=labels)
        assert torch.equal(output.logits, stock.logits)
        assert torch.equal(output.loss, stock.loss)
        return
    assembled = reference.assemble(row, model, inputs, indices(pruner), positions=positions)
    assert_loss(row, model, assembled, output, labels)


@torch.no_grad()
def forgets(model: Any) -> bool:
    """Whether a bare model that is given text in two parts, with a cache, answers otherwise than in one go."""
    if hasattr(inner(model), "rope_deltas"):
        inner(model).rope_deltas = None  # of another batch, which stock would go on from
    ids = torch.arange(10, 30)[None]
    cache = model(input_ids=ids[:, :15], use_cache=True).past_key_values
    parts = model(input_ids=ids[:, 15:], past_key_values=cache).logits[:, -1]
    return not torch.allclose(parts, model(input_ids=ids).logits[:, -1], atol=1e-2)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("row, positions", PLACED, indirect=["row"])
@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
@pytest.mark.parametrize("only_new", [False, True])
def test_second_turn(row: Row, model: Any, cache: type, positions: str, keep: float | int, only_new: bool) -> None:
    """A second turn with the first one's cache and the long ids equals answering it in one go."""
    inputs = prompts(row, model, "mixed")
    store = (
        DynamicCache(config=model.config.get_text_config())
        if cache is DynamicCache
        else StaticCache(config=model.config.get_text_config(), max_cache_len=300)
    )
    if row.rope:
        known = reference.long_positions(model, row, inputs)
        if bool((known[..., -1] < known.amax(dim=-1)).any()):  # Qwen2.5-VL videos in 5.4
            pytest.skip(
                "stock places this video behind the text that follows it: generation goes on from another place"
            )
    if cache is StaticCache:
        skip_if_stock_fails(row, "static_cache")
    if row.hybrid and forgets(model):
        pytest.skip("stock's own linear attention begins anew when several tokens follow a cache")
    if OLD and cache is StaticCache and model.config.model_type == "paligemma":
        pytest.skip("stock 5.4 looks for token types that a second turn does not have")
    # "prompt" text would change between the turns, which this method does not read
    pruner = row.steady(keep)
    options = {"disable_compile": True, **GREEDY}
    with pruner(model, positions=positions):
        first = model.generate(**inputs, **options, past_key_values=store, return_dict_in_generate=True)
        grown = torch.cat([first.sequences, torch.tensor([[50, 51, 52]] * 3)], dim=1)
        added = grown.shape[1] - inputs["input_ids"].shape[1]
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, added).long()], 1)
        # the cache holds everything but the last generated token
        given = grown[:, first.sequences.shape[1] - 1 :] if only_new else grown
        second = model.generate(input_ids=given, attention_mask=mask, past_key_values=first.past_key_values, **options)
        whole_inputs = {**inputs, **row.per_token(grown), "input_ids": grown, "attention_mask": mask}
        if cache is StaticCache and row.static is not None:
            options["cache_implementation"] = "static"
        whole = model.generate(**whole_inputs, **options)
    assert torch.equal(second[:, : given.shape[1]], given)
    assert torch.equal(second[:, given.shape[1] :], whole[:, grown.shape[1] :])


WRAPPED = [
    "centered:cdpruner", "centered:features=encoded:divprune", "merged:centered:cover", "auto:floor=1t:cover",
    "changing:threshold=0.0:cover", "spread:floor=0:adafv",
]  # fmt: skip
"""One of every wrapper, and one around another."""


@pytest.mark.parametrize("method", [*foveate.METHODS, *WRAPPED])
@pytest.mark.parametrize("keep", KEEPS[:2])  # a budget in tokens goes the same way, and the tests above have it
def test_methods(row: Row, method: str, keep: float | int) -> None:
    """Every family x every method and wrapper; a batch gives what its rows give alone."""
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    pruner = foveate.get_pruner(method, keep=keep)
    unread = [one for one in row.unread if getattr(pruner, f"reads_{one}")]
    if unread:
        with pytest.raises(ValueError, match=f"{pruner.name} reads .*has none to read: .*Methods that do without: "):
            foveate.attach(model, pruner)
        return
    with pruner(model):
        result = model.generate(**inputs, **GREEDY)
        chosen, weights = indices(pruner), [one.weights for one in pruner.selections]
    if keep == 1.0 and not method.startswith("auto"):  # which chooses under any ceiling
        assert torch.equal(result, model.generate(**inputs, **GREEDY))
    assembled = reference.assemble(row, model, inputs, chosen, weights=weights)
    assert torch.equal(new_tokens(result, inputs), reference.greedy(row, model, assembled, NEW)[0])
    for only, images in ((0, slice(0, 1)), (2, slice(1, 3)))[: None if row.alone else 1]:
        alone = prompts(row, model, "mixed", only)
        with pruner(model):
            single = new_tokens(model.generate(**alone, **GREEDY), alone)
        assert torch.equal(single[0], new_tokens(result, inputs)[only])
        assert all(torch.equal(a, b) for a, b in zip(indices(pruner), chosen[images], strict=True))


# Families that cut a picture into crops, of which only some are encoded.
TILING = [
    "llava_next-clip", "llava_next-siglip", "llava_next_video", "idefics3", "smolvlm", "smolvlm-uneven", "internvl",
    "ovis2", "aya_vision", "cohere2_vision", *(["qianfan_ocr"] if "qianfan_ocr" in ROWS else []),
    *(["llama4"] if "llama4" in ROWS else []), "llava_onevision",
    "llava_onevision-crops",
]  # fmt: skip
# (mode, batch, keep, crops): every value of each, and every mode with fewer crops than there are.
CROPPED = [
    ("greedy", "one", 0.4, 0.5),
    ("greedy", "several", 3, 0.5),
    ("greedy", "mixed", 1.0, 1),
    ("greedy", "mixed", 0.4, "auto"),
    ("greedy", "mixed", 3, 0),
    ("no_cache", "mixed", 1.0, 0.5),
    ("static_cache", "mixed", 0.4, 1),
    ("beams", "several", 0.4, 0.5),
    ("sampling", "mixed", 0.4, 0.5),
]
ALL_CROPS = [("greedy", 1.0), ("beams", 0.4)]


def test_kin_have_a_row_that_goes_through_everything() -> None:
    whole = {type(family_for(row.make("sdpa"))) for name, row in ROWS.items() if name not in KIN}
    for name in KIN & ROWS.keys():
        assert set(type(family_for(ROWS[name].make("sdpa"))).__mro__) & whole, name


def test_every_tiling_family_has_its_row() -> None:
    pictures = [name for name in ROWS if not name.endswith("-video")]
    assert [name for name in pictures if family_for(ROWS[name].make("sdpa")).crops] == TILING


@cache
def views_by_hand(name: str, batch: str, amount: float | int | str) -> list[tuple[int, ...]]:
    """The views that a batch's questions ask for, by image, base views among them."""
    row = ROWS[name]
    inputs = prompts(row, row.make("sdpa"), batch)
    geometries = [image.tokens.geometry for image in encode(row.make("sdpa"), inputs)]
    rows = [number for number, images in enumerate(BATCHES[batch]) for _ in images]
    return crops_by_hand.chosen(name, inputs, geometries, rows, amount)


@contextmanager
def embedded(model: Any) -> Iterator[list[Tensor]]:
    """What the LLM is given, call by call."""
    base = inner(model)
    language_model = base.language_model if hasattr(base, "language_model") else base.text_model
    seen: list[Tensor] = []
    hook = language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("mode, batch, keep, crops", CROPPED)
@pytest.mark.parametrize("name", TILING)
def test_crops(name: str, mode: str, batch: str, keep: float | int, crops: float | int | str) -> None:
    """The crops that are chosen by hand, and the tokens kept of them; answers from the stock features of these."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, batch)
    skip_if_stock_fails(row, mode)
    options, wanted = MODES[mode]
    pruner = row.pruner(keep)
    torch.manual_seed(11)
    with pruner(model, crops=crops), embedded(model) as seen:
        result = model.generate(**inputs, **options)
    views = views_by_hand(name, batch, crops)
    assert [selection.encoded_views for selection in pruner.selections] == views
    for selection, some in zip(pruner.selections, views, strict=True):
        assert set(selection.view.tolist()) <= set(some)
        encoded = selection.total if selection.encoded is None else int(selection.encoded.sum())
        # A share is of the whole picture's tokens, encoded or not.
        assert len(selection) == min(foveate.tokens.Keep(keep).budget(selection.total), encoded)
    torch.manual_seed(11)
    if mode == "no_cache":
        skip_if_stock_needs_its_cache(model, inputs)
    assembled = reference.assemble(row, model, inputs, indices(pruner))
    expected = reference.greedy(row, model, assembled, NEW)[0] if wanted is None else None
    if expected is None:
        expected = reference.generate(row, model, inputs, assembled, **wanted)
    assert torch.equal(new_tokens(result, inputs), expected)
    # The tower was given fewer views at a time than stock gives it, and so may have added up in another order.
    times = len(seen[0]) // len(assembled.mask)
    there = assembled.mask.bool().repeat_interleave(times, dim=0)
    wide = assembled.embeddings.repeat_interleave(times, dim=0)
    torch.testing.assert_close(seen[0][there], wide[there], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "row, positions, newlines", [one for one in ARRANGEMENTS if one[0] in TILING], indirect=["row"]
)
def test_crops_positions_and_newlines(row: Row, model: Any, positions: str, newlines: str) -> None:
    inputs = prompts(row, model, "mixed")
    pruner = row.pruner(0.4)
    with pruner(model, positions=positions, newlines=newlines, crops=1):
        result = model.generate(**inputs, **GREEDY)
    assembled = reference.assemble(row, model, inputs, indices(pruner), newlines, positions)
    assert torch.equal(new_tokens(result, inputs), reference.greedy(row, model, assembled, NEW)[0])


@pytest.mark.parametrize("mode, keep", ALL_CROPS)
@pytest.mark.parametrize("name", TILING)
def test_all_crops_are_stock(name: str, mode: str, keep: float | int) -> None:
    """1.0 is as without crops, bit by bit; as many crops as there are is the same question, asked in two steps."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    skip_if_stock_fails(row, mode)
    options = {**MODES[mode][0], "return_dict_in_generate": True, "output_logits": True}
    found = []
    for crops in (None, 1.0, 9):
        pruner = row.pruner(keep)
        with pruner(model, crops=crops):
            found.append((model.generate(**inputs, **options), pruner.selections))
    (plain, chosen), *others = found
    for number, (output, selections) in enumerate(others):
        assert torch.equal(output.sequences, plain.sequences)
        for logits, known in zip(output.logits, plain.logits, strict=True):
            assert torch.equal(logits, known) if number == 0 else torch.allclose(logits, known, atol=2e-4, rtol=1e-4)
        for one, other in zip(selections, chosen, strict=True):
            assert torch.equal(one.indices, other.indices) and one.encoded is None
    if keep == 1.0:
        stock = model.generate(**inputs, **options)
        assert torch.equal(plain.sequences, stock.sequences)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain.logits, stock.logits, strict=True))


@pytest.mark.parametrize("name", TILING)
def test_crops_forward(name: str) -> None:
    """Loss, logits and gradients of a direct forward, where two runs of the tower are in the graph."""
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    ids = inputs["input_ids"]
    labels = ids.masked_fill(torch.isin(ids, torch.tensor([*SILENT, BOS])) | (inputs["attention_mask"] == 0), -100)
    pruner = row.pruner(0.4)
    with pruner(model, crops=0.5):
        output = model(**inputs, labels=labels)
    assembled = reference.assemble(row, model, inputs, indices(pruner))
    assert_loss(row, model, assembled, output, labels)


@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize(
    "name", [one for one in TILING if one != "llava_onevision"]
)  # it cuts no picture beside others
def test_crops_second_turn(name: str, only_new: bool) -> None:
    """New pictures beside a cache that holds one of which some crops were encoded: as answered in one go.

    Words would choose other crops when the conversation has more of them; saliency does not read any.
    """
    row = ROWS[name]
    model = row.make("sdpa")
    first, second = prompts(row, model, "one"), prompts(row, model, "several")
    pruner = foveate.Saliency(keep=0.4)
    store = DynamicCache(config=model.config.get_text_config())
    with pruner(model, crops="0.5:by=saliency"):
        told = model.generate(**first, **GREEDY, past_key_values=store, return_dict_in_generate=True)
        kept = pruner.selections
        grown = torch.cat([told.sequences, second["input_ids"]], dim=1)
        given = grown[:, told.sequences.shape[1] - 1 :] if only_new else grown
        mask = torch.ones_like(grown)
        again = model.generate(
            **{**second, "input_ids": given, "attention_mask": mask}, **GREEDY, past_key_values=told.past_key_values
        )
        kept = [*kept, *pruner.selections]
        whole = model.generate(**row.pixels([[0, 1, 2]]), input_ids=grown, attention_mask=mask, **GREEDY)
    assert torch.equal(again[:, given.shape[1] :], whole[:, grown.shape[1] :])
    for one, other in zip(kept, pruner.selections, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert one.encoded_views == other.encoded_views
    assert any(len(one.encoded_views) < len(one.geometry.grids) for one in kept)
