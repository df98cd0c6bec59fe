"""Few tokens that stand for all of them: facility location, solved greedily. Pure functions of one image's tokens.

``F(S) = sum over rows i of w_i max over j in S of L_ij`` is monotone and submodular, so the greedy choice reaches at
least ``1 - 1/e`` of the best (Nemhauser, Wolsey, Fisher 1978). What the rows and the likeness ``L`` are differs between
methods; how it is solved does not. The loop is over the budget. On an accelerator its steps are tensor operations that
nothing waits for and that go through the whole table (:class:`foveate.functional.coverage.Reach`), on a CUDA device
replayed several in one launch; on a CPU, where values may be looked at, only the rows that the last token covers better
are gone through again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import (
    accumulator,
    directions,
    require_budget,
    require_finite,
    require_floating,
    require_length,
    require_not_negative,
    require_positive,
    shape_of,
    unit_rows,
)
from foveate.functional.coverage import Reach
from foveate.functional.lazy import STEPS, Columns, in_steps, lazy_greedy, raised
from foveate.functional.steps import may_look, repeat

_BLOCK = 1 << 22  # cells of a table that are gone through at a time (16 MiB)
_CACHED = 1 << 19  # the same on a CPU, whose cache they stay in
_SIDE = 1024  # rows and columns of the products that a table of cosines is put together from
_WHOLE = 1 << 27  # cells of a table that is held in float32 (512 MiB); a larger one is held in two bytes a cell
_TABLE = 1 << 29  # cells of the largest table that is held at all (1 GiB; N = 23 170)
_UNIT = 1 << 26  # values of tokens whose directions are held beside it (256 MiB)
_NO_GAIN = 1e-7
"""Part of what all tokens cover that is taken for no gain: rounding leaves as much."""


def facility_location(likeness: Tensor, weight: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Columns that cover the rows of a table: greedy facility location.

    Each step takes the column that adds most to ``sum_i w_i max_{j chosen} L_ij``. When none adds anything, those that
    would cover most alone follow. O(R N) for the first, then O(C N) a step on the CPU, where C is how many rows the
    last column covers better than the ones before; O(R N) a step on an accelerator.

    Args:
        likeness: (R, N) >= 0, how well each of N columns covers each of R rows.
        weight: (R,) >= 0, how much a row counts.
        budget: K >= 1; with N <= K every column is taken.

    Returns:
        order (min(K, N)) int64, distinct, as they were taken, ties to the earlier column; and ``covered`` (min(K, N))
        float32 in [0, 1], ascending: F of the first k over F of all columns (1 where that is 0).

    Raises:
        TypeError: inputs that are not floating; a budget that is no int.
        ValueError: shapes that do not fit, an empty table, ``budget`` < 1; on CPU tensors also NaN, infinity or
            negative values.
    """
    budget = require_budget(budget)
    require_floating(likeness=likeness)
    if likeness.ndim != 2 or 0 in likeness.shape:
        raise ValueError(f"likeness must be (R, N) with R, N >= 1, got {shape_of(likeness)}")
    require_length(len(likeness), weight=weight)
    if likeness.device.type == "cpu":
        require_finite(likeness=likeness)
        require_not_negative("nothing is covered by less than nothing", likeness=likeness)
    with torch.autocast(likeness.device.type, enabled=False):
        return _greedy(_Table(likeness.float()), _checked(weight), budget)


