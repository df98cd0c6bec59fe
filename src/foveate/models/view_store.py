"""Views that are encoded one after the other: the base view first, and of the crops those that a question asks for.

A family's ``encode`` runs the tower on the views that are wanted, puts what comes out beside what is known of the
others, and assembles the pictures of all of it as ever: where nothing is known yet, there are zeros, which
``among`` leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveate.attention import open_recorder, projecting, untraced
from foveate.locks import OwnLock
from foveate.models.alike import alike_views
from foveate.models.encoded import ABSENT, EncodedImage
from foveate.tokens import Geometry, VisualTokens

if TYPE_CHECKING:
    from foveate.attention import Recorder
    from foveate.models.base import Family

ROWS = ("rows", "key_rows", "encoded_rows")
"""What a recorder keeps with one entry per patch."""


class ViewStore:
    """What is known of the views of some pictures, which the encoder sees as one batch.

    Args:
        total: how many views there are, of all pictures together.
        alike: of every view, the first with the same pixels: what is known of one is known of all that are alike.
            Default: no two are.
        whole: whether all are encoded in one run, so that pictures need not be told apart by views: a film's frames
            are one picture's then.

    ``wanted`` says which of them the next run of the tower takes, ``known`` which have been through it, or one that is
    alike.
    """

    def __init__(self, total: int, alike: Sequence[int] | None = None, *, whole: bool = False) -> None:
        self.total, self.whole = total, whole
        self.alike = tuple(range(total) if alike is None else alike)
        self.wanted: tuple[int, ...] = ()
        self.known: set[int] = set()
        self._tensors: dict[str, Tensor] = {}

    def missing(self, views: Iterable[int]) -> tuple[int, ...]:
        """What a run has to take for some views to be known, ascending; of views that are alike, the first."""
        return tuple(sorted({self.alike[view] for view in views if view not in self.known}))

    def done(self) -> None:
        """What was wanted is known."""
        self.known.update(self._given()[0])

    def pick(self, views: Tensor) -> Tensor:
        """(views, ...) to (wanted views, ...); what has another length is no batch of views and stays as it is."""
        if views.ndim == 0 or len(views) != self.total:
            return views
        return views.index_select(0, _numbers(self.wanted, views.device))

    def put(self, record: Recorder, features: Tensor) -> Tensor:
        """Takes in what a run gave.

        Args:
            record: of the run; what it holds per patch is numbered through all views afterwards.
            features: (wanted views, ...), as the tower or the projector gave them.

        Returns:
            (views, ...): those of all known views, zeros for the others.
        """
        for name in ROWS:
            given: list[Tensor] = getattr(record, name)
            if given:
                self._beside(name, torch.cat(given).unflatten(0, (len(self.wanted), -1)))
            if name in self._tensors:
                setattr(record, name, [self._tensors[name].flatten(0, 1)])
        return self._beside("features", features)

    def nothing(self) -> Tensor:
        """(0, ...): what a run of no view gives, where some are known."""
        return self._tensors["features"][:0]

    def taken_out(self, view: int) -> dict[str, Tensor]:
        """What is known of one view, by name; see ``put_back``."""
        return {name: known[view] for name, known in self._tensors.items()}

    def put_back(self, views: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Takes in what earlier stores knew of some views. All of them know the same of every view."""
        self.wanted = tuple(views)
        for name in next(iter(views.values()), ()):
            self._beside(name, torch.stack([known[name] for known in views.values()]))
        self.done()

    def _beside(self, name: str, given: Tensor) -> Tensor:
        known = self._tensors.get(name)
        places, sources = self._given()
        if sources != list(range(len(given))):
            given = given.index_select(0, _numbers(sources, given.device))
        if known is None:
            known = given.new_zeros(self.total, *given.shape[1:])
        # A new tensor: what was made of the last one stays as it is.
        # As the first was: a later question may come under autocast.
        self._tensors[name] = known.index_copy(0, _numbers(places, known.device), given.to(known))
        return self._tensors[name]

    def _given(self) -> tuple[list[int], list[int]]:
        """The views of which a run gives something, ascending, and as which of the wanted ones each goes."""
        number = {self.alike[view]: number for number, view in enumerate(self.wanted)}
        places = [view for view, first in enumerate(self.alike) if first in number]
        return places, [number[self.alike[view]] for view in places]


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


