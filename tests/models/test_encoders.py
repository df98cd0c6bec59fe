"""Every family's encoder: saliency to the last digit, its own output untouched, no trace left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
from foveate.instrumented import looking_through
from foveate.models.encoded import Request
from tests.encoding import encode
from tests.tiny import ROWS, SEEING, SILENT, Row, prompts
from tests.tiny.rows import features_of, inner

_Function = TypeVar("_Function")


@pytest.fixture(params=SEEING)
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


@pytest.fixture(params=list(ROWS))
def any_row(request: pytest.FixtureRequest) -> Row:
    """One without attention to read, too."""
    return ROWS[request.param]


class Materialised:
    """An attention function that makes every matrix whole, in double precision, and keeps them by module."""

    def __init__(self) -> None:
        self.matrices: dict[int, list[Tensor]] = {}
        self.keys: dict[int, list[Tensor]] = {}

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        logits = query.double() @ key.double().transpose(-1, -2) * (kwargs["scaling"] or query.shape[-1] ** -0.5)
        if attention_mask is not None:
            logits = (
                logits.masked_fill(~attention_mask, -torch.inf)
                if attention_mask.dtype == torch.bool
                else (logits + attention_mask)
            )
        weights = logits.softmax(dim=-1)
        self.matrices.setdefault(id(module), []).append(weights.mean(dim=1))
        self.keys.setdefault(id(module), []).append(key.double().mean(dim=1))
        return (weights @ value.double()).transpose(1, 2).to(value.dtype), weights


@contextmanager
def registered(name: str, function: _Function) -> Iterator[_Function]:
    """As an attention implementation that is given SDPA's masks; of one it does not know, transformers makes none."""
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        yield function
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping[name]
        del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[name]


@pytest.fixture
def materialised() -> Iterator[Materialised]:
    with registered("materialised", Materialised()) as function:
        yield function


class Watched(Materialised):
    """The same beside SDPA, which gives the output."""

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            super().__call__(module, query, key, value, *args, **kwargs)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with registered("watched", Watched()) as function:
        yield function


def double(row: Row) -> Any:
    model = copy.deepcopy(row.make("sdpa")).double()
    model.set_attn_implementation("materialised")
    return model


def in_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_saliency_equals_materialised_attention(
    row: Row, attention: str, materialised: Materialised, record_property: Any
) -> None:
    model = row.make(attention)
    inputs = prompts(row, model, "mixed")
    encoded = encode(model, inputs, row.kind)
    whole = double(row)
    features_of(whole, in_double(inputs), row.kind)
    expected = row.saliency(whole, inputs, materialised.matrices[id(row.read(whole))], encoded)
    worst = max(
        float((image.tokens.saliency - wanted).abs().max()) for image, wanted in zip(encoded, expected, strict=True)
    )
    record_property("largest_error", worst)
    assert worst < 1e-6
    assert all(image.tokens.saliency.dtype == torch.float32 for image in encoded)
    assert all(float(image.tokens.saliency.std()) > 0 for image in encoded)


def test_float32_under_autocast(row: Row, watched: Watched) -> None:
    """Autocast's bfloat16 queries and keys are taken as they are; what is made of them is float32."""
    model = copy.deepcopy(row.make("sdpa"))
    model.set_attn_implementation("watched")
    inputs = prompts(row, model, "mixed")
    plain = encode(model, inputs, row.kind, keys=True)
    with torch.autocast("cpu", torch.bfloat16):
        stock = row.streams(model, inputs, row.kind)
        watched.matrices.clear()
        watched.keys.clear()
        encoded = encode(model, inputs, row.kind, keys=True)
    expected = row.saliency(model, inputs, watched.matrices[id(row.read(model))], encoded)
    for image, wanted, theirs in zip(encoded, expected, stock, strict=True):
        assert image.tokens.saliency.dtype == image.tokens.keys.dtype == torch.float32
        assert float((image.tokens.saliency - wanted).abs().max()) < 1e-6
        assert torch.equal(image.stream, theirs)
    for image, whole in zip(encoded, plain, strict=True):
        torch.testing.assert_close(image.tokens.keys, whole.tokens.keys, atol=0.1, rtol=0.1)
        assert not torch.equal(image.tokens.keys, whole.tokens.keys)  # they were bfloat16 before the mean


