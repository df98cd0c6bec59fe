"""What a method kept, on the picture's own pixels: an overlay, and a figure with the maps it chose from.

``overlay`` needs Pillow and numpy only; ``figure`` and ``save`` need matplotlib.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from foveate.colour_scale import scale, told_apart
from foveate.crops import encoded_tokens
from foveate.painting import DARK, LIGHT, faded, missing, painted, striped
from foveate.pruners.base import SALIENCY, TEXT_TO_IMAGE
from foveate.tokens import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MAP_TITLES = {SALIENCY: "visual saliency", TEXT_TO_IMAGE: "text-to-image attention"}
DISPLAY_SIDE = 720
"""Longest side of a picture in a figure, pixels."""
MAX_ASPECT = 5.0
"""A longer picture is stretched to this in figures, so that there is something to see."""
DIM = 0.75
MAGMA = "magma"
NOT_ENCODED = "not encoded"


def overlay(
    image: Image.Image,
    selection: Selection,
    *,
    views: Sequence[int] | None = None,
    dim: float = DIM,
    outline: bool = True,
) -> Image.Image:
    """The picture with kept patches clear, the others faded to grey, and an outline around what was kept: a dark line
    and a yellow one, of which one reads on any background. The lines lie on what was dropped; kept pixels are as ever.

    Where a crop was not encoded there are grey stripes: nothing was there to be kept or dropped.

    Args:
        image: the picture the selection was made on, upright, any size.
        selection: what stays of it.
        views: show only patches of these views (0 is the base view, crops follow); default all. A spot is clear when
            any of these views keeps a patch over it, striped where none does and one was not encoded.
        dim: how far the others fade, in [0, 1].
        outline: whether there is one.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: ``dim`` outside [0, 1], or a view that the selection does not have.
    """
    if not 0.0 <= dim <= 1.0:
        raise ValueError(f"dim must be in [0, 1], got {dim!r}")
    known = len(selection.geometry.grids)
    if views is not None and not all(0 <= view < known for view in views):
        raise ValueError(f"views {list(views)} are not among the {known} of this image")
    return faded(image.convert("RGB"), image.size, selection, views, dim, outline)


def figure(
    images: Image.Image | Sequence[Image.Image],
    selections: Selection | Sequence[Selection],
    *,
    question: str | None = None,
    answer: str | None = None,
    method: str | None = None,
) -> Figure:
    """Kept patches and the maps behind the choice: a row for the base view and one for the crops, for every image.

    A map has one colour scale over all views, as the method compared them; one that is nearly flat takes little of it.
    Scores that the method did not read have no panel. Crops that were not encoded are striped, and say so. Below stands
    what outline, grey and stripes mean.

    Args:
        images: the pictures, upright.
        selections: one per picture.
        question, answer, method: for the title.

    Returns:
        A matplotlib figure that no global state knows of.

    Raises:
        ValueError: not as many images as selections, or none.
        ModuleNotFoundError: matplotlib is not installed.
    """
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    chosen = [selections] if isinstance(selections, Selection) else list(selections)
    if not pictures or len(pictures) != len(chosen):
        raise ValueError(f"one selection per image, at least one: got {len(pictures)} images, {len(chosen)} selections")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'foveate[cli]'") from None

    columns = 1 + max(len(selection.scores) for selection in chosen)
    panel = 3.7 if columns > 1 else 6.0  # inches
    heights = [
        len(_rows(selection)) * (0.88 * panel * _shown(picture).height / _shown(picture).width + 0.34)
        + 0.3 * (len(chosen) > 1)
        for picture, selection in zip(pictures, chosen, strict=True)
    ]
    title = _title(question, answer, method, chosen, letters=int(columns * panel * 11.5))
    height = sum(heights) + 0.5 + 0.2 * (1 + title.count("\n"))
    whole = Figure(figsize=(columns * panel, height), layout="constrained")
    whole.suptitle(title, fontsize=11, x=0.012, ha="left")
    _legend(whole, any(selection.encoded is not None for selection in chosen))
    blocks = whole.subfigures(len(chosen), 1, height_ratios=heights, squeeze=False)[:, 0]
    for number, (block, picture, selection) in enumerate(zip(blocks, pictures, chosen, strict=True), 1):
        if len(chosen) > 1:
            block.suptitle(f"image {number}: {_count([selection])}", fontsize=10, x=0.012, ha="left", color="#555555")
        _draw(block, picture, selection, columns)
    return whole


def save(
    path: str | os.PathLike[str],
    images: Image.Image | Sequence[Image.Image],
    selections: Selection | Sequence[Selection],
    *,
    question: str | None = None,
    answer: str | None = None,
    method: str | None = None,
) -> None:
    """Writes ``figure(...)`` to a file; the suffix says how (png, jpg, webp, pdf, svg).

    Raises:
        ValueError: as for ``figure``, or a suffix that cannot be written.
        FileNotFoundError: the folder does not exist.
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_path(path)
    figure(images, selections, question=question, answer=answer, method=method).savefig(path, dpi=130)


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises what ``save`` would raise for this path, before there is anything to save."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'foveate[cli]'")
    target = Path(path)
    known = ("png", "jpg", "jpeg", "webp", "pdf", "svg")
    if target.suffix.lower().lstrip(".") not in known:
        raise ValueError(f"cannot write a figure to {target}: give it one of the suffixes {', '.join(known)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")