def among(image: EncodedImage, views: Collection[int]) -> EncodedImage:
    """A picture of which only some views are encoded: the tokens of the others are not there to choose from.

    Args:
        image: all of it, zeros where nothing is known.
        views: which are known, numbered as in its ``Geometry``; all: the image itself.
    """
    tokens, place = image.tokens, image.tokens.geometry
    count = len(place.grids)
    if len(set(views)) == count or image.slots is None:
        return image
    seen = torch.zeros(count, dtype=torch.bool, device="cpu")
    seen[list(views)] = True
    view = place.view.cpu()
    there = seen[view] if image.support is None else ~(image.support() & ~seen).any(dim=1)
    places = there.nonzero()[:, 0]
    here = places.to(tokens.features.device)

    def some(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.index_select(0, here.to(values.device))

    renumbered = seen.long().cumsum(0) - 1
    numbers = torch.where(there, there.long().cumsum(0) - 1, ABSENT)
    features = some(tokens.features)
    assert features is not None
    return replace(
        image,
        tokens=VisualTokens(
            features,
            Geometry(
                renumbered[view[places]].to(place.view.device),
                place.row[here],
                place.column[here],
                place.boxes[here],
                place.image_size,
                tuple(grid for grid, known in zip(place.grids, seen.tolist(), strict=True) if known),
                place.cropped,
            ),
            some(tokens.saliency),
            tokens.full_grid,
            keys=some(tokens.keys),
            encoded=some(tokens.encoded),
            total=len(tokens),
        ),
        slots=torch.where(image.slots >= 0, numbers[image.slots.clamp(min=0)], image.slots),
        whole=place,
        places=places,
    )


class Views:
    """The pictures of a call or a session, encoded as far as questions ask for them. For any thread.

    Args:
        encode: runs a family's ``encode`` on the views that a store wants; gives every picture as far as it is known.
        family: the model's.
        inputs: the call's, with the pixels.
        prompt: see ``Request``.
        known: of views by their place among all, what earlier stores knew of them.
        pixels: what the encoder gets of every view, where it is not the ``inputs``': see ``Family.pixels_of``. Views
            that are equal there are encoded once.
        at_once: whether all views are encoded now, in one run. Default: the base views are.

    ``pictures`` are, of each (under ``at_once``, of each frame of a film), the places of its views among all (see
    ``Family.views_of``), ``images`` what is known of it, and ``bases`` the same with the tokens of its base view alone.
    What a copy encodes later, it has the original's model encode.
    """

    def __init__(
        self,
        encode: Callable[[ViewStore], Sequence[EncodedImage]],
        family: Family,
        inputs: Mapping[str, Any],
        prompt: Tensor | None,
        known: Mapping[int, Mapping[str, Tensor]] | None = None,
        pixels: Sequence[Tensor] | None = None,
        at_once: bool = False,
    ) -> None:
        self.encode = encode
        self._lock = OwnLock()
        self.pictures: Sequence[tuple[int, ...]] = family.views_of(inputs, prompt)
        alike = alike_views(*(family.pixels_of(inputs) if pixels is None else pixels))
        self.store = ViewStore(sum(map(len, self.pictures)), alike, whole=at_once)
        if known:
            self.store.put_back(known)
        self.images: Sequence[EncodedImage] = ()
        first = self.all() if at_once else self.need([(0,)] * len(self.pictures))
        self.bases: Sequence[EncodedImage] = [among(image, (0,)) for image in first]

    @classmethod
    def of(cls, images: Sequence[EncodedImage]) -> Views:
        """Pictures that are encoded already, all views of them."""
        made = cls.__new__(cls)
        counts = [len(image.tokens.geometry.grids) for image in images]
        made._lock = OwnLock()
        made.pictures = [tuple(range(sum(counts[:n]), sum(counts[: n + 1]))) for n in range(len(counts))]
        made.store = ViewStore(sum(counts))
        made.store.known.update(range(made.store.total))
        made.images = images
        made.bases = [among(image, (0,)) for image in images]
        return made

    def need(self, wanted: Sequence[Iterable[int]]) -> Sequence[EncodedImage]:
        """Every picture, encoded at least as far as ``wanted``: by picture, views as numbered in its ``Geometry``.

        What is missing is encoded at once; nothing is encoded twice, nor what has the same pixels.
        """
        with self._lock:
            numbers = {views[view] for views, some in zip(self.pictures, wanted, strict=True) for view in some}
            missing = self.store.missing(numbers)
            if missing or not self.images:
                self.store.wanted = missing
                self.images = self.encode(self.store)
                self.store.done()  # only now: what fails half way is encoded again
            return self.images

    def showing(self, wanted: Sequence[tuple[int, Collection[int]]]) -> list[EncodedImage]:
        """For every question the picture of a number, with the tokens of some of its views; see ``need``."""
        union: list[set[int]] = [set() for _ in self.pictures]
        for number, some in wanted:
            union[number].update(some)
        known = self.need(union)
        return [among(known[number], some) for number, some in wanted]

    def all(self) -> Sequence[EncodedImage]:
        """Every picture with all of its views."""
        return self.need([range(len(views)) for views in self.pictures])


@untraced
def picked(values: Any) -> Any:
    """Of what is about to enter a tower, the views that the open recording wants; all where it wants all."""
    recorder = open_recorder()
    if recorder is None or recorder.views is None or not torch.is_tensor(values):
        return values
    return recorder.views.pick(values)


@untraced
def put_beside(output: Any) -> Any:
    """What a projector made of the views that the open recording wants, beside what is known of the others."""
    recorder = open_recorder()
    return output if recorder is None or recorder.views is None else recorder.views.put(recorder, output)


def picking(tower: nn.Module) -> Callable[..., Any]:
    """A forward for a vision tower that takes of all views those that the open recording wants."""
    forward = tower.forward

    def pick_views(*args: Any, **kwargs: Any) -> Any:
        return forward(*map(picked, args), **{name: picked(value) for name, value in kwargs.items()})

    return pick_views


def putting(projector: nn.Module) -> Callable[..., Any]:
    """``projecting``, for one whose output is taken apart into pictures right away: it gives all views, as ``picking``
    was given all."""
    forward = projecting(projector)

    def put_views(*args: Any, **kwargs: Any) -> Any:
        return put_beside(forward(*args, **kwargs))

    return put_views
