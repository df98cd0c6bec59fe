"""What the API server tells the worker about an image or a video, beside its pixels: tensors among vLLM's multi-modal
fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.crops import Crops
from foveate.models.encoded import Kind
from foveate.tokens import Keep

TEXT = "foveate_text_ids"
KEEP = "foveate_keep"
METHOD = "foveate_method"
PICTURE = "foveate_picture"
CROPS = "foveate_crops"
LAYOUT = "foveate_layout"
FIELDS = (TEXT, KEEP, METHOD, PICTURE, CROPS, LAYOUT)
KINDS: tuple[Kind, ...] = ("image", "video")
DIGITS = 15
"""Hexadecimal digits of a hash that one int64 holds without its sign."""


def field(name: str, kind: Kind) -> str:
    """What one of ``FIELDS`` is called for images or videos: to vLLM a field belongs to one of the two."""
    return name if kind == "image" else name.replace("foveate_", f"foveate_{kind}_", 1)


def kind_of(given: Mapping[str, Any]) -> Kind | None:
    """Which of the two the fields among a batch's arguments are about; None: there are none."""
    return next((kind for kind in KINDS if field(TEXT, kind) in given), None)


@dataclass(frozen=True)
class ImageRequest:
    """What a request asks of one image, or of one video.

    Args:
        text: ids of the text that guides the selection; empty where nothing reads it.
        keep: what stays of the image.
        method: which of ``Policy.names``.
        picture: hexadecimal hash of the picture alone, by which its features are cached: the worker gets the first 30
            digits. Empty: they are not cached.
        crops: which of its crops are encoded; None: all.
        layout: where marks stand between an image's tokens, or times between a video's frames: what is written for it
            when all are kept, the marks' ids and -1 for every token. Empty: there are none.
    """

    text: tuple[int, ...]
    keep: Keep
    method: int
    picture: str
    crops: Crops | None = None
    layout: tuple[int, ...] = ()


def pack(requests: Sequence[ImageRequest], kind: Kind = "image") -> dict[str, Any]:
    """The fields for some images or videos, one entry each. A budget says by its second number whether it counts
    tokens."""
    keeps = [[float(one.keep.value), float(isinstance(one.keep.value, int))] for one in requests]
    halves = [[int(one.picture[i : i + DIGITS] or "0", 16) for i in (0, DIGITS)] for one in requests]
    found = {
        TEXT: [torch.tensor(one.text, dtype=torch.int64, device="cpu") for one in requests],
        KEEP: torch.tensor(keeps, dtype=torch.float64, device="cpu"),
        METHOD: torch.tensor([one.method for one in requests], dtype=torch.int64, device="cpu"),
        PICTURE: torch.tensor(halves, dtype=torch.int64, device="cpu"),
        LAYOUT: [torch.tensor(one.layout, dtype=torch.int64, device="cpu") for one in requests],
        CROPS: [torch.tensor(list(str(one.crops or "").encode()), dtype=torch.uint8, device="cpu") for one in requests],
    }
    return {field(name, kind): values for name, values in found.items()}


def unpack(given: Mapping[str, Any], kind: Kind = "image") -> list[ImageRequest]:
    """Reads what ``pack`` wrote, as vLLM batches it: stacked where the entries are alike, else listed."""
    found = []
    for text, keep, method, picture, crops, layout in zip(*(given[field(name, kind)] for name in FIELDS), strict=True):
        value, counts = keep.tolist()
        halves = picture.tolist()
        name = "".join(f"{half:0{DIGITS}x}" for half in halves) if any(halves) else ""
        kept = Keep(int(value) if counts else value)
        spelled = Crops.of(bytes(crops.tolist()).decode() or None)
        found.append(ImageRequest(tuple(text.tolist()), kept, int(method), name, spelled, tuple(layout.tolist())))
    return found
