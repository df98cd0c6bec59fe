"""Maps say where kept tokens lie, on pictures and views of any size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.evaluation import analysis
from foveate.evaluation.documents import DOCUMENTS
from foveate.evaluation.kept import BASE, CROPS, EVERY, GRID, Kept, Where
from foveate.evaluation.plots_of_kept import plot_kept
from foveate.evaluation.runner import factory
from foveate.tokens import Geometry, Selection
from tests import checkpoint
from tests.dynamic import UNITS, pair, picture
from tests.test_show import grid


@dataclass(frozen=True)
class Asked:
    image: str
    question: str


@dataclass
class Top(foveate.Pruner):
    """Keeps the first tokens: the uppermost rows of a picture of one view."""

    name = "top"

    def choose(self, visual: Any, text: Any, budget: int) -> foveate.pruners.Choice:
        return foveate.pruners.Choice(torch.arange(budget))


def made(views: list[tuple[int, int, tuple[float, float, float, float]]], kept: list[int]) -> Selection:
    """Of a 40 x 20 picture cut into views of (rows, columns, box)."""
    tokens = torch.tensor(
        [token for n, (rows, columns, box) in enumerate(views) for token in grid(n, rows, columns, box)]
    )
    places = (tokens[:, column].long() for column in range(3))
    geometry = Geometry(*places, tokens[:, 3:].float(), (20, 40), tuple((rows, columns) for rows, columns, _ in views))
    return Selection(torch.tensor(kept), geometry)


def pixel_by_pixel(selection: Selection, size: tuple[int, int], view: Callable[[int], bool]) -> np.ndarray:
    """The kept part of every cell, counted on 10 x 10 points of it."""
    places = (np.arange(10 * GRID) + 0.5) / (10 * GRID)
    hits, stays = np.zeros((2, len(places), len(places)))
    views = selection.geometry.view.tolist()
    for box, kept, number in zip(
        selection.geometry.boxes_in(*size[::-1]), selection.mask().tolist(), views, strict=True
    ):
        x0, y0, x1, y1 = (box / torch.tensor([*size, *size])).tolist()
        there = ((places >= y0) & (places < y1))[:, None] & ((places >= x0) & (places < x1)) & view(number)
        hits += there
        stays += there & kept
    cells = (hits.reshape(GRID, 10, GRID, 10).sum((1, 3)), stays.reshape(GRID, 10, GRID, 10).sum((1, 3)))
    return np.divide(cells[1], cells[0], out=np.full((GRID, GRID), np.nan), where=cells[0] > 0)


@pytest.mark.parametrize(
    "views, kept",
    [
        ([(4, 6, (0, 0, 40, 20))], [0, 7, 8, 23]),
        ([(5, 5, (0, 0, 40, 20)), (5, 5, (0, 0, 20, 20)), (5, 5, (20, 0, 40, 20))], [0, 4, 12, 13, 15, 31, 37, 61]),
        ([(5, 7, (10, 0, 30, 20))], [3, 17, 30]),  # the sides are not seen
    ],
    ids=["one view", "crops", "a part"],
)  # fmt: skip
def test_cells_are_counted_by_what_covers_them(views: Any, kept: list[int]) -> None:
    selection = made(views, kept)
    where = Where.of(selection, (80, 40))
    mask = selection.mask().numpy()
    for name, among in where.views.items():
        asked = {EVERY: lambda view: True, BASE: lambda view: view == 0, CROPS: lambda view: view > 0}[name]
        share, edge, centre, *cells = where.shares(mask, among)
        expected = pixel_by_pixel(selection, (80, 40), asked)
        assert (np.isnan(expected) == np.isnan(np.reshape(cells, (GRID, GRID)))).all()
        np.testing.assert_allclose(np.reshape(cells, (GRID, GRID)), expected, atol=0.06)  # of 100 points
        boxes = selection.geometry.boxes.numpy() / [40, 20, 40, 20]
        border = [min((a + c) / 2, (b + d) / 2, 1 - (a + c) / 2, 1 - (b + d) / 2) for a, b, c, d in boxes]
        ours = [n for n in range(len(mask)) if among[n]]
        assert share == np.mean([mask[n] for n in ours])
        assert edge == pytest.approx(np.mean([mask[n] for n in ours if border[n] < 1 / 8]))
        assert centre == pytest.approx(np.mean([mask[n] for n in ours if border[n] > 1 / 4]))
    assert set(where.views) == ({EVERY} if len(views) == 1 else {EVERY, BASE, CROPS})


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_pictures_of_different_sizes_share_a_map(name: str) -> None:
    """Of a model of dynamic resolution: what keeps the first half keeps the upper half of whatever picture."""
    model, processor = pair(name)
    kept = Kept({"uniform": factory("uniform"), "top": lambda keep, number: Top(keep=keep)}, [0.5])
    for number, units in enumerate([(7, 4), (4, 8), (5, 6)]):
        size = (UNITS[name] * units[0], UNITS[name] * units[1])
        shown = picture(number, *size)
        session = foveate.look(model, processor, shown)
        kept.read(session, [Asked(f"{number}.png", "Is there a cat?"), Asked(f"{number}.png", "How many?")], size)  # type: ignore[list-item]
    uniform, top = kept.summarise()
    assert (uniform.method, top.method, top.view) == ("uniform", "top", EVERY)
    assert top.share.value == pytest.approx(0.5) and top.share.count == 6
    cells = np.array(top.cells)
    assert cells.shape == (GRID, GRID) and (cells[: GRID // 2] > 0.99).all() and (cells[GRID // 2 :] < 0.01).all()
    assert np.mean(uniform.cells) == pytest.approx(0.5, abs=0.05)


def test_a_figure_has_a_panel_for_every_method_budget_and_view(tmp_path: Path) -> None:
    model, processor = checkpoint.model(), checkpoint.processor()
    shown = picture(0, 90, 50)
    kept = Kept({name: factory(name) for name in ("uniform", "saliency", "random")}, [0.5, 3])
    kept.read(foveate.look(model, processor, shown), [Asked("a.png", "Is there a cat?")], (90, 50))  # type: ignore[list-item]
    maps = kept.summarise()
    assert [(one.method, one.keep) for one in maps[::3]] == [
        ("uniform", 0.5), ("saliency", 0.5), ("random", 0.5), ("uniform", 3), ("saliency", 3), ("random", 3),
    ]  # fmt: skip
    figure = plot_kept(maps, "title")
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert len(titles) == 12 and titles[1].startswith("saliency\n")
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel().startswith("keep")] == [
        "keep 0.5, base view", "keep 0.5, crops", "keep 3, base view", "keep 3, crops",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="uniform is what the others are compared with"):
        Kept({"saliency": factory("saliency")}, [0.5])
    with pytest.raises(ValueError, match="which methods keep how much"):
        Kept({}, [0.5])


def test_documents_are_analysed_on_a_model_of_dynamic_resolution(tmp_path: Path) -> None:
    """Scores and maps, from files to figures; every kind of a document's questions is looked for."""
    model, processor = pair("qwen3_vl")
    items = DOCUMENTS.read(DOCUMENTS.write(tmp_path, 2, 0))
    items = [item for item in items if len(item.question.split()) < 12][:6]
    kept = Kept({name: factory(name) for name in ("uniform", "text")}, [0.25])
    told = analysis.analyse(
        model, processor, items, tmp_path, layer=0, batch=4, located=DOCUMENTS.located, kept=kept
    )  # fmt: skip
    assert told.questions == len(items) == next(one.auc.count for one in told.alignment if one.group == "all")
    files = analysis.save(told, tmp_path / "out", kept.summarise())
    assert [file.name for file in files] == ["analysis.json", "analysis.png", "kept.png"]
    read = json.loads(files[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [(one["method"], one["view"]) for one in read["kept"]] == [("uniform", "all"), ("text", "all")]
    assert np.shape(read["kept"][0]["cells"]) == (GRID, GRID)
    assert Image.open(files[2]).size[0] > 500
