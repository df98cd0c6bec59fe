"""Pruning inside the LLM: what layers hold, against a run by hand, layer by layer, whole matrices and no cache."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
from foveate import bundled, inside
from foveate.inside import layers
from foveate.pruners import InsidePruner
from tests.functional.test_in_llm import recycle_by_loops
from tests.reference import long_positions, newline_mask
from tests.test_attach import fingerprint
from tests.test_session import picture, separately
from tests.tiny import BATCHES, IMAGE, ROWS, SILENT, assistant, prompts
from tests.tiny.rows import VIDEO, finish

NAMES = ["llava-clip", "llava_next-clip", "qwen2_vl", "qwen2_5_vl"]
# As far as this transformers has them.
MORE = [name for name in ROWS if name.startswith(("qwen2_vl-", "qwen2_5_vl-", "llava_onevision"))]
DEPTH = 6
NEW = 5
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": SILENT}
TOLD = {"return_dict_in_generate": True, "output_logits": True}
METHODS: dict[str, Callable[[float | int], InsidePruner]] = {
    "fastv": lambda keep: foveate.FastV(keep=keep, layer=2),
    "fastv-final": lambda keep: foveate.FastV(keep=keep, layer=1, budget="final"),
    "pyramiddrop": lambda keep: foveate.PyramidDrop(keep=keep),
    "pyramiddrop-final": lambda keep: foveate.PyramidDrop(keep=keep, budget="final"),
    "sparsevlm": lambda keep: foveate.SparseVLM(keep=keep, clusters=0.3),
    "sparsevlm-final": lambda keep: foveate.SparseVLM(keep=keep, clusters=0.3, budget="final"),
}


@cache
def deep(name: str, attention: str, dtype: torch.dtype = torch.float64) -> Any:
    """The family's tiny model with an LLM of several layers."""
    shallow = ROWS[name].make("eager")
    config = copy.deepcopy(shallow.config)
    config.text_config.num_hidden_layers = DEPTH
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = config.text_config.layer_types[:1] * DEPTH
    torch.manual_seed(1)
    return finish(type(shallow)(config), attention).to(dtype)


def batch_of(name: str, model: Any, batch: str, only: int | None = None) -> dict[str, Tensor]:
    inputs = prompts(ROWS[name], ROWS[name].make("eager"), batch, only)
    return {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}


