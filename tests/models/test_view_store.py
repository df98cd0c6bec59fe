"""Views that are encoded one after the other: what is kept of them, and pictures of which some views are not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.attention import Recorder
from foveate.models.encoded import ABSENT, NEWLINE, STAYS, EncodedImage
from foveate.models.view_store import Views, ViewStore, among
from foveate.tokens import Geometry, Keep, VisualTokens

PER_VIEW, WIDTH = 4, 3
ROWS = ("rows", "key_rows", "encoded_rows")


def features_of(views: Sequence[int]) -> Tensor:
    """(views, tokens, width): every number says of which view and token it is."""
    token = torch.arange(PER_VIEW * WIDTH).view(PER_VIEW, WIDTH)
    return torch.stack([100.0 * (view + 1) + token for view in views])


def recorded(views: Sequence[int]) -> Recorder:
    """A recording of a run over some views, one call of the encoder each."""
    record = Recorder()
    for view in views:
        record.rows.append(features_of([view])[0, :, 0] + 0.25)
        record.key_rows.append(features_of([view])[0] + 0.5)
        record.encoded_rows.append(features_of([view])[0] + 0.75)
    return record


def run(store: ViewStore, wanted: Sequence[int]) -> tuple[Recorder, Tensor]:
    """What ``Views`` and a family do between them."""
    store.wanted = tuple(wanted)
    record = recorded(wanted)
    whole = store.put(record, features_of(wanted))
    store.known.update(wanted)
    return record, whole


def everything(known: Sequence[int], total: int, more: float = 0.0) -> Tensor:
    """(views, tokens, width): zeros where nothing is known."""
    whole = torch.zeros(total, PER_VIEW, WIDTH)
    whole[list(known)] = features_of(known) + more
    return whole


def test_pick_takes_the_wanted_views() -> None:
    store = ViewStore(5)
    store.wanted = (1, 4)
    assert torch.equal(store.pick(features_of(range(5))), features_of([1, 4]))
    for other in (features_of(range(3)), torch.tensor(7), torch.zeros(0, 3)):  # no batch of these views
        assert store.pick(other) is other


def test_put_gives_all_views_with_what_is_known() -> None:
    store = ViewStore(5)
    first, whole = run(store, [3, 0])
    assert torch.equal(whole, everything([0, 3], 5))
    assert torch.equal(torch.cat(first.rows), everything([0, 3], 5, 0.25)[..., 0].flatten())
    kept = whole.clone()
    second, more = run(store, [1])
    assert torch.equal(more, everything([0, 1, 3], 5))
    assert torch.equal(torch.cat(second.rows), everything([0, 1, 3], 5, 0.25)[..., 0].flatten())
    assert torch.equal(torch.cat(second.key_rows), everything([0, 1, 3], 5, 0.5).flatten(0, 1))
    assert torch.equal(torch.cat(second.encoded_rows), everything([0, 1, 3], 5, 0.75).flatten(0, 1))
    assert torch.equal(whole, kept)  # what was made of the first run stays as it was


def test_put_keeps_dtype_and_gradients() -> None:
    """A run in half precision (autocast) goes beside one in float32; gradients reach both."""
    store = ViewStore(3)
    one, other = features_of([0]).requires_grad_(), features_of([2]).bfloat16().requires_grad_()
    store.wanted = (0,)
    store.put(Recorder(), one)
    store.wanted = (2,)
    whole = store.put(Recorder(), other)
    assert whole.dtype == torch.float32
    (whole * torch.arange(3.0)[:, None, None]).sum().backward()
    assert one.grad is not None and other.grad is not None
    assert torch.equal(one.grad, torch.zeros_like(one)) and torch.equal(other.grad, torch.full_like(other, 2.0))


def test_what_is_known_of_a_view_moves_to_another_store() -> None:
    store, other = ViewStore(4), ViewStore(3)
    run(store, [0, 2])
    assert torch.equal(store.taken_out(2)["features"], features_of([2])[0])
    other.put_back({1: store.taken_out(2)})
    assert other.known == {1}
    assert other.nothing().shape == (0, PER_VIEW, WIDTH)
    record = Recorder()
    other.wanted = ()
    assert torch.equal(other.put(record, other.nothing())[1], features_of([2])[0])
    assert torch.equal(record.rows[0].view(3, -1)[1], features_of([2])[0, :, 0] + 0.25)


def test_what_is_alike_is_known_of_all() -> None:
    store = ViewStore(5, (0, 1, 0, 1, 4))
    assert store.missing([3, 2, 0]) == (0, 1) and store.missing(range(5)) == (0, 1, 4)
    store.wanted = (1,)
    assert torch.equal(store.pick(features_of(range(5))), features_of([1]))
    record = recorded([1])
    whole = store.put(record, features_of([1]))
    assert store.known == set()  # not before it is done
    store.done()
    assert store.known == {1, 3} and store.missing(range(5)) == (0, 4) and store.missing([3, 1]) == ()
    wanted = torch.zeros(5, PER_VIEW, WIDTH)
    wanted[[1, 3]] = features_of([1])[0]
    assert torch.equal(whole, wanted)
    for name, kept in (("rows", wanted[..., 0] + 0.25), ("key_rows", wanted + 0.5), ("encoded_rows", wanted + 0.75)):
        found = torch.cat(getattr(record, name)).view(kept.shape)
        assert torch.equal(found[[1, 3]], kept[[1, 3]]) and not found[[0, 2, 4]].any()
        assert all(torch.equal(store.taken_out(view)[name], kept[1].view_as(found[1])) for view in (1, 3))
    store.wanted = (0, 4)
    whole = store.put(recorded([0, 4]), features_of([0, 4]))
    store.done()
    assert torch.equal(whole, features_of([0, 1, 0, 1, 4])) and store.known == set(range(5))


@pytest.mark.parametrize("known", [(2,), (2, 0), (0, 2)])
def test_what_is_put_back_of_a_twin(known: Sequence[int]) -> None:
    """The cache of a server may hold one of them, or both."""
    store, other = ViewStore(3), ViewStore(4, (0, 1, 0, 1))
    run(store, [2])
    other.put_back({view: store.taken_out(2) for view in known})
    assert other.known == {0, 2} and other.missing(range(4)) == (1,)
    other.wanted = ()
    assert torch.equal(other.put(Recorder(), other.nothing())[[0, 2]], features_of([2, 2]))


def test_gradients_of_twins_add_up() -> None:
    store = ViewStore(3, (0, 1, 0))
    one = features_of([0]).requires_grad_()
    store.wanted = (0,)
    (store.put(Recorder(), one) * torch.tensor([2.0, 3.0, 5.0])[:, None, None]).sum().backward()
    assert one.grad is not None and torch.equal(one.grad, torch.full_like(one, 7.0))


def geometry(views: int = 3) -> Geometry:
    """Views of 2 x 2 tokens, of which the crops stand side by side."""
    view = torch.arange(views).repeat_interleave(4)
    row, column = torch.tensor([0, 0, 1, 1]).repeat(views), torch.tensor([0, 1, 0, 1]).repeat(views)
    corner = torch.stack([column + 2 * (view - 1).clamp(min=0), row], dim=1).float()
    boxes = torch.cat([corner, corner + 1], dim=1)
    return Geometry(view, row, column, boxes, (2, 2 * views), tuple((2, 2) for _ in range(views)))


def picture(views: int = 3, **changes: Any) -> EncodedImage:
    """Its placeholders: one that stays, the tokens, and a newline behind every view."""
    count = views * PER_VIEW
    features = features_of(range(views)).flatten(0, 1)
    tokens = VisualTokens(
        features,
        geometry(views),
        saliency=torch.arange(count) / 10.0,
        full_grid=True,
        keys=features + 0.5,
        encoded=features + 0.75,
    )
    slots = torch.cat([torch.tensor([STAYS])] + [
        torch.tensor([*range(view * PER_VIEW, (view + 1) * PER_VIEW), NEWLINE]) for view in range(views)
    ])  # fmt: skip
    stream = torch.zeros(len(slots), WIDTH)
    stream[slots >= 0] = features
    return replace(EncodedImage(tokens, len(slots), slots, None, stream), **changes)


def test_all_views_are_the_picture_itself() -> None:
    one = picture()
    assert among(one, (0, 1, 2)) is one
    assert among(one, [2, 1, 0, 0]) is one
    assert among(picture(1), (0,)).whole is None
    released = picture(slots=None, stream=None)
    assert among(released, (0,)) is released


@pytest.mark.parametrize("views", [(0,), (0, 2), (2, 0), {1, 2}])
def test_among(views: Any) -> None:
    whole = picture()
    some = among(whole, views)
    known = sorted(views)
    there = [n for n, view in enumerate(whole.tokens.geometry.view.tolist()) if view in known]
    assert some.places is not None and some.places.tolist() == there
    assert some.whole is whole.tokens.geometry
    tokens, place = some.tokens, some.tokens.geometry
    for name in ("features", "saliency", "keys", "encoded"):
        assert torch.equal(getattr(tokens, name), getattr(whole.tokens, name)[there])
    for name in ("row", "column", "boxes"):
        assert torch.equal(getattr(place, name), getattr(whole.tokens.geometry, name)[there])
    assert place.view.tolist() == [known.index(whole.tokens.geometry.view[n]) for n in there]
    assert place.grids == ((2, 2),) * len(known) and place.image_size == (2, 6)
    assert tokens.full_grid
    # K is of the whole picture's tokens, and no more than there are.
    assert [tokens.budget(Keep(keep)) for keep in (0.5, 1.0, 5, 1)] == [
        min(6, len(there)),
        len(there),
        min(5, len(there)),
        1,
    ]
    # Every placeholder has its patch still, or none.
    assert some.slots is not None and whole.slots is not None
    for ours, theirs in zip(some.slots.tolist(), whole.slots.tolist(), strict=True):
        assert ours == (theirs if theirs < 0 else there.index(theirs) if theirs in there else ABSENT)
    assert some.stream is whole.stream and some.placeholders == whole.placeholders


def test_a_token_of_several_views_needs_them_all() -> None:
    """As where LLaVA-OneVision shrinks crops."""
    support = torch.nn.functional.one_hot(geometry().view, 3).bool()
    support[7, 2] = True  # lies in view 1, and is made of view 2 too
    some = among(picture(support=lambda: support), (0, 1))
    assert some.places is not None and some.places.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert some.tokens.geometry.view.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert among(picture(support=lambda: support), (0, 2)).tokens.geometry.view.tolist() == [0] * 4 + [1] * 4


class Pictures:
    """A family of two pictures, the base view of which comes last and first in the batch."""

    views: Sequence[tuple[int, ...]] = [(2, 0, 1), (3, 4)]

    def __init__(self) -> None:
        self.runs: list[tuple[int, ...]] = []
        self.fails = 0
        self.pixels = torch.arange(5.0)[:, None]

    def views_of(self, inputs: Mapping[str, Any], prompt: Tensor | None) -> Sequence[tuple[int, ...]]:
        return self.views

    def pixels_of(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return (self.pixels,)

    def encode(self, store: ViewStore) -> list[EncodedImage]:
        time.sleep(0.01)  # so that threads get into each other's way
        self.runs.append(store.wanted)
        whole = store.put(recorded(store.wanted), features_of(store.wanted))
        if self.fails:
            self.fails -= 1
            raise MemoryError("between the tower and the pictures")
        found = []
        for views in self.views:
            one = picture(len(views))
            found.append(replace(one, tokens=replace(one.tokens, features=whole[list(views)].flatten(0, 1))))
        return found

    def made(self) -> Views:
        return Views(self.encode, self, {}, None)  # type: ignore[arg-type]


def known_views(images: Sequence[EncodedImage]) -> list[set[int]]:
    """Of every picture, the views that are not zero; each must be the one it says it is."""
    found = []
    for image, places in zip(images, Pictures.views, strict=True):
        by_view = image.tokens.features.unflatten(0, (-1, PER_VIEW))
        there = {view for view in range(len(places)) if bool(by_view[view].any())}
        for view in there:
            assert torch.equal(by_view[view], features_of([places[view]])[0])
        found.append(there)
    return found


def test_base_views_first_and_nothing_twice() -> None:
    family = Pictures()
    views = family.made()
    assert family.runs == [(2, 3)]
    assert [len(base.tokens) for base in views.bases] == [PER_VIEW, PER_VIEW]
    assert known_views(views.need([{0, 2}, {0}])) == [{0, 2}, {0}]
    assert known_views(views.need([{0}, ()])) == [{0, 2}, {0}]
    assert family.runs == [(2, 3), (1,)]
    assert known_views(views.need([{1, 2}, {1}])) == [{0, 1, 2}, {0, 1}]
    assert family.runs == [(2, 3), (1,), (0, 4)]
    assert views.all() is views.images
    assert len(family.runs) == 3
    assert [len(base.tokens) for base in views.bases] == [PER_VIEW, PER_VIEW]


def test_views_with_the_same_pixels_run_once() -> None:
    """View 4 is as view 0, both crops, and view 3 as view 2, both base views."""
    family = Pictures()
    family.pixels = torch.tensor([0.0, 1.0, 2.0, 2.0, 0.0])[:, None]
    views = family.made()
    assert family.runs == [(2,)] and views.store.known == {2, 3}
    assert torch.equal(views.bases[1].tokens.features, views.bases[0].tokens.features)
    views.need([{0}, {1}])
    assert family.runs == [(2,), (0,)] and views.store.known == {0, 2, 3, 4}
    views.need([{1}, {1}])
    views.all()
    assert family.runs == [(2,), (0,), (1,)]


def test_all_at_once() -> None:
    family = Pictures()
    family.pixels = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0])[:, None]
    views = Views(family.encode, family, {}, None, at_once=True)  # type: ignore[arg-type]
    assert family.runs == [(0, 1, 2, 3)]
    views.need([{0, 1, 2}, {0, 1}])
    assert len(family.runs) == 1
    assert [len(base.tokens) for base in views.bases] == [PER_VIEW, PER_VIEW]


def test_pixels_that_are_given_say_what_is_alike() -> None:
    family = Pictures()
    family.pixels = torch.zeros(5, 1)
    given = (torch.zeros(5, 1), torch.tensor([0, 0, 1, 0, 0])[:, None])
    views = Views(family.encode, family, {}, None, pixels=given)  # type: ignore[arg-type]
    views.all()
    assert family.runs == [(0, 2)]


def test_a_run_that_fails_half_way_is_run_again() -> None:
    family = Pictures()
    views = family.made()
    family.fails = 1
    with pytest.raises(MemoryError):
        views.need([{0, 1}, {0}])
    assert known_views(views.images) == [{0}, {0}]
    assert known_views(views.need([{0, 1}, {0}])) == [{0, 1}, {0}]
    assert family.runs == [(2, 3), (0,), (0,)]


def test_threads_encode_each_view_once() -> None:
    family = Pictures()
    views = family.made()
    barrier = threading.Barrier(8)
    wrong: list[Any] = []

    def ask(number: int) -> None:
        barrier.wait(timeout=30)
        some = [{0, 1 + number % 2}, {number % 2}]
        known = known_views(views.need(some))
        if not all(wanted <= there for wanted, there in zip(some, known, strict=True)):
            wrong.append((some, known))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(view for run in family.runs for view in run) == [0, 1, 2, 3, 4]


def test_pictures_that_are_encoded_already() -> None:
    images = [picture(3), picture(1)]
    views = Views.of(images)
    assert views.pictures == [(0, 1, 2), (3,)]
    assert views.need([{0, 2}, {0}]) is images and views.all() is images
    assert [len(base.tokens) for base in views.bases] == [PER_VIEW, PER_VIEW]
    assert views.bases[1] is images[1]
