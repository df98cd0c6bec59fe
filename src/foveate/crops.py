"""Which crops of a picture are encoded at all: the base view goes first and says which of them the question points at.

Between locating images and choosing tokens. It sees a picture's base view and the text, and never a method's inside; a
method gets the tokens of what was encoded, and does not know that there could have been more.
"""

from __future__ import annotations

import math
import numbers
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from foveate.functional import crops_holding, mass_in_boxes, mixed_masses, relevance_to_text
from foveate.guiding import ImageSpan
from foveate.models.encoded import EncodedImage
from foveate.models.view_store import Views
from foveate.tokens import Geometry, Selection, TextTokens

By = Literal["both", "text", "saliency", "random"]

WORDS = ("auto", "distinct")
"""Amounts that are no numbers."""


@dataclass(frozen=True)
class Crops:
    """How many of a picture's crops are encoded beside its base view, and which.

    The base view is encoded first. Every crop gets the mass of the base view's saliency that lies in it, and that of
    its relevance to the text: of every token the largest cosine to a word, as AdaFV (arXiv 2501.09532) puts words
    together, on CDPruner's scale from 0 to 1 (arXiv 2506.10967), squared. (The mass of AdaFV's softmax found what was
    asked about less often: docs/results.md.) The two are mixed anew for every picture and question (see
    ``foveate.functional.mixed_masses``), and the heaviest crops are encoded. A method then chooses its K tokens among
    what was encoded; K still counts the tokens of the whole picture.

    Args:
        amount: a fraction of each picture's crops, in (0, 1], rounded up; an int >= 0, crops per picture (0: the base
            view alone); ``"auto"``: as many as hold ``share`` of the mass; or ``"distinct"``: all, in one run, of
            those with the same pixels one. ``1.0`` encodes all, as stock does. Default 0.5.
        by: ``"both"``, ``"text"`` or ``"saliency"`` alone, or ``"random"``, a control that depends on ``seed``, the
            number of crops and the guiding text alone. Without any text, saliency decides. Default ``"both"``.
        share: of the mass that the crops of ``"auto"`` hold, in (0, 1]. Default 0.8.
        seed: of ``"random"``, any int. Default 0.

    Raises:
        TypeError: an ``amount``, ``share`` or ``seed`` that is no number.
        ValueError: values outside of these.
    """

    amount: float | int | str = 0.5
    by: By = "both"
    share: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        amount = self.amount
        if not isinstance(amount, str) or amount not in WORDS:
            if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
                raise TypeError(
                    f'crops must be a fraction in (0, 1], an int >= 0, "auto" or "distinct", got {amount!r}'
                )
            whole = isinstance(amount, numbers.Integral)
            if not (amount >= 0 if whole else 0.0 < amount <= 1.0):  # NaN fails both comparisons
                raise ValueError(f"crops={amount!r} must be a fraction of the crops in (0, 1], or an int >= 0 of them")
            # A numpy scalar counts as what it prints as, as in ``Keep``: 0.1 of 10 crops is 1.
            number = float(str(amount)) if isinstance(amount, np.floating) else float(amount)
            object.__setattr__(self, "amount", int(amount) if whole else number)
        if self.by not in get_args(By):
            raise ValueError(f"crops by {self.by!r} are not known; known: {', '.join(get_args(By))}")
        if isinstance(self.share, bool) or not isinstance(self.share, numbers.Real):
            raise TypeError(f"share must be a number in (0, 1], got {self.share!r}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share={self.share!r} must be in (0, 1]")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an int, got {self.seed!r}")
        if amount == "auto" and self.by == "random":
            raise ValueError('crops="auto" go by their mass, and by="random" has none: give a fraction or a number')
        if amount == "distinct" and self.by != "both":
            raise ValueError(f'crops="distinct" are all of them, with nothing to choose by: leave by={self.by!r} out')

    @classmethod
    def of(cls, given: Crops | float | int | str | None) -> Crops | None:
        """What people write: a number, ``"auto"``, ``"distinct"``, a text such as ``"0.5:by=random"``; None, as
        ``1.0``, for all crops.

        Raises:
            TypeError, ValueError: none of these; the message says what may be written.
        """
        if isinstance(given, str):
            given = _spelled(given)
        if given is not None and not isinstance(given, Crops):
            given = cls(given)
        whole = given is None or (isinstance(given.amount, float) and given.amount == 1.0)
        return None if whole else given

    def __str__(self) -> str:
        usual = Crops(self.amount)
        others = [one.name for one in fields(self) if getattr(self, one.name) != getattr(usual, one.name)]
        return ":".join([str(self.amount), *(f"{name}={getattr(self, name)}" for name in others)])

    @property
    def ranks(self) -> bool:
        """Whether the base view goes first and says something of the crops; if not, all are encoded at once."""
        return self.amount != "distinct"

    @property
    def reads_saliency(self) -> bool:
        """Whether the base view's saliency may be read: where a prompt has no text, it decides."""
        return self.ranks and self.by != "random"

    @property
    def reads_text(self) -> bool:
        """Whether the question is read."""
        return self.ranks and self.by != "saliency"

    def count(self, crops: int) -> int | None:
        """How many of so many crops are encoded; None where the masses say it."""
        if isinstance(self.amount, str):
            return None if self.ranks else crops
        if isinstance(self.amount, int):
            return min(self.amount, crops)
        return min(max(1, math.ceil(self.amount * crops - 1e-9)), crops)

    def weighed(self, base: EncodedImage, text: TextTokens | None, ids: Tensor | None) -> Tensor | None:
        """What the crops of a picture weigh.

        Args:
            base: the picture with the tokens of its base view alone.
            text: what guides the choice, None without.
            ids: (T,) int64 on the CPU, the same text.

        Returns:
            (C,) float32, the heavier the sooner; None where it has no crops.
        """
        assert base.whole is not None
        if not self.ranks:
            return torch.zeros(len(base.whole.grids) - 1, device="cpu")
        regions = regions_of(base.whole)
        if not len(regions):
            return None
        if self.by == "random":
            salt = f"{self.seed} {len(regions)} {[] if ids is None else ids.tolist()}"
            generator = torch.Generator("cpu").manual_seed(zlib.crc32(salt.encode()))
            return torch.rand(len(regions), generator=generator, device="cpu")
        tokens, boxes = base.tokens, base.tokens.geometry.boxes
        masses = []
        if tokens.saliency is not None and (self.by != "text" or text is None):
            masses.append(mass_in_boxes(tokens.saliency.to(boxes.device), boxes, regions))
        if self.reads_text and text is not None:
            relevance = relevance_to_text(text.embeddings, tokens.features, words="max").square()
            masses.append(mass_in_boxes(relevance.to(boxes.device), boxes, regions))
        if not masses:
            raise ValueError(
                "the vision tower shows no saliency and the prompt has no text: nothing says which crops to encode. "
                "Leave crops out, or ask a question"
            )
        return masses[0] if len(masses) == 1 else mixed_masses(*masses)

    def chosen(self, weights: Sequence[Tensor | None]) -> list[tuple[int, ...]]:
        """``heaviest`` crops of every picture, as ``weighed`` gives their weights."""
        return heaviest([(self, one) for one in weights])