class ByHand:
    """One prompt without padding, run through the stock layers as the method says.

    Args:
        model: in eager attention.
        pruner: its options, layers and budgets are read; nothing is computed by it.
        ids: (S,) the prompt.
        positions: (S,) or, with M-RoPE, (3, S).
        streams: of its images, what stock puts into their placeholders.
    """

    def __init__(self, model: Any, pruner: InsidePruner, ids: Tensor, positions: Tensor, streams: list[Tensor]) -> None:
        self.model, self.pruner, self.ids, self.positions = model, pruner, ids, positions
        self.lm = model.model.language_model
        self.embeddings = model.get_input_embeddings()(ids).clone()
        self.patches: list[list[int]] = []
        self.newlines: list[list[int]] = []
        self.raters: list[list[int]] = []
        spots = torch.isin(ids, torch.tensor([IMAGE, VIDEO])).nonzero()[:, 0].tolist()
        for stream in streams:
            ours, spots = spots[: len(stream)], spots[len(stream) :]
            self.embeddings[ours] = stream
            flags = newline_mask(model, stream).tolist()
            self.patches.append([place for place, flag in zip(ours, flags, strict=True) if not flag])
            self.newlines.append([place for place, flag in zip(ours, flags, strict=True) if flag])
            self.raters.append(self._raters(ours[-1], self.patches[-1]))
        assert not spots
        self.kept: list[list[int]] = []
        self.lengths: list[int] = []

    def _raters(self, end: int, patches: list[int]) -> list[int]:
        if not self.pruner.reads_text:
            return [len(self.ids) - 1]
        text = [place for place in range(end + 1, len(self.ids)) if self.ids[place] not in SILENT]
        table = torch.stack(
            [(self.embeddings[text] @ self.embeddings[patch]).softmax(dim=0) for patch in patches]
        )  # (N, T)
        rating = table.mean(dim=0)
        return [place for place, one in zip(text, rating, strict=True) if one >= rating.mean()]

    def logits(self, generated: list[int]) -> Tensor:
        """(V,) after the prompt and what was generated; the choices are made from the prompt's part alone."""
        stages = self.pruner.layers(DEPTH)
        more = self.model.get_input_embeddings()(torch.tensor(generated, dtype=torch.long))
        hidden = torch.cat([self.embeddings, more])
        columns = list(range(len(hidden)))  # what is held, as positions in the prompt and what follows
        alive = [list(patches) for patches in self.patches]
        matrix = torch.empty(0)
        self.lengths = []
        for number, layer in enumerate(self.lm.layers):
            if number in stages:
                gone: set[int] = set()
                for image, patches in enumerate(self.patches):
                    budget = self.pruner.schedule(len(patches), DEPTH)[number]
                    left = [columns.index(place) for place in alive[image]]
                    if budget == len(left):
                        continue
                    asked = [columns.index(place) for place in self.raters[image]]
                    score = matrix[asked][:, left].mean(dim=0)
                    kept, states = self._cut(score, hidden[left], budget)
                    hidden = hidden.clone()
                    for place, state in zip(kept, states, strict=True):
                        hidden[left[place]] = state
                    gone |= {alive[image][n] for n in range(len(left)) if n not in kept} | set(self.newlines[image])
                    alive[image] = [alive[image][n] for n in kept]
                stays = [n for n, place in enumerate(columns) if place not in gone]
                hidden, columns = hidden[stays], [columns[n] for n in stays]
            self.lengths.append(len(columns) - len(generated))
            following = self.positions[..., -1:] + torch.arange(1, len(generated) + 1)
            positions = torch.cat([self.positions, following], dim=-1)[..., columns]
            cos_sin = self.lm.rotary_emb(hidden[None], position_ids=positions.unsqueeze(-2))
            mask = torch.full((len(columns), len(columns)), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
            given = {"attention_mask": mask[None, None], "position_embeddings": cos_sin}
            matrix = layer.self_attn(hidden_states=layer.input_layernorm(hidden[None]), **given)[1][0].mean(dim=0)
            output = layer(hidden[None], **given)
            hidden = (output[0] if isinstance(output, tuple) else output)[0]
        self.kept = [
            [patches.index(place) for place in left] for patches, left in zip(self.patches, alive, strict=True)
        ]
        scores: Tensor = self.model.lm_head(self.lm.norm(hidden[-1:]))[0]
        return scores

    def _cut(self, score: Tensor, hidden: Tensor, budget: int) -> tuple[list[int], list[Tensor]]:
        if not isinstance(self.pruner, foveate.SparseVLM):
            order = sorted(range(len(score)), key=lambda n: (-float(score[n]), n))
            kept = sorted(order[:budget])
            return kept, [hidden[n] for n in kept]
        kept, weights = recycle_by_loops(score, hidden, budget, self.pruner.recycled, self.pruner.clusters)
        return kept, [sum(part * state for part, state in zip(row, hidden, strict=True)) for row in weights]


def by_hand(name: str, pruner: InsidePruner, inputs: dict[str, Tensor], batch: str) -> list[ByHand]:
    model = deep(name, "eager")
    row, exact = ROWS[name], batch_of(name, model, batch)
    streams = iter(row.streams(model, exact, row.kind))
    masks = inputs["attention_mask"].bool()
    plain = (masks.cumsum(dim=1) - 1).clamp(min=0)
    positions = long_positions(model, row, exact) if row.rope else plain
    return [
        ByHand(model, pruner, ids[mask], positions[..., number, mask], [next(streams) for _ in numbers])
        for number, (ids, mask, numbers) in enumerate(zip(inputs["input_ids"], masks, BATCHES[batch], strict=True))
    ]


def silent(logits: Tensor) -> Tensor:
    allowed = logits.clone()
    allowed[..., SILENT] = -torch.inf
    return allowed


@torch.no_grad()
def run_by_hand(rows: list[ByHand], choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(B, NEW) tokens and (B, NEW, V) logits."""
    generated: list[list[int]] = [[] for _ in rows]
    logits = []
    for _ in range(NEW):
        scores = torch.stack([row.logits(given) for row, given in zip(rows, generated, strict=True)])
        logits.append(scores)
        for given, token in zip(generated, choose(silent(scores)).tolist(), strict=True):
            given.append(token)
    return torch.tensor(generated), torch.stack(logits, dim=1)


@pytest.fixture(params=["sdpa", "eager"])
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("batch", ["several", "mixed"])  # without padding and with
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_as_by_hand(name: str, attention: str, method: str, batch: str) -> None:
    """Tokens, logits, selections, and the length of every layer's cache."""
    # In float64, stock eager attention makes NaN of padding: its softmax in float32 sees nothing but -inf.
    model = deep(name, attention, torch.float32 if attention == "eager" else torch.float64)
    pruner = METHODS[method](5 if method.endswith("final") else 0.5)
    inputs = batch_of(name, model, batch)
    with pruner(model):
        result = model.generate(**inputs, **GREEDY, **TOLD)
    rows = by_hand(name, pruner, inputs, batch)
    tokens, logits = run_by_hand(rows, lambda scores: scores.argmax(dim=-1))
    length = inputs["input_ids"].shape[1]
    assert torch.equal(result.sequences[:, :length], inputs["input_ids"])
    assert [one.indices.tolist() for one in pruner.selections] == [kept for row in rows for kept in row.kept]
    assert torch.equal(result.sequences[:, length:], tokens)
    # The reference is eager, whose softmax is float32 at best; wide random weights magnify a float32 model's rounding.
    atol = 1e-4 if model.dtype == torch.float64 else 1e-3
    torch.testing.assert_close(torch.stack(result.logits, dim=1), logits.float(), atol=atol, rtol=1e-4)
    held = [layer.keys.shape[2] - (NEW - 1) for layer in result.past_key_values.layers]
    assert held == [max(row.lengths[number] for row in rows) for number in range(DEPTH)]
    assert held[0] == length and held[-1] < length
    for one, counts in zip(pruner.selections, pruner.tokens_per_layer, strict=True):
        assert counts[-1] == len(one) and len(counts) == DEPTH
    if len(rows) == 1:
        text = int((inputs["input_ids"] != ROWS[name].token).sum())
        assert [sum(counts) + text for counts in zip(*pruner.tokens_per_layer, strict=True)] == held


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_all_kept_is_stock(name: str, attention: str, method: str) -> None:
    model, pruner = deep(name, attention, torch.float32), METHODS[method](1.0)
    inputs = batch_of(name, model, "mixed")
    stock = model.generate(**inputs, **GREEDY, **TOLD)
    with pruner(model):
        ours = model.generate(**inputs, **GREEDY, **TOLD)
    assert torch.equal(ours.sequences, stock.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, stock.logits, strict=True))
    assert [len(one) for one in pruner.selections] == [one.total for one in pruner.selections]
    placeholders = int((inputs["input_ids"] == IMAGE).sum())
    assert [sum(counts) for counts in zip(*pruner.tokens_per_layer, strict=True)] == [placeholders] * DEPTH
    assert sum(pruner.mean_tokens_per_layer) == placeholders


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_sampling_is_that_of_the_reference(name: str, method: str) -> None:
    model, pruner = deep(name, "sdpa"), METHODS[method](0.5)
    inputs = batch_of(name, model, "mixed")
    rows = by_hand(name, pruner, inputs, "mixed")
    torch.manual_seed(5)
    with pruner(model):
        ours = model.generate(**inputs, **{**GREEDY, "do_sample": True, "top_k": 0})
    torch.manual_seed(5)
    tokens, _ = run_by_hand(rows, lambda scores: torch.multinomial(scores.float().softmax(dim=-1), 1)[:, 0])
    assert torch.equal(ours[:, inputs["input_ids"].shape[1] :], tokens)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_rows(name: str, method: str) -> None:
    """And a row whose prompt was padded by hand is the row without padding."""
    model, pruner = deep(name, "sdpa"), METHODS[method](0.5)
    with pruner(model):
        together = model.generate(**(inputs := batch_of(name, model, "mixed")), **GREEDY)
        chosen = [one.indices for one in pruner.selections]
        for row, images in ((0, slice(0, 1)), (1, slice(0, 0)), (2, slice(1, 3))):
            alone = batch_of(name, model, "mixed", row) if row != 1 else {}
            if not alone:
                continue
            single = model.generate(**alone, **GREEDY)[:, alone["input_ids"].shape[1] :]
            assert torch.equal(single[0], together[row, inputs["input_ids"].shape[1] :])
            assert all(torch.equal(a.indices, b) for a, b in zip(pruner.selections, chosen[images], strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_several_returns_share_their_prefill(method: str) -> None:
    model, pruner = deep("llava_next-clip", "sdpa"), METHODS[method](0.5)
    inputs = batch_of("llava_next-clip", model, "mixed")
    options = {**GREEDY, "do_sample": True, "top_k": 20}
    with pruner(model):
        once = model.generate(**inputs, **{**options, "max_new_tokens": 1}, **TOLD)
        chosen = [one.indices for one in pruner.selections]
        thrice = model.generate(**inputs, **options, num_return_sequences=3, **TOLD)
    assert thrice.sequences.shape[0] == 9
    assert all(torch.equal(a.indices, b) for a, b in zip(pruner.selections, chosen, strict=True))
    torch.testing.assert_close(thrice.logits[0][::3], once.logits[0], atol=1e-5, rtol=1e-5)
    for copies in thrice.logits[0].split(3):
        torch.testing.assert_close(copies[1:], copies[:1].expand(2, -1), atol=1e-5, rtol=1e-5)
    # What a sampled sequence says next is what it says when it is given: the copies' caches are theirs.
    length = inputs["input_ids"].shape[1]
    rows = by_hand("llava_next-clip", pruner, inputs, "mixed")
    with torch.no_grad():
        for number, sequence in enumerate(thrice.sequences[:, length:]):
            last = rows[number // 3].logits(sequence[:-1].tolist()).float()
            torch.testing.assert_close(thrice.logits[-1][number], last, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_rows_that_are_needed(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tapped layer per stage, in the prefill alone, and of its matrix one row, or those of the raters."""
    model = deep(name, attention, torch.float32)
    inputs = batch_of(name, model, "one")
    text = int((inputs["input_ids"] != IMAGE).sum())
    seen: list[tuple[int, ...]] = []
    real = layers.attention_of_queries
    monkeypatch.setattr(
        layers,
        "attention_of_queries",
        lambda query, *rest: (seen.append((query.shape[1], rest[0].shape[1])), real(query, *rest))[1],
    )
    for method, stages in (("fastv", 1), ("pyramiddrop", 3), ("sparsevlm", 3)):
        seen.clear()
        pruner = METHODS[method](0.5)
        with pruner(model):
            result = model.generate(**inputs, **GREEDY, **TOLD)
        held = [layer.keys.shape[2] - (NEW - 1) for layer in result.past_key_values.layers]
        assert len(seen) == len(pruner.layers(DEPTH)) == (stages if method != "sparsevlm" else len(set(held)) - 1)
        assert [keys for _, keys in seen] == [held[layer - 1] for layer in pruner.layers(DEPTH)]
        assert all(rows == 1 if method != "sparsevlm" else 1 <= rows < text for rows, _ in seen)


def emulated_flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """What FlashAttention makes of its arguments: a (B, S) mask or none, causal from the last key on."""
    positions = options.get("position_ids")
    if mask is None and positions is not None and len(query) == 1:  # gaps would be read as borders of packed sequences
        assert torch.equal(positions, positions[:, :1] + torch.arange(positions.shape[1]))
    keys = torch.arange(key.shape[2])
    allowed = (keys <= keys[-query.shape[2] :, None])[None, None]
    if mask is not None:
        assert mask.shape == (len(query), len(keys))
        allowed = (allowed & mask.bool()[:, None, None]) | (keys == keys[-query.shape[2] :, None])
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=options["scaling"]
    )
    return output.transpose(1, 2), None


@pytest.mark.parametrize("batch", list(BATCHES))
@pytest.mark.parametrize("method", METHODS)
def test_masks_of_flash_attention(method: str, batch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, a function stands in for the kernel, with the kernel's own arguments."""
    name = "llava_next-clip"
    expected, model = deep(name, "sdpa"), copy.deepcopy(deep(name, "sdpa"))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", emulated_flash)
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    assert "flash_attention_2" in ALL_MASK_ATTENTION_FUNCTIONS
    inputs = batch_of(name, model, batch)
    pruner = METHODS[method](0.5)
    with pruner(expected):
        wanted = expected.generate(**inputs, **GREEDY)
    with pruner(model):
        assert torch.equal(model.generate(**inputs, **GREEDY), wanted)


def test_rows_of_unequal_budget_without_padding() -> None:
    """Prompts of one length, one of which loses more: padding that the prompt itself did not have."""
    model, pruner = deep("llava-clip", "sdpa"), foveate.FastV(keep=3, budget="final")
    inputs = batch_of("llava-clip", model, "one")
    ids = inputs["input_ids"]
    text = ids.clone()
    text[text == IMAGE] = 60
    both = {"input_ids": torch.cat([ids, text]), "pixel_values": inputs["pixel_values"]}
    with pruner(model):
        together = model.generate(**both, attention_mask=torch.ones_like(both["input_ids"]), **GREEDY)
        alone = model.generate(**inputs, **GREEDY)
    assert torch.equal(together[:1], alone)
    assert torch.equal(together[1:], model.generate(input_ids=text, **GREEDY))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beams": ({"num_beams": 2}, "num_beams=2"),
    "no cache": ({"use_cache": False}, "use_cache=False"),
    "static": ({"cache_implementation": "static"}, "cache_implementation='static'"),
    "static object": ({"past_key_values": StaticCache}, "StaticCache"),
    "lookup": ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
    "chunks": ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale"),
    "custom": ({"custom_generate": lambda *_, **__: None}, "custom_generate"),
}


@pytest.mark.parametrize("mode", REFUSED)
@pytest.mark.parametrize("method", METHODS)
def test_other_ways_to_generate_are_refused(method: str, mode: str) -> None:
    model = deep("llava-clip", "sdpa", torch.float32)
    inputs = batch_of("llava-clip", model, "one")
    options, message = REFUSED[mode]
    if options.get("past_key_values") is StaticCache:
        options = {"past_key_values": StaticCache(config=model.config.get_text_config(), max_cache_len=99)}
    before = fingerprint(model)
    with METHODS[method](0.5)(model), pytest.raises(ValueError, match=message):
        model.generate(**inputs, **{**GREEDY, **options})
    assert fingerprint(model) == before
    if "num_beams" in options:  # wherever it is said
        config = copy.deepcopy(model.generation_config)
        config.num_beams = 2
        with METHODS[method](0.5)(model), pytest.raises(ValueError, match=message):
            model.generate(**inputs, **GREEDY, generation_config=config)


def test_what_else_is_refused() -> None:
    model = deep("llava-clip", "sdpa", torch.float32)
    inputs = batch_of("llava-clip", model, "mixed")
    pruner = foveate.FastV(keep=0.5)
    with pruner(model):
        with pytest.raises(ValueError, match="assistant_model"):
            model.generate(**batch_of("llava-clip", model, "one"), **GREEDY, assistant_model=assistant())
        with pytest.raises(ValueError, match=r"model\.generate only"):
            model(**inputs, labels=inputs["input_ids"])
        flipped = {name: inputs[name].flip(1) for name in ("input_ids", "attention_mask")}
        with pytest.raises(ValueError, match="pad on the left"):
            model.generate(**{**inputs, **flipped}, **GREEDY)
        first = model.generate(**inputs, **GREEDY, **TOLD)
        grown = torch.cat([first.sequences, torch.tensor([[50, 51]] * 3)], dim=1)
        for given in (grown, grown[:, -3:]):
            with pytest.raises(ValueError, match="cannot be continued"):
                model.generate(input_ids=given, past_key_values=first.past_key_values, **GREEDY)
    with foveate.AdaFV(keep=0.5)(model), pytest.raises(ValueError, match="filled under fastv"):
        model.generate(input_ids=grown, past_key_values=first.past_key_values, **GREEDY)
    short = {name: inputs[name][:, :3] for name in ("input_ids", "attention_mask")}
    prefix = model.generate(**short, **{**GREEDY, "max_new_tokens": 1}, **TOLD).past_key_values
    with pruner(model), pytest.raises(ValueError, match="cannot go on from past_key_values that hold something"):
        model.generate(**inputs, past_key_values=prefix, **GREEDY)
    for options, message in (
        ({"positions": "compact"}, "positions='compact'"),
        ({"newlines": "rows"}, "newlines='rows'"),
    ):
        with pytest.raises(ValueError, match=message), pruner(model, **options):
            pass
    with pytest.raises(ValueError, match="layer=6 leaves none of the LLM's 6 layers"), foveate.FastV(layer=6)(model):
        pass
    with pytest.raises(ValueError, match="the first 2 of 6 layers hold all 16"), foveate.FastV(keep=0.1)(model):
        model.generate(**inputs, **GREEDY)
    with pytest.raises(AttributeError, match=r"cannot choose from tokens alone"):
        pruner.select(None)
    # an image behind all text, which cannot look at it
    last = batch_of("llava-clip", model, "one")
    ids = last["input_ids"]
    ends = torch.cat([ids[:, :3], ids[:, 3 + 16 :], ids[:, 3 : 3 + 16]], dim=1)
    with foveate.SparseVLM(keep=0.5)(model), pytest.raises(ValueError, match="none follows the image in row 0"):
        model.generate(**{**last, "input_ids": ends}, **GREEDY)


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("generic")])
def test_other_families_are_refused(name: str) -> None:
    model = ROWS[name].make("sdpa")
    foveate.attach(model, foveate.DivPrune()).remove()  # stock itself hooks towers at their first use
    before = fingerprint(model)
    if name == "llava-pixtral":  # its LLM is Mistral's
        with pytest.raises(ValueError, match="see a window only"):
            foveate.attach(model, foveate.FastV(keep=0.5, layer=1))
    elif model.config.model_type in inside.FAMILIES:
        foveate.attach(model, foveate.FastV(keep=0.5, layer=1)).remove()
    else:
        with pytest.raises(ValueError, match="fastv prunes inside the LLM, which works with llava, llava_next, "):
            foveate.attach(model, foveate.FastV(keep=0.5, layer=1))
    assert fingerprint(model) == before


def test_layers_that_see_a_window_are_refused() -> None:
    model = copy.deepcopy(deep("llava-clip", "sdpa", torch.float32))
    config = model.model.language_model.config
    config.layer_types = ["full_attention", "sliding_attention"] * 3
    with pytest.raises(ValueError, match="see a window only"), foveate.FastV()(model):
        pass
    config.layer_types, config._attn_implementation_internal = None, "flex_attention"
    with pytest.raises(ValueError, match="not of 'flex_attention'"), foveate.FastV()(model):
        pass


@pytest.mark.parametrize("method", METHODS)
def test_leaves_no_trace(method: str) -> None:
    model = deep("llava-clip", "sdpa", torch.float32)
    inputs = batch_of("llava-clip", model, "mixed")
    stock = model.generate(**inputs, **GREEDY)
    text = inputs["input_ids"][:, -5:]
    stock_text = model.generate(input_ids=text, **GREEDY)
    before = fingerprint(model)
    with METHODS[method](0.5)(model):
        assert not torch.equal(model.generate(**inputs, **GREEDY), stock)
        assert torch.equal(model.generate(input_ids=text, **GREEDY), stock_text)
    assert fingerprint(model) == before
    assert torch.equal(model.generate(**inputs, **GREEDY), stock)
    with METHODS[method](0.5)(model), pytest.raises(ValueError, match="image placeholders"):
        model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][:1]}, **GREEDY)
    assert fingerprint(model) == before


