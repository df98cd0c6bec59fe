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
from foveate import inside
from foveate.pruners import InsidePruner
from tests.functional.test_in_llm import recycle_by_loops
from tests.reference import newline_mask
from tests.test_attach import fingerprint
from tests.tiny import BATCHES, IMAGE, ROWS, SILENT, assistant, prompts
from tests.tiny.rows import finish

NAMES = ["llava-clip", "llava-siglip", "llava_next-clip", "llava_next-siglip"]
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
        config.text_config.layer_types = None
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
        streams: of its images, what stock puts into their placeholders.
    """

    def __init__(self, model: Any, pruner: InsidePruner, ids: Tensor, streams: list[Tensor]) -> None:
        self.model, self.pruner, self.ids = model, pruner, ids
        self.lm = model.model.language_model
        self.embeddings = model.get_input_embeddings()(ids).clone()
        self.patches: list[list[int]] = []
        self.newlines: list[list[int]] = []
        self.raters: list[list[int]] = []
        spots = (ids == IMAGE).nonzero()[:, 0].tolist()
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
        text = [place for place in range(end + 1, len(self.ids)) if self.ids[place] != IMAGE]
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
            # in three dimensions, as the layers want it
            cos_sin = self.lm.rotary_emb(hidden[None], position_ids=torch.tensor([columns]))
            mask = torch.full((len(columns), len(columns)), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
            given = {"attention_mask": mask[None, None], "position_embeddings": cos_sin}
            matrix = layer.self_attn(hidden_states=layer.input_layernorm(hidden[None]), **given)[1][0].mean(dim=0)
            hidden = layer(hidden[None], **given)[0]
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
    streams = iter(ROWS[name].streams(model, batch_of(name, model, batch), "image"))
    return [
        ByHand(model, pruner, ids[mask.bool()], [next(streams) for _ in numbers])
        for ids, mask, numbers in zip(inputs["input_ids"], inputs["attention_mask"], BATCHES[batch], strict=True)
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


@pytest.mark.parametrize("keep", [0.6, 9])
@pytest.mark.parametrize("batch", list(BATCHES))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_as_by_hand(name: str, attention: str, method: str, batch: str, keep: float | int) -> None:
    """Tokens, logits, selections, and the length of every layer's cache."""
    # In float64, stock eager attention makes NaN of padding: its softmax in float32 sees nothing but -inf.
    model = deep(name, attention, torch.float32 if attention == "eager" else torch.float64)
    pruner = METHODS[method](keep)
    inputs = batch_of(name, model, batch)
    if pruner.budget == "mean" and keep == 9:
        pruner.keep = 0.45  # nine tokens are less than the first layers hold
    with pruner(model):
        result = model.generate(**inputs, **GREEDY, **TOLD)
    rows = by_hand(name, pruner, inputs, batch)
    tokens, logits = run_by_hand(rows, lambda scores: scores.argmax(dim=-1))
    length = inputs["input_ids"].shape[1]
    assert torch.equal(result.sequences[:, :length], inputs["input_ids"])
    assert [one.indices.tolist() for one in pruner.selections] == [kept for row in rows for kept in row.kept]
    assert torch.equal(result.sequences[:, length:], tokens)
    torch.testing.assert_close(torch.stack(result.logits, dim=1), logits.float(), atol=2e-4, rtol=1e-4)
    held = [layer.keys.shape[2] - (NEW - 1) for layer in result.past_key_values.layers]
    assert held == [max(row.lengths[number] for row in rows) for number in range(DEPTH)]
    assert held[0] == length and held[-1] < length
    for one, counts in zip(pruner.selections, pruner.tokens_per_layer, strict=True):
        assert counts[-1] == len(one) and len(counts) == DEPTH
    if len(rows) == 1:
        text = int((inputs["input_ids"] != IMAGE).sum())
        assert [sum(counts) + text for counts in zip(*pruner.tokens_per_layer, strict=True)] == held
