"""Facility location over cosines without a table of them: its memory grows with the tokens, not with their pairs.

What a token adds to a coverage only ever gets less (submodularity), so what it added once bounds what it adds now. Each
step works the most promising tokens' gains out anew, until one is above all bounds (lazy greedy; Minoux 1978): the
same choice as the greedy one's, from a few columns of the table a step, which are made when they are needed. Those made
last are kept, in two bytes a cell. The steps are told from the host, so an accelerator is waited for in each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.functional.common import accumulator, require_finite, unit_rows

STEPS = 32767  # of a cosine that is held in two bytes: off by at most 1.6e-5

_SIDE = 512  # rows and columns of the products that the first gains are put together from: they stay in a cache
_UNIT = 1 << 27  # values of tokens whose directions are held (512 MiB)
_HELD = 1 << 28  # cells of the columns that are kept (512 MiB)
_BLOCK = 1 << 22  # values of tokens that are normalised at a time, where they are not held (16 MiB)
_FEWEST, _MOST = 8, 64  # tokens whose gains are worked out together: ever more while none is above the bounds
_NO_GAIN = 1e-7  # part of what all tokens cover that is taken for no gain, as where there is a table


class Columns:
    """The table of ``max(0, cos) ** power`` of N tokens, column by column, of cosines in steps of 1 / 32767.

    Args:
        visual: (N, D).
        power: > 0.
        shifted: ``((1 + cos) / 2) ** power`` instead.
    """

    def __init__(self, visual: Tensor, power: float, shifted: bool = False) -> None:
        if visual.device.type == "cpu":
            require_finite(visual=visual)
        self.visual, self.power, self.shifted = visual, power, shifted
        self.tokens = len(visual)
        self._unit: Tensor | None = None
        if visual.numel() <= _UNIT:
            self._unit = torch.empty(visual.shape, dtype=torch.float32, device=visual.device)
            for start in range(0, self.tokens, height := max(1, _BLOCK // visual.shape[1])):
                self._unit[start : start + height] = unit_rows(visual[start : start + height])
        slots = max(_MOST, min(self.tokens, _HELD // self.tokens))
        self._cells = torch.empty(slots, self.tokens, dtype=torch.int16, device=visual.device)
        self._slot_of: dict[int, int] = {}
        self._token_in: list[int | None] = [None] * slots
        self._next = 0

    def of(self, wanted: list[int]) -> Tensor:
        """(n, N) float32 of n <= 64 tokens."""
        missing = [token for token in wanted if token not in self._slot_of]
        if missing:
            needed = set(wanted)
            slots: list[int] = []
            while len(slots) < len(missing):
                slot, self._next = self._next, (self._next + 1) % len(self._token_in)
                if (before := self._token_in[slot]) in needed:
                    continue
                if before is not None:
                    del self._slot_of[before]
                slots.append(slot)
            self._make(missing, slots)
            for token, slot in zip(missing, slots, strict=True):
                self._slot_of[token], self._token_in[slot] = slot, token
        there = torch.tensor([self._slot_of[token] for token in wanted], device="cpu").to(self._cells.device)
        return raised(self._cells.index_select(0, there).float().div_(STEPS), self.power)

    def _make(self, tokens: list[int], slots: list[int]) -> None:
        places = torch.tensor(tokens, device="cpu").to(self.visual.device)
        rows = unit_rows(self.visual.index_select(0, places))
        height = self.tokens if self._unit is not None else max(1, _BLOCK // self.visual.shape[1])
        for start in range(0, self.tokens, height):
            some = slice(start, start + height)
            block = in_steps(rows @ self._rows(some).T, self.shifted)
            for row, slot in zip(block, slots, strict=True):
                self._cells[slot, some] = row

    def _rows(self, some: slice) -> Tensor:
        return unit_rows(self.visual[some]) if self._unit is None else self._unit[some]

    def first_gains(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) what each column covers alone, and what all of them do together; each pair of tokens once."""
        real = accumulator(weight.device)
        gain = torch.zeros(self.tokens, dtype=real, device=weight.device)
        best = torch.zeros_like(weight)  # covers each: no token is liker to one than itself
        for down in range(0, self.tokens, _SIDE):
            rows, here = self._rows(slice(down, down + _SIDE)), slice(down, down + _SIDE)
            for across in range(0, down + 1, _SIDE):
                there = slice(across, across + _SIDE)
                columns = rows if across == down else self._rows(there)
                block = raised(_stepped(rows @ columns.T, self.shifted).div_(STEPS), self.power)
                gain[here] += (block @ weight[there]).to(real)
                if across == down:
                    best[here] = block.diagonal()
                else:
                    gain[there] += (weight[here] @ block).to(real)
        return gain, (best * weight).sum(dtype=real)