def test_an_error_on_the_way_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep("llava-clip", "sdpa", torch.float32)
    before = fingerprint(model)

    def fails(*_: Any) -> None:
        raise KeyError("on the way")

    monkeypatch.setattr(foveate.FastV, "cut", fails)
    with pytest.raises(KeyError, match="on the way"), foveate.FastV(keep=0.5)(model):
        model.generate(**batch_of("llava-clip", model, "one"), **GREEDY)
    assert fingerprint(model) == before


def test_threads_with_methods_of_both_kinds() -> None:
    """One model, at once: inside at other layers, before the LLM, and bare."""
    model = deep("llava_next-clip", "sdpa")
    inputs = batch_of("llava_next-clip", model, "mixed")
    pruners = [foveate.FastV(keep=0.5), foveate.PyramidDrop(keep=0.4), foveate.Saliency(keep=0.3)]
    model.generate(**inputs, **GREEDY)  # stock leaves hooks of its own the first time
    before = fingerprint(model)
    alone = []
    for pruner in pruners:
        with pruner(model):
            alone.append(model.generate(**inputs, **GREEDY))
    barrier, wrong = threading.Barrier(3), []

    def work(number: int) -> None:
        try:
            for _ in range(4):
                with pruners[number](model):
                    barrier.wait(timeout=60)
                    if not torch.equal(model.generate(**inputs, **GREEDY), alone[number]):
                        wrong.append(f"thread {number} differs")
        except Exception as error:
            wrong.append(f"thread {number}: {error!r}")
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert fingerprint(model) == before


