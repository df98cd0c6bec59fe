"""What the first stages need beside the model, and what is thrown away after them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.dynamic.data import NO_DIGIT, PLACES
from training.dynamic.letters import NO_LETTER, SLOTS
from training.vision import cross_entropy

BACKGROUND = 0.25
"""Background is most of the cells and the easiest: it counts a quarter."""
_READOUT = 4  # row, column, middle of a thing, side


class Heads(nn.Module):
    """Readouts of tokens, and what background looks like."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.randn(width) / width**0.5)
        self.readout = nn.Linear(width, _READOUT)
        self.number = nn.Linear(width, PLACES * (NO_DIGIT + 1))
        self.key = nn.Linear(width, width)
        self.letters, self.deep_letters = (nn.Linear(width, SLOTS * (NO_LETTER + 1)) for _ in range(2))
        # Begun at 15, things are told apart several times more slowly: the cosines stay small for SCALE's sake.
        self.log_scale = nn.Parameter(torch.tensor(40.0).log())


def letter_loss(head: nn.Linear, rows: Tensor, letters: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the letters of some cells' slots, (cells * SLOTS, letters), and their loss.

    Args:
        rows: (cells, D).
        letters: (cells * SLOTS,) targets.
    """
    logits = head(F.normalize(rows, dim=-1) * rows.shape[-1] ** 0.5).view(-1, NO_LETTER + 1)
    weight = logits.new_ones(NO_LETTER + 1)
    weight[NO_LETTER] = BACKGROUND
    return logits, cross_entropy(logits, letters, weight)