def raised(values: Tensor, power: float) -> Tensor:
    """``values ** power`` in their own place; powers of two by squaring, which is several times faster."""
    doublings = math.log2(power)
    if not (doublings.is_integer() and doublings >= 0):
        return values.pow_(power)
    for _ in range(int(doublings)):
        values.mul_(values)
    return values


def in_steps(cosines: Tensor, shifted: bool) -> Tensor:
    """int16, of float32 cosines that may be written into; see ``Columns``."""
    return _stepped(cosines, shifted).to(torch.int16)


def _stepped(cosines: Tensor, shifted: bool) -> Tensor:
    cosines = cosines.add_(1.0).div_(2.0) if shifted else cosines
    return cosines.clamp_(0.0, 1.0).mul_(STEPS).round_()


def lazy_greedy(
    columns: Columns, weight: Tensor, budget: int, enough: float = 1.0, least: int = 1
) -> tuple[Tensor, Tensor]:
    """As the greedy choice of :func:`foveate.functional.cosine_cover`, whose arguments these are; likewise its results.

    O(N^2 D) for the first gains, then O(N D) for every column that is made and O(N) for every gain.
    """
    bound, most = columns.first_gains(weight)
    alone = bound.clone()
    covered = torch.zeros_like(weight)
    worked_out = torch.zeros(columns.tokens, dtype=torch.int64, device=weight.device)  # at which step its bound was
    whole = float(most)
    nothing, reached = whole * _NO_GAIN, 0.0
    order: list[int] = []
    gained: list[float] = []
    limit = min(budget, columns.tokens)

    def is_enough() -> bool:
        return enough < 1 and (whole <= 0 or reached / whole >= enough)

    while len(order) < limit and not (len(order) >= max(1, least) and is_enough()):
        token, gain = _best(columns, weight, covered, bound, worked_out, len(order), nothing)
        if gain <= nothing:  # and nothing adds anything from here on: what would cover most alone follows
            last = min(limit, max(1, least)) if is_enough() else limit
            order += alone.sort(descending=True, stable=True).indices[: last - len(order)].tolist()
            gained += [0.0] * (len(order) - len(gained))
            break
        order.append(token)
        gained.append(gain)
        reached += gain
        bound[token], alone[token] = -math.inf, -math.inf
        covered = torch.maximum(covered, columns.of([token])[0])
    share = torch.tensor(gained, dtype=torch.float64, device="cpu").cumsum(0)
    share = (share / whole if whole > 0 else torch.ones_like(share)).clamp(max=1.0).float()
    if len(order) == columns.tokens:
        share[-1] = 1.0
    return torch.tensor(order, device="cpu").to(weight.device), share.to(weight.device)


def _best(
    columns: Columns, weight: Tensor, covered: Tensor, bound: Tensor, worked_out: Tensor, step: int, nothing: float
) -> tuple[int, float]:
    """The token that adds most to a coverage, the first of equal ones, and how much; ``bound`` is brought up to date
    as far as that takes. A token's bound is its gain where ``worked_out`` is ``step``."""
    some = _FEWEST
    while True:
        token = int(bound.argmax())  # the first of equal ones
        gain = float(bound[token])
        if gain <= nothing or int(worked_out[token]) == step:
            return token, gain
        promising = bound.masked_fill(worked_out == step, -math.inf).topk(min(some, columns.tokens))
        more = promising.indices[promising.values > -math.inf].tolist()
        wanted = list(dict.fromkeys([token, *more]))[:_MOST]  # ``token`` may be behind others that are equal
        places = torch.tensor(wanted, device="cpu").to(weight.device)
        above = columns.of(wanted).sub_(covered).relu_().mul_(weight)
        bound.index_copy_(0, places, above.sum(dim=1, dtype=bound.dtype))
        worked_out.index_fill_(0, places, step)
        some = min(2 * some, _MOST)