def test_selections() -> None:
    """Scores of every stage, rows of weights that sum to 1, and a cache of one's own."""
    model = deep("llava_next-clip", "sdpa", torch.float32)
    inputs = batch_of("llava_next-clip", model, "several")
    pruner = foveate.SparseVLM(keep=0.5, clusters=0.4)
    mine = DynamicCache()
    with pruner(model):
        model.generate(**inputs, **GREEDY, past_key_values=mine)
    stages = pruner.layers(DEPTH)
    assert mine.layers[0].keys.shape[2] - (NEW - 1) == inputs["input_ids"].shape[1]
    for one, counts, mean in zip(pruner.selections, pruner.tokens_per_layer, pruner.mean_tokens_per_layer, strict=True):
        assert set(one.scores) == {f"attention_after_{layer}" for layer in stages}
        assert all(score.shape == (one.total,) and score.dtype == torch.float32 for score in one.scores.values())
        last = one.scores[f"attention_after_{stages[-1]}"]
        assert int((last > 0).sum()) == counts[stages[-1] - 1]
        assert one.weights is not None
        weights = one.weights.dense()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(one)))
        assert bool((weights[torch.arange(len(one)), one.indices] > 0).all())
        assert int(one.shares["attention"]) + int(one.shares["merged"]) == len(one)
        assert mean == sum(counts) / DEPTH
        newlines = counts[0] - one.total
        assert mean <= 0.5 * one.total + 1 + newlines  # the budget counts patches, rounded up
    with pruner(model):
        model.generate(input_ids=inputs["input_ids"][:, -4:], **GREEDY)
    assert pruner.selections == [] and pruner.tokens_per_layer == []


