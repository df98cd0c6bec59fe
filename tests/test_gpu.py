"""What holds on the CPU holds on an accelerator: in two precisions, method by method, without waiting for it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
from foveate import bundled
from foveate.evaluation.scenes import SCENES
from foveate.inputs import process, question_prompt
from foveate.models.encoded import grid_geometry
from foveate.pruners import METHODS, get_pruner
from foveate.tokens import Selection, TextTokens, VisualTokens
from tests import reference
from tests.tiny import ROWS, SILENT, Row, prompts

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FAMILIES = ["llava_next-clip", "internvl", "smolvlm", "qwen2_5_vl", "qwen3_vl"]
DTYPES = [torch.float32, torch.bfloat16]
NEW = 4
OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW, "do_sample": False, "suppress_tokens": SILENT, "output_logits": True,
    "return_dict_in_generate": True,
}  # fmt: skip
WAITING = ("agilepruner", "prunesid")
"""They factorise a matrix, for which torch waits, and say so."""
WRAPPED = ["centered:cover", "merged:cdpruner", "merged:centered:cover"]


@pytest.fixture(autouse=True)
def _whole_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 as on the CPU: cuDNN's convolutions would else round their factors to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=FAMILIES)
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


def there(row: Row, batch: str, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """A tiny model and its inputs on the device."""
    here = row.make("sdpa")
    inputs = {
        name: value.to(DEVICE, dtype if value.is_floating_point() else value.dtype)
        for name, value in prompts(row, here, batch).items()
    }
    return copy.deepcopy(here).to(DEVICE, dtype), inputs


def pruned(model: Any, inputs: dict[str, Tensor], keep: float) -> tuple[Any, list[Tensor]]:
    pruner = foveate.AdaFV(keep=keep)
    with pruner(model):
        output = model.generate(**inputs, **OPTIONS)
    return output, [one.indices for one in pruner.selections]


# --- models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", ["one", "mixed"])
def test_all_tokens_are_stock_bit_by_bit(row: Row, dtype: torch.dtype, batch: str) -> None:
    model, inputs = there(row, batch, dtype)
    ours, _ = pruned(model, inputs, 1.0)
    stock = model.generate(**inputs, **OPTIONS)
    assert torch.equal(ours.sequences, stock.sequences)
    assert all(torch.equal(one, other) for one, other in zip(ours.logits, stock.logits, strict=True))


@pytest.mark.parametrize("batch", ["one", "mixed"])
def test_the_same_tokens_as_on_the_cpu(row: Row, batch: str) -> None:
    """And the answer to the prompt that is put together by hand there."""
    model, inputs = there(row, batch, torch.float32)
    ours, kept = pruned(model, inputs, 0.4)
    here = row.make("sdpa")
    given = prompts(row, here, batch)
    wanted, expected = pruned(here, given, 0.4)
    assert [one.tolist() for one in kept] == [one.tolist() for one in expected]
    assert all(one.device.type == DEVICE for one in kept)
    assert torch.equal(ours.sequences.cpu(), wanted.sequences)
    tokens, logits = reference.greedy(row, here, reference.assemble(row, here, given, expected), NEW)
    assert torch.equal(ours.sequences[:, -NEW:].cpu(), tokens)
    torch.testing.assert_close(torch.stack(ours.logits, dim=1).cpu(), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch", ["one", "mixed"])
def test_in_half_precision_the_prompt_is_the_one_by_hand(row: Row, batch: str) -> None:
    """Put together on the device: a tenth of the logits' spread apart at most, and all tokens are farther."""
    model, inputs = there(row, batch, torch.bfloat16)
    ours, kept = pruned(model, inputs, 0.4)

    def first_logits(indices: list[Tensor]) -> Tensor:
        with torch.device(DEVICE):
            found = reference.assemble(row, model, inputs, indices)
            found.embeddings = found.embeddings.to(torch.bfloat16)
            found.planes = [plane.to(torch.bfloat16) for plane in found.planes]
            return reference.greedy(row, model, found, 1)[1][:, 0].float()

    wanted = first_logits(kept)
    apart = (ours.logits[0].float() - wanted).abs().max() / wanted.std()
    others = first_logits([torch.arange(len(one), device=DEVICE) for one in kept])
    assert apart < 0.1 < (others - wanted).abs().max() / wanted.std()