def cosine_cover(
    visual: Tensor, weight: Tensor, budget: int, power: float = 8.0, *, enough: float = 1.0, least: int = 1
) -> tuple[Tensor, Tensor]:
    """Tokens that cover all tokens by their cosines: :func:`facility_location` with ``L = max(0, cos) ** power``.

    O(N^2 D) for the cosines, each computed once for both of its tokens. The table takes 4 bytes a cell up to N =
    11 585, and 2 (cosines rounded to 1.6e-5) above, where no copy of the tokens is held either. Above N = 23 170, as
    videos have, there is no table: the same choice of the same rounded cosines is made from columns that are computed
    when they are needed (:mod:`foveate.functional.lazy`), in up to a gibibyte beside the tokens and some numbers for
    each. An accelerator is waited for in every step then.

    Args:
        visual: (N, D) tokens of one image.
        weight: (N,) >= 0, how much it counts that a token is covered.
        budget: K >= 1; with N <= K everything is taken.
        power: > 0: how alike a token must be to stand for another. Default 8.
        enough: on a CPU no further token is taken once the first ones cover this share. Default 1: up to the budget.
            An accelerator, which would have to be waited for, goes on to the budget as long as there is a table.
        least: so many are taken in any case.

    Returns:
        As for :func:`facility_location`; no more tokens than are enough.

    Raises:
        TypeError, ValueError: as for :func:`facility_location`; ``power`` not positive and finite.
    """
    budget = require_budget(budget)
    require_positive(power=power)
    require_length(len(visual), weight=weight)
    with torch.autocast(visual.device.type, enabled=False):
        if len(visual) ** 2 > _TABLE:
            return lazy_greedy(Columns(visual, power), _checked(weight), budget, enough, least)
        return _greedy(_cosines(visual, power), _checked(weight), budget, enough, least)