def heaviest(weighed: Sequence[tuple[Crops, Tensor | None]]) -> list[tuple[int, ...]]:
    """Of every picture, the crops to encode, as its ``Geometry`` numbers views (the first crop is 1), ascending.

    Waits for the device once.

    Args:
        weighed: how they are chosen, and what they weigh; None for a picture without crops.
    """
    orders, counts = [], []
    for crops, weights in weighed:
        if weights is not None:
            orders.append(weights.sort(descending=True, stable=True).indices)
            count = crops.count(len(weights))
            counts.append(crops_holding(weights, crops.share) if count is None else torch.tensor(count, device="cpu"))
    if not orders:
        return [()] * len(weighed)
    where = orders[0].device
    read = iter(torch.cat([part.flatten().to(where) for part in (*counts, *orders)]).tolist())
    many = [next(read) for _ in counts]
    taken = iter([[next(read) for _ in order][:count] for order, count in zip(orders, many, strict=True)])
    return [() if one is None else tuple(sorted(crop + 1 for crop in next(taken))) for _, one in weighed]


def regions_of(place: Geometry) -> Tensor:
    """(C, 4) float32: what every crop of a picture sees, (x0, y0, x1, y1) in pixels of ``image_size``."""
    views = len(place.grids)
    edges = torch.cat([place.boxes[:, :2], -place.boxes[:, 2:]], dim=1)
    where = place.view[:, None].expand(-1, 4)
    seen = edges.new_full((views, 4), math.inf).scatter_reduce(0, where, edges, "amin")[1:]
    seen = torch.cat([seen[:, :2], -seen[:, 2:]], dim=1)
    return torch.where(torch.isfinite(seen), seen, 0.0)  # of a crop that is all padding, nothing


def encoded_tokens(selection: Selection) -> int:
    """How many of a picture's patch tokens the vision tower encoded. Reads it from the device."""
    return selection.total if selection.encoded is None else int(selection.encoded.sum())


def route(
    crops: Crops,
    views: Views,
    located: Sequence[tuple[EncodedImage, ImageSpan]],
    asked: Callable[[EncodedImage, ImageSpan], tuple[TextTokens | None, Tensor | None]],
) -> list[EncodedImage]:
    """The images of a call with the tokens of their base views and of the crops that are chosen for them.

    Args:
        crops: how they are chosen.
        views: the call's pictures, in order; those of a session are asked about by every prompt.
        located: every image of the call with its place, in prompt order. Videos stay as they are.
        asked: the text that guides an image's choice and its (T,) ids; None where there is none.

    Returns:
        One for each of ``located``; what none of their questions had asked for before is encoded, at once.
    """
    pictures = cycle(range(len(views.pictures)))
    numbers = [next(pictures) if image.kind == "image" else None for image, _ in located]
    with torch.no_grad():
        weights = [
            None
            if number is None or views.bases[number].whole is None
            else crops.weighed(views.bases[number], *asked(image, span))
            for number, (image, span) in zip(numbers, located, strict=True)
        ]
        chosen = zip(numbers, crops.chosen(weights), strict=True)
    shown = iter(views.showing([(number, (0, *some)) for number, some in chosen if number is not None]))
    return [image if number is None else next(shown) for number, (image, _) in zip(numbers, located, strict=True)]


def _spelled(given: str) -> Crops | float | int | str:
    amount, *options = given.strip().split(":")
    known = {one.name for one in fields(Crops)} - {"amount"}
    read: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in known:
            raise ValueError(f"crops {given!r}: options are {', '.join(sorted(known))}, written as 0.5:by=text")
        if name in read:
            raise ValueError(f"crops {given!r}: {name} is given twice")
        try:
            read[name] = value if name == "by" else int(value) if name == "seed" else float(value)
        except ValueError:
            raise ValueError(f"crops {given!r}: {name} must be a number, got {value!r}") from None
    if amount == "all":
        return Crops(1.0, **read)
    if amount not in WORDS:
        try:
            number: float | int = int(amount) if amount.lstrip("+-").isdigit() else float(amount)
        except ValueError:
            raise ValueError(
                f'crops {given!r}: write a fraction such as 0.5, a number of crops such as 2, "auto", "distinct" '
                'or "all"'
            ) from None
        return Crops(number, **read)
    return Crops(amount, **read)
