"""Questions about pictures, many in a row: how both models' second stage is shown them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data import IGNORE
from training.presets import Stage

MASKED = -1e9
_END_WEIGHT = 0.2
#: Budgets of token dropout, and how they grow.
BUDGETS = ((0.15, (12, 16, 16, 24)), (0.3, (16, 24, 32, 48)), (1.0, (16, 32, 48, 80, 80, 128)))

Question = tuple[Sequence[int], Sequence[int], str]
"""Ids of a question up to where the answer begins, ids of the answer, kind."""


@dataclass(frozen=True)
class Packed:
    """Questions of a batch of pictures in one row per picture, each question seeing the picture and itself only.

    Attributes:
        ids, block, place, target: (B, Q): token, question (0: padding), place within its question, what comes next.
        right: (B, Q) what the tokens that answer are to be; ``IGNORE`` elsewhere.
        question: (B, Q) number of the question in ``kinds``.
        kinds: kind of each question of the batch.
    """

    ids: Tensor
    block: Tensor
    place: Tensor
    target: Tensor
    right: Tensor
    question: Tensor
    kinds: list[str]


def pack(asked: Sequence[Sequence[Question]], pad: int, end: int) -> Packed:
    """Puts the questions of each picture into one row.

    Args:
        asked: by picture.
        pad, end: ids of padding and of what ends an answer.
    """
    rows: list[list[tuple[int, ...]]] = []
    kinds: list[str] = []
    for questions in asked:
        row: list[tuple[int, ...]] = []
        for number, (question, answer, kind) in enumerate(questions, 1):
            ids = [*question, *answer]
            first = len(question) - 1
            for place, token in enumerate(ids):
                target = IGNORE if place < first else ids[place + 1] if place + 1 < len(ids) else end
                right = target if first <= place < len(ids) - 1 else IGNORE
                row.append((token, number, place, target, right, len(kinds)))
            kinds.append(kind)
        rows.append(row)
    longest = max(1, *(len(row) for row in rows))
    padding = (pad, 0, 0, IGNORE, IGNORE, 0)
    table = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    return Packed(*table.unbind(-1), kinds)


def question_mask(real: Tensor, block: Tensor, before: int) -> Tensor:
    """(B, 1, S, S), added to attention scores: causal, and a question sees the start, the picture and itself.

    Args:
        real: (B, V) which places behind the first ``before`` hold visual tokens.
        block: (B, Q) as in ``Packed``.
        before: tokens in front of the picture.
    """
    batch, visual = real.shape
    device = real.device
    shown = torch.cat([real.new_ones(batch, before), real, torch.zeros_like(block, dtype=torch.bool)], 1)
    owner = torch.cat([block.new_zeros(batch, before + visual), block], 1)
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    same = (owner[:, :, None] == owner[:, None, :]) & (owner[:, None, :] > 0)
    # Everyone sees itself: a row of padding that sees nothing would come out as NaN.
    allowed = causal & (shown[:, None, :] | same) | torch.eye(length, dtype=torch.bool, device=device)
    return torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, MASKED)[:, None]


def loss_of_answers(
    states: Tensor, words: Tensor, packed: Packed, suffix: str, emphasis: Mapping[str, float] | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers, and the share of right ones by kind.

    Args:
        states: (B, Q, D) what the language model makes of ``packed.ids``.
        words: (words, D) the output layer.
        packed: the questions.
        suffix: behind the names of kinds in what is returned.
        emphasis: weights of kinds of questions, 1 unless given.
    """
    device = states.device
    target, right = packed.target.to(device), packed.right.to(device)
    used = target != IGNORE
    logits = states[used].float() @ words.T
    wanted, answers = target[used], right[used]
    is_answer = answers != IGNORE
    # The end after the answer is learned at once: a fifth of the weight.
    weight = torch.where(is_answer, 1.0, _END_WEIGHT)
    kinds = torch.tensor([(emphasis or {}).get(kind, 1.0) for kind in packed.kinds] or [1.0], device=device)
    weight = weight * kinds[packed.question.to(device)[used]]
    each = F.cross_entropy(logits, wanted, reduction="none") * weight
    loss = each.sum() / is_answer.sum().clamp(min=1)
    good = (logits.argmax(-1) == wanted)[is_answer].tolist()
    all_right = [True] * len(packed.kinds)
    for number, ok in zip(packed.question[packed.right != IGNORE].tolist(), good, strict=True):
        all_right[number] &= ok
    by_kind: dict[str, list[bool]] = {}
    for kind, ok in zip(packed.kinds, all_right, strict=True):
        by_kind.setdefault(kind, []).append(ok)
    return loss, {"loss": float(loss.detach())} | {kind + suffix: float(np.mean(oks)) for kind, oks in by_kind.items()}


def budget_of(stage: Stage, step: int, dropout: bool, rng: np.random.Generator) -> int | None:
    """How many tokens a batch keeps; None for all, ever more often, as counting and the like need."""
    progress = step / stage.steps
    if not dropout or rng.random() < np.interp(progress, (0.2, 0.45, 0.75), (0.0, 0.45, 0.75)):
        return None
    budgets = next(choice for until, choice in BUDGETS if progress <= until)
    return int(rng.choice(budgets))
