"""A picture with what was kept of it as a fragment of HTML: views to switch, scores to lay over, patches to point at.

The fragment shows the overlay by itself; with ``figure.css`` and ``figure.js`` in the page around it, it answers to the
pointer. It names nothing outside itself.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from foveate.looking_ahead import Pointing
from foveate.painting import faded, painted
from foveate.show import DIM, DISPLAY_SIDE, MAP_TITLES, MAX_ASPECT
from foveate.tokens import Selection
from foveate.webpage.outline import outline

QUALITY = 88
"""Of the JPEGs that a fragment holds."""


@cache
def asset(name: str) -> str:
    """The text of ``figure.css`` or ``figure.js``."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def figure(picture: Image.Image, selection: Selection, pointing: Pointing | None = None, *, label: str = "") -> str:
    """The fragment of one picture.

    Args:
        picture: as the selection was made on it, upright.
        selection: what stays of it.
        pointing: which word points at each patch; None: it is not told.
        label: what stands over it, plain text.
    """
    shown = _shown(picture)
    boxes = _boxes(selection, picture.size, shown.size)
    kept, view = selection.mask().cpu().numpy(), selection.geometry.view.cpu().numpy()
    layers = []
    for number, (name, views) in enumerate(_views(selection)):
        among = np.isin(view, views)
        path = outline(np.nan_to_num(painted(selection, kept, picture.size, shown.size, views)) > 0)
        image = _data_uri(faded(shown, picture.size, selection, views, DIM, outline=False))
        told = f"{int((kept & among).sum())} of {int(among.sum())} patches kept"
        layers.append(
            f'<g class="fv-layer" data-name="{escape(name)}" data-views="{json.dumps(views)}" data-told="{told}"'
            f'{"" if number == 0 else " hidden"}><image width="{shown.width}" height="{shown.height}" href="{image}"/>'
            f'<path class="fv-under" d="{path}"/><path class="fv-over" d="{path}"/></g>'
        )
    data = escape(json.dumps(_data(selection, boxes, kept, pointing), separators=(",", ":"), allow_nan=False))
    heading = f'<div class="fv-label">{escape(label)}</div>' if label else ""
    return (
        f'<div class="fv-figure" data-fv="{data}">{heading}<div class="fv-bar"></div>'
        f'<svg viewBox="0 0 {shown.width} {shown.height}" role="img" '
        f'aria-label="{escape(f"{label} {_views_told(selection)}".strip())}">{"".join(layers)}'
        f'<g class="fv-map"></g><rect class="fv-here" hidden/></svg>'
        f'<div class="fv-told">{_views_told(selection)}.{LEGEND}</div><div class="fv-patch" aria-live="polite"></div>'
        "</div>"
    )


LEGEND = ' <span class="fv-key"></span> kept <span class="fv-key fv-dropped"></span> dropped'


def _views_told(selection: Selection) -> str:
    missing = len(selection.geometry.grids) - len(selection.encoded_views)
    more = f", {missing} crops not encoded (striped)" if missing else ""
    return f"{len(selection)} of {selection.total} patch tokens kept{more}"


def _views(selection: Selection) -> list[tuple[str, list[int]]]:
    count = len(selection.geometry.grids)
    if count == 1:
        return [("the one view", [0])]
    crops = list(range(1, count))
    return [("all views", [0, *crops]), ("base view", [0]), (f"{len(crops)} crop{'s' * (count > 2)}", crops)]


def _data(selection: Selection, boxes: np.ndarray, kept: np.ndarray, pointing: Pointing | None) -> dict[str, Any]:
    """What the script tells of each patch, and colours by."""
    place = selection.geometry
    known: dict[str, Any] = {
        "boxes": boxes.flatten().tolist(),
        "view": place.view.tolist(),
        "row": place.row.tolist(),
        "column": place.column.tolist(),
        "kept": np.flatnonzero(kept).tolist(),
        "scores": {
            MAP_TITLES.get(name, name.replace("_", " ")): [_short(value) for value in score.float().tolist()]
            for name, score in selection.scores.items()
        },
    }
    if selection.encoded is not None:
        known["missing"] = (~selection.encoded).nonzero()[:, 0].tolist()
    if pointing is not None:
        known |= {"words": pointing.words, "word": pointing.word.tolist()}
        known["strength"] = [_short(value) for value in pointing.strength.tolist()]
    return known


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _shown(picture: Image.Image) -> Image.Image:
    """The picture at the size in which it is looked at; long ones are stretched, small ones enlarged."""
    width, height = picture.size
    scale, least = DISPLAY_SIDE / max(width, height), round(DISPLAY_SIDE / MAX_ASPECT)
    size = max(least, round(width * scale)), max(least, round(height * scale))
    enlarged = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale < 1 else enlarged)


def _boxes(selection: Selection, original: tuple[int, int], shown: Sequence[int]) -> np.ndarray:
    """(N, 4) int: every patch in pixels of what is shown."""
    boxes = selection.geometry.boxes_in(original[1], original[0]).cpu().numpy()
    scaled = boxes * ([shown[0] / original[0], shown[1] / original[1]] * 2)
    found: np.ndarray = np.rint(scaled).astype(int).clip(0, [*shown, *shown])
    return found


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