def shifted_cosine_cover(visual: Tensor, weight: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Tokens that cover all tokens: :func:`facility_location` with ``L = (1 + cos) / 2``, as EADP (arXiv 2607.02484).

    Time and memory as for :func:`cosine_cover`.

    Args:
        visual: (N, D) tokens of one image.
        weight: (N,) >= 0, how much it counts that a token is covered.
        budget: K >= 1; with N <= K everything is taken.

    Returns:
        As for :func:`facility_location`.

    Raises:
        TypeError, ValueError: as for :func:`facility_location`.
    """
    budget = require_budget(budget)
    require_length(len(visual), weight=weight)
    with torch.autocast(visual.device.type, enabled=False):
        if len(visual) ** 2 > _TABLE:
            return lazy_greedy(Columns(visual, 1.0, shifted=True), _checked(weight), budget)
        return _greedy(_cosines(visual, 1.0, shifted=True), _checked(weight), budget)


class _Table:
    """(R, N) likenesses.

    Args:
        cells: (R, N) float32 likenesses; or int16, symmetric: cosines in steps of 1 / 32767.
        power: of the cosine, where cells are int16.
        mirrored: whether the table is symmetric, so that a column is a row.
    """

    def __init__(self, cells: Tensor, power: float = 1.0, mirrored: bool = False) -> None:
        self.cells, self.power, self.mirrored = cells, power, mirrored

    def rows(self, wanted: Tensor | slice) -> Tensor:
        """(n, N) float32, that may be written into only where rows were named."""
        cells = self.cells[wanted] if isinstance(wanted, slice) else self.cells.index_select(0, wanted)
        return cells if cells.dtype == torch.float32 else raised(cells.float().div_(STEPS), self.power)

    def column(self, token: Tensor) -> Tensor:
        """(R,) float32, of a (1,) int64."""
        return self.rows(token)[0] if self.mirrored else self.cells.index_select(1, token)[:, 0]

    def weighted(self, weight: Tensor) -> _Table:
        """Of float32 cells, each row times its weight. A table made here is written into, as nobody needs it."""
        weight = weight.unsqueeze(-1)
        return _Table(self.cells.mul_(weight) if self.mirrored else self.cells * weight)


def _cosines(visual: Tensor, power: float, shifted: bool = False) -> _Table:
    """max(0, cos) ** power of all pairs of (N, D) tokens, block by block, each block of pairs once.

    With ``shifted`` it is ``((1 + cos) / 2) ** power``.
    """
    tokens = len(visual)
    small = tokens * tokens <= _WHOLE
    unit = directions(visual) if small and visual.numel() <= _UNIT else None
    if unit is None and visual.device.type == "cpu":
        require_finite(visual=visual)
    dtype = torch.float32 if small else torch.int16
    cells = torch.empty(tokens, tokens, dtype=dtype, device=visual.device)

    def of(start: int) -> Tensor:
        some = slice(start, start + _SIDE)
        return unit_rows(visual[some]) if unit is None else unit[some]

    for down in range(0, tokens, _SIDE):
        rows = of(down)
        for across in range(0, down + 1, _SIDE):
            block = rows @ (rows if across == down else of(across)).T
            if small:
                block = raised((block.add_(1.0).div_(2.0) if shifted else block).clamp_(0.0, 1.0), power)
            else:
                block = in_steps(block, shifted)
            cells[down : down + _SIDE, across : across + _SIDE] = block
            if across != down:
                cells[across : across + _SIDE, down : down + _SIDE] = block.T
    return _Table(cells, power, mirrored=True)


def _greedy(table: _Table, weight: Tensor, budget: int, enough: float = 1.0, least: int = 1) -> tuple[Tensor, Tensor]:
    rows, columns = table.cells.shape
    device = weight.device
    covered = torch.zeros(rows, dtype=torch.float32, device=device)
    gain, most = _gain(table, covered, weight, ends=True)
    alone = gain - gain.amax() - 1  # below every gain; -infinity once taken, when the gain is none either
    nothing = _NO_GAIN * most
    budget = min(budget, columns)
    order = torch.zeros(budget, dtype=torch.int64, device=device)
    gained = gain.new_zeros(budget)
    reach = None
    if Reach.fits(table.cells):
        table = table.weighted(weight)
        reach = Reach(table.cells)
    may_end, number, reached = enough < 1 and may_look(covered), 0, most.new_zeros(1)

    def choose(token: Tensor, adds: Tensor) -> bool:
        nonlocal number, reached
        if may_end:
            if number >= max(1, least) and bool(_share(reached, most) >= enough):
                return True
            number += 1
        torch.argmax(torch.where(gain > nothing, gain, alone), dim=0, keepdim=True, out=token)
        torch.index_select(gain, 0, token, out=adds)
        alone.index_fill_(0, token, -math.inf)
        if may_end:
            reached = reached + adds
        return False

    def step(token: Tensor, adds: Tensor) -> bool:
        if choose(token, adds):
            return True
        column = table.column(token)
        if reach is not None:
            torch.maximum(covered, column, out=covered)
            reach.gain(covered, token, gain)
            return False
        grown = torch.maximum(covered, column)
        if may_look(covered):
            gain.index_fill_(0, token, 0.0)
            gain.copy_(_less(table, covered, grown, weight, gain))
        else:
            gain.copy_(_gain(table, grown, weight)[0])
        covered.copy_(grown)
        return False

    done = repeat(step, budget - 1, order[:-1], gained[:-1])
    if done == budget - 1 and not choose(order[-1:], gained[-1:]):
        done = budget
    share = _share(gained[:done].cumsum(0), most)
    if columns == done:
        share[-1] = 1.0
    return order[:done], share


def _share(covered: Tensor, most: Tensor) -> Tensor:
    """Part of what all columns cover, in float32."""
    return torch.where(most > 0, covered / torch.where(most > 0, most, 1.0), 1.0).clamp(max=1.0).float()


def _gain(table: _Table, covered: Tensor, weight: Tensor, ends: bool = False) -> tuple[Tensor, Tensor]:
    """(N,) what each column adds to a coverage: ``sum_i w_i max(0, L_ij - covered_i)``.

    With ``ends`` also what all columns together cover: ``sum_i w_i max_j L_ij``, a 0-d tensor.
    """
    rows, columns = table.cells.shape
    real = accumulator(weight.device)
    gain, most = (weight.new_zeros(shape, dtype=real) for shape in ((columns,), ()))
    height = max(1, (_CACHED if weight.device.type == "cpu" else _BLOCK) // columns)
    for start in range(0, rows, height):
        some = slice(start, start + height)
        cells = table.rows(some)
        if ends:
            most = most + (cells.amax(dim=1) * weight[some]).sum(dtype=real)
        above = (cells - covered[some, None]).relu_().mul_(weight[some, None])
        gain += above.sum(dim=0, dtype=real)
    return gain, most


def _less(table: _Table, before: Tensor, covered: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
    """The gain once a coverage has grown, from the gain before: what has been covered meanwhile is taken off."""
    better = (covered > before).nonzero()[:, 0]
    for some in torch.split(better, max(1, _CACHED // table.cells.shape[1])):
        low, high, share = (one.index_select(0, some)[:, None] for one in (before, covered, weight))
        between = table.rows(some).clamp_(low, high).sub_(low).mul_(share)
        gain = gain - between.sum(dim=0, dtype=gain.dtype)
    return gain


def _checked(weight: Tensor) -> Tensor:
    """Weights in the table's precision."""
    require_not_negative("covering more would be worth less", weight=weight)
    return weight.float()
