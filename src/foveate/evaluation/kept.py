"""Where in the picture the tokens lie that a method keeps: at the edge, in the centre, in which view, and as a map.

Pictures and views may be of any size: every token counts for the cells of a common grid that its box covers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foveate.evaluation.drawn import Item
from foveate.evaluation.engines import Way
from foveate.evaluation.runner import Factory
from foveate.evaluation.statistics import Design, Estimate, bootstrap, tallied, wilson
from foveate.pruners import Method
from foveate.session import Session
from foveate.tokens import Keep, Selection

GRID = 12
"""Cells of a map along each side of the picture."""
EDGE = 1 / 8
"""Tokens whose centre is nearer than this to a border of the picture, as a part of its side, lie at the edge."""
CENTRE = 1 / 4
"""Those whose centre is further than this from every border lie in the centre."""
UNIFORM = "uniform"
"""What every method is compared with: as many tokens at even distances."""
EVERY, BASE, CROPS = "all", "base view", "crops"


@dataclass(frozen=True)
class Lying:
    """Which part of the tokens a method keeps, by where they lie; means over questions.

    Args:
        method, keep: as asked for.
        view: ``"all"`` views; of pictures that are cut up, ``"base view"`` and ``"crops"`` besides.
        share: of that view's tokens, the part that is kept.
        edge, centre: of those at the picture's edge and in its centre.
        cells: (GRID, GRID), row by row, the part that is kept there; NaN where no picture has a token.
    """

    method: str
    keep: float | int
    view: str
    share: Estimate
    edge: Estimate
    centre: Estimate
    cells: tuple[tuple[float, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        cells = [[None if math.isnan(value) else round(value, 5) for value in row] for row in self.cells]
        estimates = {name: _plain(getattr(self, name)) for name in ("share", "edge", "centre")}
        return {"method": self.method, "keep": self.keep, "view": self.view, **estimates, "cells": cells}


class Kept:
    """Collects, question by question, where the tokens lie that methods keep.

    Args:
        methods: by name, how each is made, ``uniform`` among them.
        keeps: budgets.

    Raises:
        ValueError: nothing to compare, or a budget that a method refuses.
    """

    def __init__(self, methods: Mapping[str, Factory], keeps: Sequence[float | int]) -> None:
        if not keeps or not methods:
            raise ValueError("say which methods keep how much: where tokens lie is compared between them")
        if UNIFORM not in methods:
            raise ValueError(f"{UNIFORM} is what the others are compared with: name it among the methods")
        self.factories = dict(methods)
        self.runs = [(name, Keep(keep).value) for keep in keeps for name in self.factories]
        for name, keep in self.runs:
            self._made(name, keep, 0)
        self.images: list[str] = []
        self.found: dict[tuple[str, str, str], list[tuple[str, np.ndarray]]] = {}

    def _made(self, name: str, keep: float | int, picture: int) -> Method:
        made: Way = self.factories[name](keep, picture)
        assert isinstance(made, Method)  # parse_methods has refused others
        return made

    def read(self, session: Session, items: Sequence[Item], size: tuple[int, int]) -> None:
        """Asks questions about a session's picture, and notes what every method keeps.

        Args:
            session: of one picture.
            items: the questions.
            size: (width, height) of the picture's file.
        """
        image = items[0].image
        if image not in self.images[-1:]:
            self.images.append(image)
        options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}
        for name, keep in self.runs:
            method = self._made(name, keep, len(self.images) - 1)
            answers = session.ask_many([item.question for item in items], method, **options)
            where = Where.of(answers[0].selections[0], size)
            for answer in answers:
                kept = answer.selections[0].mask().cpu().numpy()
                for view, among in where.views.items():
                    self.found.setdefault((name, repr(keep), view), []).append((image, where.shares(kept, among)))

    def summarise(self) -> list[Lying]:
        """Means over all questions, with 95 % bootstrap intervals over pictures; by budget, ``uniform`` first."""
        found = []
        order = sorted(self.runs, key=lambda run: (self.runs.index((UNIFORM, run[1])), run[0] != UNIFORM))
        for name, keep in order:
            for view in (EVERY, BASE, CROPS):
                if (name, repr(keep), view) not in self.found:
                    continue
                told = self.found[name, repr(keep), view]
                images, table = [image for image, _ in told], np.stack([shares for _, shares in told])
                known = ~np.isnan(table)
                sums, counts = np.where(known, table, 0.0).sum(0), known.sum(0)
                cells = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)[3:].reshape(GRID, GRID)
                share, edge, centre = (_mean(table[:, column], images) for column in range(3))
                shown = tuple(tuple(map(float, row)) for row in cells)
                found.append(Lying(name, keep, view, share, edge, centre, shown))
        return found


@dataclass(frozen=True)
class Where:
    """Where one picture's tokens lie.

    Args:
        views: by name, (N,) bool: which tokens are of it.
        edge, centre: (N,) bool.
        across, down: (N, GRID) how much of every column and row of cells each token covers, in cells.
    """

    views: dict[str, np.ndarray]
    edge: np.ndarray
    centre: np.ndarray
    across: np.ndarray
    down: np.ndarray

    @classmethod
    def of(cls, selection: Selection, size: tuple[int, int]) -> Where:
        """Of a picture of that (width, height)."""
        width, height = size
        boxes = selection.geometry.boxes_in(height, width).double().cpu().numpy() / [width, height, width, height]
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        border = np.minimum(middle, 1 - middle).min(axis=1)
        view = selection.geometry.view.cpu().numpy()
        views = {EVERY: np.ones(len(view), dtype=bool)}
        if len(selection.geometry.grids) > 1:
            views |= {BASE: view == 0, CROPS: view > 0}
        across, down = (_covered(boxes[:, axis], boxes[:, axis + 2]) for axis in (0, 1))
        return cls(views, border < EDGE, border > CENTRE, across, down)

    def shares(self, kept: np.ndarray, among: np.ndarray) -> np.ndarray:
        """(3 + GRID * GRID,): the kept part of some tokens, of those at the edge, of those in the centre, and of every
        cell, row by row; NaN where there are none.

        Args:
            kept, among: (N,) bool.
        """
        parts = [_part(kept, among & where) for where in (np.ones_like(among), self.edge, self.centre)]
        across, down = self.across[among], self.down[among]
        there = np.einsum("nx,ny->yx", across, down)
        stays = np.einsum("nx,ny,n->yx", across, down, kept[among].astype(float))
        cells = np.full(there.shape, np.nan)
        np.divide(stays, there, out=cells, where=there > 1e-6)
        return np.concatenate([parts, cells.ravel()])


def _covered(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    edges = np.arange(GRID + 1) / GRID
    covered = np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1])
    return np.asarray(covered.clip(min=0.0) * GRID)


def _part(kept: np.ndarray, among: np.ndarray) -> float:
    return float(kept[among].mean()) if among.any() else math.nan


def _mean(values: np.ndarray, images: Sequence[str]) -> Estimate:
    known = ~np.isnan(values)
    if not known.any():
        return wilson(0, 0)
    return bootstrap(
        Design([image for image, there in zip(images, known, strict=True) if there]), tallied(values[known])
    )


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {name: None if math.isnan(value) else value for name, value in asdict(estimate).items()}