class MixedDevices(TorchDispatchMode):
    """The names of operations that were given tensors of the CPU and empty ones together."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs or {})) if torch.is_tensor(one)]
        if {one.device.type for one in given} >= {"cpu", "meta"}:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def test_under_another_default_device(row: Row) -> None:
    """Nothing is made where the user happens to make tensors: with "meta", all would be empty."""
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    plain = encode(model, inputs, row.kind, keys=True)
    with torch.device("meta"), MixedDevices() as seen:
        try:
            features_of(model, inputs, row.kind)
        except RuntimeError as error:  # NotImplementedError among them
            pytest.skip(f"stock itself: {error}")
    if seen.found:  # Qwen2-VL in 5.5: what such an operation gives is whatever the memory held
        pytest.skip(f"stock itself computes with empty tensors: {', '.join(sorted(seen.found))}")
    with torch.device("meta"):
        encoded = encode(model, inputs, row.kind, keys=True)
    for image, wanted in zip(encoded, plain, strict=True):
        geometry, known = image.tokens.geometry, wanted.tokens.geometry
        for name in ("view", "row", "column", "boxes"):
            assert torch.equal(getattr(geometry, name), getattr(known, name))
        for name in ("features", "saliency", "keys"):
            assert torch.equal(getattr(image.tokens, name), getattr(wanted.tokens, name))
        assert torch.equal(image.slots, wanted.slots)
        assert torch.equal(image.stream, wanted.stream)
        assert (image.lines is None and wanted.lines is None) or torch.equal(image.lines, wanted.lines)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_encoder_output_is_bit_identical(any_row: Row, attention: str) -> None:
    model = any_row.make(attention)
    inputs = prompts(any_row, model, "mixed")
    stock = any_row.streams(model, inputs, any_row.kind)
    encoded = encode(model, inputs, any_row.kind, keys=True)
    assert all(torch.equal(image.stream, theirs) for image, theirs in zip(encoded, stock, strict=True))
    if any_row.planes:
        for image, planes in zip(encoded, any_row.planes(model, inputs, any_row.kind), strict=True):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(image.planes, planes, strict=True))


def shapes(thing: Any) -> Any:
    """Of a tensor, or of those in a list; of anything else its type."""
    if not isinstance(thing, (list, tuple)) and thing is not None and not torch.is_tensor(thing):
        return type(thing)
    if thing is None or torch.is_tensor(thing):
        return None if thing is None else tuple(thing.shape)
    return [shapes(one) for one in thing]


def test_features_are_asked_for_once_and_what_they_give_can_be_handed_back(
    any_row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is dropped, the model may get stock's own output object: its answer is stock's, to the shapes."""
    model = any_row.make("sdpa")
    inputs = prompts(any_row, model, "mixed")
    if "forward" in any_row.fails:
        pytest.skip(f"stock itself: {any_row.fails['forward']}")
    with torch.no_grad():
        stock = model(**inputs)
    given: list[Any] = []

    def asked(features: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(features(*args, **kwargs))
        return given[-1]

    ids = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -1)
    with looking_through(model) as site, torch.no_grad():
        encode_kind = site.family.encode if any_row.kind == "image" else site.family.encode_videos
        encode_kind(dict(inputs), Request(partial(asked, site.features[any_row.kind]), keys=True, prompt=ids))
    (output,) = given
    monkeypatch.setattr(inner(model), f"get_{any_row.kind}_features", lambda *args, **kwargs: output, raising=False)
    with torch.no_grad():
        again = model(**inputs)
    assert torch.equal(again.logits, stock.logits)
    name = "image_hidden_states"
    assert shapes(getattr(again, name, None)) == shapes(getattr(stock, name, None))


def test_nothing_is_tapped_unless_read(row: Row) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    for image in encode(model, inputs, row.kind, saliency=False):
        assert image.tokens.saliency is None
        assert image.tokens.keys is None
    alone, both = encode(model, inputs, row.kind, saliency=False, keys=True), encode(model, inputs, row.kind, keys=True)
    for image, wanted in zip(alone, both, strict=True):
        assert image.tokens.saliency is None
        assert image.tokens.keys.shape[0] == len(image.tokens)
        assert torch.equal(image.tokens.keys, wanted.tokens.keys)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in SEEING])
def test_what_an_encoder_does_not_have_is_none(name: str) -> None:
    row = ROWS[name]
    model = row.make("sdpa")
    inputs = prompts(row, model, "mixed")
    for image in encode(model, inputs, row.kind, keys=True):
        assert image.tokens.saliency is None
        assert image.tokens.keys is None


def test_slots_and_geometry_agree(any_row: Row) -> None:
    """The patches stand in the placeholders in order, and each has a place of its own in its view's grid."""
    model = any_row.make("sdpa")
    inputs = prompts(any_row, model, "mixed")
    for image in encode(model, inputs, any_row.kind):
        count = len(image.tokens)
        assert image.placeholders == len(image.slots) == len(image.stream)
        assert image.slots[image.slots >= 0].tolist() == list(range(count))
        assert torch.equal(image.tokens.features, image.stream[image.slots >= 0])
        geometry = image.tokens.geometry
        assert len(geometry) == count
        places = torch.stack([geometry.view, geometry.row, geometry.column], dim=1)
        assert len(places.unique(dim=0)) == count
        for view, (rows, columns) in enumerate(geometry.grids):
            inside = geometry.view == view
            assert int(geometry.row[inside].max()) < rows
            assert int(geometry.column[inside].max()) < columns
        height, width = geometry.image_size
        boxes = geometry.boxes
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_no_trace_is_left(any_row: Row) -> None:
    """Every module's own attributes are the same objects after a pruned call as before any."""
    model = copy.deepcopy(any_row.make("sdpa"))
    inputs = prompts(any_row, model, "one")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with any_row.pruner(0.3)(model):
        model.generate(**inputs, max_new_tokens=2, suppress_tokens=SILENT)
    for name, module in model.named_modules():
        after = dict(vars(module))
        for state in (after, before[name]):
            state.pop("rope_deltas", None)  # stock generate leaves it behind too
        assert after.keys() == before[name].keys(), name
        assert all(after[key] is before[name][key] for key in after), name


def test_the_encoder_runs_once_per_call(row: Row) -> None:
    model = row.make("sdpa")
    inputs = prompts(row, model, "one")
    runs: list[int] = []
    with looking_through(model) as site:
        hook = row.read(site.family.model).register_forward_hook(lambda *_: runs.append(1))
    try:
        with foveate.AdaFV(keep=0.3)(model):
            model.generate(**inputs, max_new_tokens=3, suppress_tokens=SILENT)
    finally:
        hook.remove()
    assert len(runs) == row.runs