def test_the_bundled_model_answers_as_on_the_cpu(tmp_path: Path) -> None:
    items = SCENES.read(SCENES.write(tmp_path, 4, seed=81))[:8]
    model, processor = bundled.load()
    pruner = foveate.Cover(keep=0.1)
    answers, selections = {}, {}
    for device in ("cpu", DEVICE):
        model = model.to(device)
        with pruner(model):
            for number, item in enumerate(items):
                with Image.open(tmp_path / item.image) as drawn:
                    text = question_prompt(processor, item.question, 1, model)
                    inputs = process(processor, model, [text], [drawn])
                output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
                answers[device, number] = output[0, inputs["input_ids"].shape[1] :].tolist()
                selections[device, number] = pruner.selections[0].indices.tolist()
    for number in range(len(items)):
        assert answers[DEVICE, number] == answers["cpu", number]
        kept, wanted = (set(selections[device, number]) for device in (DEVICE, "cpu"))
        assert len(kept & wanted) >= 0.95 * len(wanted)


# --- methods ----------------------------------------------------------------------------------------------


def picture(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[VisualTokens, TextTokens]:
    """192 tokens in three views, in twenty loose groups, and a question; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    where = grid_geometry([(8, 8)] * 3, torch.tensor([[0, 0, 8, 8]]).expand(3, -1), (8, 8), torch.device("cpu"))
    of = torch.randint(20, (192,), generator=generator)

    def clustered(width: int) -> Tensor:
        centres = torch.randn(20, width, generator=generator) + 0.5
        return (centres[of] + torch.randn(192, width, generator=generator)).to(dtype)

    features, keys, encoded = clustered(64), clustered(32), clustered(48)
    saliency = torch.rand(192, generator=generator).square()
    words = torch.randn(12, 64, generator=generator).to(dtype)
    words[::3] += features[::48]
    turn, special = torch.arange(12) < 9, torch.arange(12) == 0
    return VisualTokens(features, where, saliency, True, keys, encoded), TextTokens(words, turn, special)


def moved(visual: VisualTokens, text: TextTokens) -> tuple[VisualTokens, TextTokens]:
    """As an adapter hands them over: all on the device but the masks."""
    device = torch.device(DEVICE)
    parts = {name: getattr(visual, name).to(device) for name in ("features", "saliency", "keys", "encoded")}
    return (
        dataclasses.replace(visual, geometry=visual.geometry.to(device), **parts),
        dataclasses.replace(text, embeddings=text.embeddings.to(device)),
    )


def nudged(visual: VisualTokens, text: TextTokens, seed: int) -> tuple[VisualTokens, TextTokens]:
    """The same but for the last bits of float32."""
    generator = torch.Generator().manual_seed(seed)

    def other(tensor: Tensor) -> Tensor:
        return tensor * (1 + 1e-6 * torch.randn(tensor.shape, generator=generator))

    parts = {name: other(getattr(visual, name)) for name in ("features", "saliency", "keys", "encoded")}
    return dataclasses.replace(visual, **parts), dataclasses.replace(text, embeddings=other(text.embeddings))


@pytest.mark.parametrize("keep", [0.05, 0.25])
@pytest.mark.parametrize("name", [*METHODS, *WRAPPED])
def test_methods_choose_as_on_the_cpu(name: str, keep: float) -> None:
    """Up to ties: what a change in the last bits lets in or out on the CPU may be in or out."""
    pruner = get_pruner(name, keep=keep)
    assert isinstance(pruner, foveate.Pruner)
    visual, text = picture()
    chosen = [set(pruner.select(*one).indices.tolist()) for one in around(visual, text)]
    sure, possible = set.intersection(*chosen), set.union(*chosen)
    assert len(possible) < 192  # else it would be no question
    found = pruner.select(*moved(visual, text))
    assert found.indices.device.type == DEVICE
    kept = set(found.indices.tolist())
    assert len(kept) == len(found) == len(chosen[0])
    assert sure <= kept <= possible
    if kept == chosen[0]:
        merged_alike(found, pruner.select(visual, text))


def around(visual: VisualTokens, text: TextTokens) -> Iterator[tuple[VisualTokens, TextTokens]]:
    yield visual, text
    for seed in range(8):
        yield nudged(visual, text, seed)


def merged_alike(found: Selection, wanted: Selection) -> None:
    assert (found.weights is None) == (wanted.weights is None)
    if found.weights is not None:
        values = torch.randn(192, 8, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(found.gather(values.to(DEVICE)).cpu(), wanted.gather(values), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in [*METHODS, *WRAPPED] if name not in WAITING])
def test_choosing_waits_for_nothing(name: str, dtype: torch.dtype) -> None:
    pruner = get_pruner(name, keep=38)
    assert isinstance(pruner, foveate.Pruner)
    visual, text = moved(*picture(dtype))
    wanted = pruner.select(visual, text)  # libraries start up once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = pruner.select(visual, text)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.indices, wanted.indices)
    # Nothing looked at them on the way.
    assert len(found) <= 38 and bool((found.indices.diff() >= int(pruner.exact)).all())
    assert int(found.indices[0]) >= 0 and int(found.indices[-1]) < 192
