"""What the API server tells the worker about an image, beside its pixels: tensors among vLLM's multi-modal fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.tokens import Keep

TEXT = "foveate_text_ids"
KEEP = "foveate_keep"
METHOD = "foveate_method"
IMAGE = "foveate_image"
FIELDS = (TEXT, KEEP, METHOD, IMAGE)


@dataclass(frozen=True)
class Ask:
    """What is asked about one image.

    Args:
        text: ids of the text that guides the selection.
        keep: what stays of the image.
        method: which of ``Policy.names``.
        image: hexadecimal hash of the picture alone; empty: it is not to be remembered.
    """

    text: tuple[int, ...]
    keep: Keep
    method: int
    image: str


def pack(asks: Sequence[Ask]) -> dict[str, Any]:
    """The fields for some images, one entry each. A budget says by its second number whether it counts tokens."""
    keeps = [[float(ask.keep.value), float(isinstance(ask.keep.value, int))] for ask in asks]
    halves = [[int(ask.image[i : i + 15] or "0", 16) for i in (0, 15)] for ask in asks]  # 60 bits each: no sign
    return {
        TEXT: [torch.tensor(ask.text, dtype=torch.int64) for ask in asks],
        KEEP: torch.tensor(keeps, dtype=torch.float64),
        METHOD: torch.tensor([ask.method for ask in asks], dtype=torch.int64),
        IMAGE: torch.tensor(halves, dtype=torch.int64),
    }


@dataclass(frozen=True)
class Asked:
    """The same in the worker.

    Args:
        text: (T,) int64 on the CPU.
        keep, method: as in ``Ask``.
        image: what the image is remembered by, None when it is not to be.
    """

    text: Tensor
    keep: float | int
    method: int
    image: tuple[int, ...] | None


def unpack(given: Mapping[str, Any]) -> list[Asked]:
    """Reads what ``pack`` wrote, as vLLM batches it: stacked where the entries are alike, else listed."""
    found = []
    for text, keep, method, image in zip(*(given[name] for name in FIELDS), strict=True):
        value, counts = keep.tolist()
        key = tuple(image.tolist())
        found.append(Asked(text, int(value) if counts else value, int(method), key if any(key) else None))
    return found