@pytest.mark.parametrize("name", list(foveate.INSIDE_METHODS))
def test_a_session_gives_what_generate_gives(name: str) -> None:
    """The tower runs once per picture; selections and counts come as for other methods."""
    pair = model, _ = bundled.load()
    images = [picture(0, 320, 240), picture(1, 200, 300)]
    session = foveate.look(*pair, images)
    options = {"layer": 1} if name == "fastv" else {}
    for question in ("Is there a dog?", "What color is the card of the cat?"):
        pruner = foveate.get_pruner(name, keep=0.6, **options)
        answer = session.ask(question, pruner, max_new_tokens=6, do_sample=False)
        assert torch.equal(answer.sequence, separately(pair, images, question, pruner))
        assert all(torch.equal(a.indices, b.indices) for a, b in zip(answer.selections, pruner.selections, strict=True))
        assert answer.visual_tokens == int((answer.sequence == model.config.image_token_index).sum())
        assert answer.visual_tokens == sum(counts[0] for counts in pruner.tokens_per_layer)
        assert answer.prompt_tokens == len(answer.sequence) - answer.new_tokens
    both = session.ask_many(
        ["Is there a dog?", "How many apples are there?"], pruner, max_new_tokens=6, do_sample=False
    )
    assert torch.equal(both[0].sequence[-6:], session.ask("Is there a dog?", pruner, max_new_tokens=6).sequence[-6:])
