"""Heat maps of where kept tokens lie: one row for each budget and kind of view, one panel for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foveate.evaluation.kept import EVERY, UNIFORM, Lying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPREAD = 4.0
"""A cell this many times as often kept as an even spread would, or as seldom, has the last colour of the scale."""


def plot_kept(maps: Sequence[Lying], title: str = "") -> Figure:
    """How often tokens are kept at every place, as a multiple of what ``uniform`` keeps of the same view on average.

    Returns:
        A matplotlib figure that no global state knows of.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(one.method for one in maps))
    views = [view for view in dict.fromkeys(one.view for one in maps) if view != EVERY] or [EVERY]
    rows = [(keep, view) for keep in {repr(one.keep): one.keep for one in maps}.values() for view in views]
    figure = Figure(figsize=(1.9 * len(names) + 1.3, 2.25 * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    norm, colours = LogNorm(1 / SPREAD, SPREAD, clip=True), colormaps["PuOr_r"].with_extremes(bad="#cccccc")
    found = {(one.method, repr(one.keep), one.view): one for one in maps}
    for line, (keep, view) in zip(grid, rows, strict=True):
        even = found[UNIFORM, repr(keep), view].share.value
        for axes, name in zip(line, names, strict=True):
            one = found[name, repr(keep), view]
            shares = np.ma.masked_invalid(np.array(one.cells)) / even
            axes.imshow(np.ma.maximum(shares, 1e-9), cmap=colours, norm=norm, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{name}\n{_told(one)}", fontsize=7.5, loc="left", pad=3)
        line[0].set_ylabel(f"keep {keep:g}" if view == EVERY else f"keep {keep:g}, {view}", fontsize=8.5)
    ticks = [1 / SPREAD, 1 / 2, 1, 2, SPREAD]
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=grid.ravel().tolist(), fraction=0.025, pad=0.01)
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label("kept, times what uniform keeps", fontsize=8)
    figure.suptitle(title or "Where kept tokens lie", fontsize=11, x=0.01, ha="left")
    return figure


def _told(one: Lying) -> str:
    parts = (("edge", one.edge), ("centre", one.centre))
    return ", ".join(f"{name} {100 * part.value:.0f} %" for name, part in parts if not math.isnan(part.value))