def _draw(block: SubFigure, picture: Image.Image, selection: Selection, columns: int) -> None:
    small = _shown(picture)
    rows = _rows(selection)
    encoded = None if selection.encoded is None else selection.encoded.cpu().numpy()
    grid = block.subplots(len(rows), columns, squeeze=False)
    for line, (label, views) in zip(grid, rows, strict=True):
        kept = int(np.isin(selection.view.cpu().numpy(), views).sum())
        among = np.isin(selection.geometry.view.cpu().numpy(), views)
        counted = f"{kept} of {int(among.sum())} kept"
        counted += "" if encoded is None else f", {int((among & encoded).sum())} encoded"
        line[0].imshow(np.asarray(faded(small, picture.size, selection, views, DIM)))
        _namemissing(line[0], small, picture.size, selection, views)
        _frame(line[0], f"{label}: {counted}")
        for axes in line[1 + len(selection.scores) :]:
            axes.set_axis_off()
        for axes, (name, score) in zip(line[1:], selection.scores.items(), strict=False):
            values = score.detach().float().cpu().numpy()
            _draw_map(axes, small, picture.size, selection, values, views)
            _namemissing(axes, small, picture.size, selection, views)
            _frame(axes, f"{MAP_TITLES.get(name, name.replace('_', ' '))}, {label}")


def _draw_map(
    axes: Axes,
    small: Image.Image,
    original: tuple[int, int],
    selection: Selection,
    values: np.ndarray,
    views: Sequence[int],
) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm

    low, high, marks = scale(values[~np.isnan(values)])
    # Attention spans orders of magnitude: on a linear scale all but the peaks would be black.
    norm = PowerNorm(0.5, vmin=low, vmax=high)
    values = painted(selection, values, original, small.size, views)
    seen = ~np.isnan(values)
    colours = colormaps[MAGMA](np.asarray(norm(np.where(seen, values, low))))[..., :3]
    grey = np.asarray(small.convert("L"), dtype=np.float32)[..., None] / 255.0
    absent = missing(selection, original, small.size, views)
    around = np.where(absent[..., None], striped(np.asarray(small, dtype=np.float32)) / 255.0, 1.0)
    axes.imshow(np.where(seen[..., None], 0.8 * colours + 0.2 * grey, around))
    bar = axes.figure.colorbar(ScalarMappable(norm, MAGMA), ax=axes, fraction=0.04, pad=0.015)
    bar.set_ticks(marks, labels=told_apart(marks))
    bar.ax.tick_params(labelsize=6, length=2)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def _legend(whole: Figure, stripes: bool) -> None:
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    dark, light = (f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in (DARK, LIGHT))
    around = [withStroke(linewidth=3.5, foreground=dark)]
    handles = [
        Patch(facecolor="white", edgecolor=light, linewidth=1.5, path_effects=around, label="kept"),
        Patch(facecolor="#bbbbbb", label="dropped"),
    ]
    if stripes:
        handles.append(Patch(facecolor="#cdcdcd", edgecolor="#8a8a8a", linewidth=0, hatch="/////", label=NOT_ENCODED))
    whole.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5, handlelength=1.6)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8.5, loc="left", pad=3, color="#333333")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor("#bbbbbb")
        spine.set_linewidth(0.6)


def _rows(selection: Selection) -> list[tuple[str, list[int]]]:
    views = len(selection.geometry.grids)
    if views == 1:
        return [("the one view", [0])]
    return [("base view", [0]), (f"{views - 1} crops", list(range(1, views)))]


def _shown(picture: Image.Image) -> Image.Image:
    """The picture at a size for a figure, never thinner than ``MAX_ASPECT``; small ones are enlarged."""
    width, height = picture.size
    scale = DISPLAY_SIDE / max(width, height)
    least = round(DISPLAY_SIDE / MAX_ASPECT)
    size = max(least, round(width * scale)), max(least, round(height * scale))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST if scale > 4 else None
    return picture.convert("RGB").resize(size, method or Image.Resampling.BICUBIC)


def _namemissing(
    axes: Axes, small: Image.Image, original: tuple[int, int], selection: Selection, views: Sequence[int]
) -> None:
    """Says "not encoded" in the middle of every view that was not."""
    if selection.encoded is None:
        return
    boxes = selection.geometry.boxes_in(original[1], original[0]).cpu().numpy()
    boxes = boxes * ([small.width / original[0], small.height / original[1]] * 2)
    view = selection.geometry.view.cpu().numpy()
    for number in sorted(set(views) - set(selection.encoded_views)):
        ours = boxes[view == number]
        if len(ours):
            middle = (ours[:, :2].min(0) + ours[:, 2:].max(0)) / 2
            style = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "boxstyle": "round,pad=0.2"}
            x, y = map(float, middle)
            axes.text(x, y, NOT_ENCODED, fontsize=6.5, color="#333333", ha="center", va="center", bbox=style)


def _count(selections: Sequence[Selection], method: str | None = None) -> str:
    kept, total = sum(map(len, selections)), sum(selection.total for selection in selections)
    told = f"{kept} of {total} visual tokens kept ({100 * kept / total:.3g} %){f' by {method}' if method else ''}"
    if any(selection.encoded is not None for selection in selections):
        told += f", {sum(map(encoded_tokens, selections))} encoded"
    return told


def _title(
    question: str | None, answer: str | None, method: str | None, selections: Sequence[Selection], letters: int
) -> str:
    parts = []
    if question is not None:
        parts.append(f"Q: {question}")
    if answer is not None:
        parts.append(f"A: {answer or '(empty)'}")
    parts.append(_count(selections, method))
    # A dollar sign would start matplotlib's mathematics.
    lines = [line for part in parts for line in textwrap.wrap(part, letters)[:4]]
    return "\n".join(lines).replace("$", r"\$")
